"""Train: fit a classifier on the training images; keep the epoch that the validation images like best.

Reads `data/prepared/` and `data/split.csv`, writes `models/` and `metrics/training/`.
"""

from pathlib import Path

from stages.classifier.engine import fit, prepare_hardware
from stages.classifier.module import SkinLesionClassifier
from stages.classifier.networks import architecture, pixel_statistics
from stages.classifier.weights import ModelDescription, save_model
from stages.config import Config, load_config
from stages.dataset.loaders import Batches, SplitImages
from stages.dataset.pixels import PixelStore
from stages.dataset.taxonomy import class_names
from stages.errors import run
from stages.files import CHECKPOINTS, MODELS, PREPARED, SPLIT, TRAINING_METRICS


def train_model(
    config: Config,
    prepared: Path = PREPARED,
    split: Path = SPLIT,
    models: Path = MODELS,
    metrics: Path = TRAINING_METRICS,
    checkpoints: Path = CHECKPOINTS,
) -> ModelDescription:
    """Train the network of `config.model` as `config.training` says, and write its best weights.

    Args:
        config: the parameters.
        prepared: folder of the pixel store.
        split: table of the splits.
        models: folder for `model.safetensors` and `model.json`.
        metrics: folder for DVCLive's curves.
        checkpoints: folder for Lightning's checkpoints, emptied first.

    Returns:
        What was written to `model.json`: the network, the best epoch and its validation loss.

    Raises:
        InputError: a parameter or a file does not fit.
    """
    device = prepare_hardware(config.training)
    store = PixelStore(prepared)
    num_classes, training = config.model.num_classes, config.training
    module = SkinLesionClassifier(config.model, training, store.image_size, config.data.augment)
    train, val = (SplitImages(store, name, split, num_classes) for name in ("train", "val"))
    epoch, val_loss = fit(
        module,
        Batches(train, training.batch_size, device, seed=training.seed),
        Batches(val, training.batch_size, device),
        training,
        checkpoints,
        metrics,
    )
    name = architecture(config.model)
    mean, std = pixel_statistics(name)
    description = ModelDescription(
        architecture=name,
        classes=list(class_names(num_classes)),
        image_size=store.image_size,
        mean=list(mean),
        std=list(std),
        epoch=epoch,
        val_loss=val_loss,
    )
    save_model(module.network, description, models)
    return description


def main() -> None:
    trained = train_model(load_config())
    print(f"{trained.architecture}: best epoch {trained.epoch + 1}, val_loss {trained.val_loss:.4f}")


if __name__ == "__main__":
    run(main)
