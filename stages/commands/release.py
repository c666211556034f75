"""Release: one model of the networks of a cross-validation, which every lesion has trained.

  python -m stages sweep -S 'split.test_fold=range(7)' --name folds
  python -m stages release --output release               the experiments of HEAD
  python -m stages release folds-1 folds-2 folds-3 folds-4 folds-5 folds-6 folds-7 --output release
  python -m stages predict photo.jpg --models release

Its numbers are those of `python -m stages pool`; its temperature and thresholds those of the average. The folder holds
a model as models/ does: model.safetensors, model.json, calibration.json, and its model card as README.md; for --models
of `predict` and `validate`. That holds it against details.json and predictions.csv there: of each lesion by the fold
that had not trained on it.
"""

from stages.command_line import new_fold_parser


def main(argv: list[str] | None = None) -> None:
    """Run the command line.

    Raises:
        InputError: an argument is wrong, a fold or its weights are missing, or the images are not those of the runs;
            nothing is then written.
    """
    parser = new_fold_parser("release", __doc__)
    args = parser.parse_args(argv)
    from dataclasses import asdict

    from threadpoolctl import threadpool_limits

    from stages.classifier.calibration import described, save_calibration
    from stages.classifier.weights import WEIGHTS, save_model
    from stages.dataset.pixels import PixelStore
    from stages.experiments.pooling import find_run, pool, read_folds
    from stages.experiments.release import calibrate_release, gather_networks
    from stages.figures.model_card import write_model_card
    from stages.files import DETAILS, PREDICTIONS, PREPARED, replacing, write_csv, write_json

    folds = read_folds(find_run(args.revisions))
    store, config = PixelStore(PREPARED), folds[0].revision.config
    with threadpool_limits(config.runtime.cpu_threads):
        predictions, details = pool(folds, store, config)
        calibration = calibrate_release(folds, config.evaluation)
    details |= {"calibration": described(calibration)}
    network, description = gather_networks(folds)
    tested = store.manifest["image_id"].isin(predictions.table["image_id"])
    split = store.manifest[["image_id"]].assign(split=tested.map({True: "all folds", False: "only trained on"}))
    with replacing(args.output) as folder:
        folder.mkdir()
        save_model(network, description, folder)
        save_calibration(calibration, folder)
        write_json(folder / DETAILS.name, details)
        write_csv(folder / PREDICTIONS.name, predictions.table)
        write_model_card(
            folder / "README.md", details, asdict(description), folder / WEIGHTS, config, store.manifest, split
        )
    print(
        f"{description.networks} networks of {len(folds)} folds as one; temperature {calibration.temperature}, "
        f"threshold {calibration.threshold} for a sensitivity of {calibration.target_sensitivity}\nwrote {args.output}"
    )
