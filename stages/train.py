"""Train: fit a classifier, or several, on the training images; keep the epoch that is best on the validation images.

Reads `data/prepared/` and `data/split.csv`, writes `models/`, `data/training/`, `data/augmented.npy` and
`metrics/environment.json`.
"""

from collections.abc import Iterable

from stages.config import load_config
from stages.files import AUGMENTED, PREPARED, SPLIT, write_array
from stages.gpus import lease_gpus, visible_gpus
from stages.launch import run_stage
from stages.ranks import find_launch, join, start_in_slurm, start_processes_of_this_machine


def start_others() -> None:
    """In the script of a SLURM job, have srun start the training, on all of its machines; else check who has."""
    config = load_config()
    if find_launch() is not None:
        join(config.training.devices, config.training.num_nodes)
    start_in_slurm(config.training.devices, config.training.num_nodes)


def main() -> None:
    config = load_config()
    lease_gpus(config.training.devices)
    if len(visible_gpus()) not in range(1, config.training.devices):  # else too few, which is an error
        start_processes_of_this_machine(config.training.devices, config.training.num_nodes)
    # Takes seconds to import, PyTorch most of them: the other processes do it meanwhile.
    from stages.dataset.loaders import SplitImages
    from stages.dataset.pixels import PixelStore
    from stages.training.fit import augmented_examples, train_model, write_environment

    training = train_model(config)
    if training is None:
        return
    images = SplitImages(PixelStore(PREPARED), "train", SPLIT, config.model.num_classes)
    write_array(AUGMENTED, augmented_examples(images, config))
    write_environment(training)
    trained = training.description
    print(
        f"{trained.architecture}: best epoch {_listed(epoch + 1 for epoch in trained.epochs)}, "
        f"{config.training.monitor} {_listed(f'{loss:.4f}' for loss in trained.val_losses)}, "
        f"{training.seconds:.1f} s in all, its steps at {training.images_per_second:.0f} images/s"
    )


def _listed(values: Iterable) -> str:
    return " and ".join(map(str, values))


if __name__ == "__main__":
    run_stage(main, __doc__, start_others)
