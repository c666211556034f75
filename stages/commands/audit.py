"""Audit: the lesions whose label is doubtful, by a cross-validation's networks that have not trained on them.

    python -m stages sweep -S 'split.test_fold=range(7)' --name folds
    python -m stages audit --output doubtful-labels

Writes a table and a page with pictures; no label is changed.
"""

import argparse
from pathlib import Path

from stages.command_line import new_parser, require_new_folder

EXAMPLES = """\
examples:
  python -m stages audit --output doubtful-labels         the experiments of HEAD
  python -m stages audit folds-1 folds-2 folds-3 folds-4 folds-5 folds-6 folds-7 --output doubtful-labels

The folder then holds labels.csv, all lesions for which the model is confident in another class, the most doubtful
first, and labels.html, pictures of the first of them.
"""


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, at least 1")
    return int(text)


def main(argv: list[str] | None = None) -> None:
    """Run the command line.

    Raises:
        InputError: an argument is wrong, a fold is missing, or the images are not those of the runs; nothing is then
            written.
    """
    parser = new_parser("audit", "List the lesions whose label a cross-validation's networks doubt.", EXAMPLES)
    add = parser.add_argument
    add("revisions", metavar="REV", nargs="*", help="of each fold (default: the experiments of HEAD)")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the results, which must not exist yet")
    add("--most", type=_count, default=100, metavar="N", help="lesions in the page (default: %(default)s)")
    args = parser.parse_args(argv)
    require_new_folder(args.output)
    from stages.dataset.pixels import PixelStore
    from stages.evaluation.labels import doubtful_labels
    from stages.experiments.pooling import find_run, images_of, mean_of_two_networks, read_folds
    from stages.figures.labels import write_label_page
    from stages.files import PREPARED, replacing, write_csv

    folds = read_folds(find_run(args.revisions))
    store = PixelStore(PREPARED)
    predictions = mean_of_two_networks(folds)
    images_of(predictions, store)
    found = doubtful_labels(predictions)
    lesions = predictions.table["lesion_id"].nunique()
    with replacing(args.output) as folder:
        folder.mkdir()
        write_csv(folder / "labels.csv", found)
        write_label_page(folder / "labels.html", found.head(args.most), store, lesions)
    print(
        f"{len(found)} of {lesions} lesions are doubtful; {args.output / 'labels.csv'} lists them, "
        f"{args.output / 'labels.html'} shows {min(len(found), args.most)}"
    )
