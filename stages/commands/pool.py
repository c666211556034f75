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
    from threadpoolctl import threadpool_limits

    from stages.config import PARAMS
    from stages.dataset.pixels import PixelStore
    from stages.evaluation.metrics import headline_numbers
    from stages.experiments.pooling import find_run, pool, read_folds
    from stages.figures.report import describe_images
    from stages.files import PREPARED, replacing
    from stages.plot import write_results
    from stages.reporting import estimate, in_order

    folds = read_folds(find_run(args.revisions))
    store, config = PixelStore(PREPARED), folds[0].revision.config
    note = (
        f"Cross-validated: {len(folds)} networks, each judged on the images of a fold that it had not seen, at the "
        "temperature and thresholds that were fixed on the fold after it. The decision of an image is that of its "
        "fold's threshold; where one number stands for all, it is their median."
    )
    about = {
        "Model": f"{len(folds)} networks as those of {folds[0].revision.name}",
        "Data": describe_images(config.data.data_dir, store.manifest),
    }
    title = f"Evaluation on all {len(folds)} folds"
    with threadpool_limits(config.runtime.cpu_threads), replacing(args.output) as folder:
        folder.mkdir()
        predictions, details = pool(folds, store, config)
        write_results(folder, predictions, details, store, None, about=about, title=title, notes=[note])
        (folder / PARAMS).write_bytes(folds[0].revision.read(PARAMS) or b"")
    print(f"{details['test']['images']} images of {details['test']['lesions']} lesions, {len(folds)} folds")
    for _, metric, number in in_order(headline_numbers(details["test"])):
        print(f"{metric.title}: {estimate(number)}")
    print(f"wrote {args.output}")
