"""Pool: every lesion judged once, by the experiments of a cross-validation together.

  python -m stages sweep -S 'split.test_fold=range(7)' --name folds
  python -m stages pool --output pooled                   the experiments of HEAD
  python -m stages pool folds-1 folds-2 folds-3 folds-4 folds-5 folds-6 folds-7 --output pooled
  python -m stages compare other-pooled pooled            two pooled folders, or one and a revision

The experiments differ in split.test_fold alone, and each fold is tested by one. Reads what Git holds of each, and the
images in data/prepared; nothing is checked out or fitted. The folder then has the predictions of all images, every
number with its interval, pictures, and plots/report.html.
"""

from stages.command_line import new_fold_parser


def main(argv: list[str] | None = None) -> None:
    """Run the command line.

    Raises:
        InputError: an argument is wrong, a fold is missing, or the images are not those of the runs; nothing is then
            written.
    """
    parser = new_fold_parser("pool", __doc__)
    args = parser.parse_args(argv)
    import numpy as np
    from threadpoolctl import threadpool_limits

    from stages.config import PARAMS
    from stages.dataset.pixels import PixelStore
    from stages.evaluation.cases import choose_cases
    from stages.evaluation.metrics import headline_numbers
    from stages.experiments.pooling import find_run, pool, read_folds
    from stages.figures.report import describe_images, write_report
    from stages.files import DETAILS, EVALUATION, PREDICTIONS, PREPARED, replacing, write_csv, write_json
    from stages.plot import draw_pictures, draw_tables, write_plots
    from stages.reporting import estimate, in_order

    folds = read_folds(find_run(args.revisions))
    store, config = PixelStore(PREPARED), folds[0].revision.config
    with threadpool_limits(config.runtime.cpu_threads):
        predictions, details = pool(folds, store, config)
        tables = draw_tables(predictions, details)
    nothing = choose_cases(predictions, 0, 0), np.empty((0, store.image_size, store.image_size), np.uint8)
    pictures = draw_pictures(predictions, details, tables, store, *nothing)
    del pictures["gradcam"]  # which takes a network
    metrics = headline_numbers(details["test"])
    with replacing(args.output) as folder:
        folder.mkdir()
        write_csv(folder / PREDICTIONS.name, predictions.table)
        write_json(folder / DETAILS.name, details)
        write_json(folder / EVALUATION.name, {name: number["value"] for name, number in metrics.items()})
        (folder / PARAMS).write_bytes(folds[0].revision.read(PARAMS) or b"")
        write_plots(folder / "plots", tables, pictures)
        note = (
            f"Cross-validated: {len(folds)} networks, each judged on the images of a fold that it had not seen, at the "
            "temperature and thresholds that were fixed on the fold after it. The decision of an image is that of its "
            "fold's threshold; where one number stands for all, it is their median."
        )
        title = f"Evaluation on all {len(folds)} folds"
        about = {
            "Model": f"{len(folds)} networks as those of {folds[0].revision.name}",
            "Data": describe_images(config.data.data_dir, store.manifest),
        }
        page = folder / "plots" / "report.html"
        write_report(page, details, folder / "plots" / "pictures", store.manifest, about, title, [note])
    print(f"{details['test']['images']} images of {details['test']['lesions']} lesions, {len(folds)} folds")
    for _, metric, number in in_order(metrics):
        print(f"{metric.title}: {estimate(number)}")
    print(f"wrote {args.output}")
