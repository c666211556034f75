"""Audit: the lesions whose label is doubtful, by a cross-validation's networks that have not trained on them.

  python -m stages sweep -S 'split.test_fold=range(7)' --name folds
  python -m stages audit --output doubtful-labels         the experiments of HEAD
  python -m stages audit folds-1 folds-2 folds-3 folds-4 folds-5 folds-6 folds-7 --output doubtful-labels

The folder then holds labels.csv, all lesions for which the model is confident in another class, the most doubtful
first, and labels.html, pictures of the first of them; no label is changed.
"""

from stages.command_line import new_fold_parser, whole_number


def main(argv: list[str] | None = None) -> None:
    """Run the command line.

    Raises:
        InputError: an argument is wrong, a fold is missing, or the images are not those of the runs; nothing is then
            written.
    """
    parser = new_fold_parser("audit", __doc__)
    help_most = "lesions in the page (default: %(default)s)"
    parser.add_argument("--most", type=whole_number(), default=100, metavar="N", help=help_most)
    args = parser.parse_args(argv)
    from stages.dataset.pixels import PixelStore
    from stages.evaluation.labels import doubtful_labels
    from stages.experiments.pooling import by_two_networks, find_run, images_of, mean_of_two_networks, read_folds
    from stages.figures.labels import write_label_page
    from stages.files import PREPARED, replacing, write_csv

    folds = read_folds(find_run(args.revisions))
    store = PixelStore(PREPARED)
    predictions = mean_of_two_networks(*by_two_networks(folds))
    images_of(predictions, store)
    found = doubtful_labels(predictions)
    lesions = predictions.table["lesion_id"].nunique()
    with replacing(args.output) as folder:
        folder.mkdir()
        write_csv(folder / "labels.csv", found)
        write_label_page(folder / "labels.html", found, args.most, store, lesions)
    print(
        f"{len(found)} of {lesions} lesions are doubtful; {args.output / 'labels.csv'} lists them, "
        f"{args.output / 'labels.html'} shows {min(len(found), args.most)}"
    )
