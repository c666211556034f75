"""Predict: calibrated probabilities and the decision, malignant or benign, for image files, folders and zip archives.

  python -m stages predict lesion.jpg photos/ more.zip --output predictions.csv --gradcam overlays/

Prints a CSV line for each image: file; probability_ of each class; malignant_probability, the sum of those of the
malignant ones; decision, malignant where that is at or above the model's threshold; of a model of diagnoses diagnosis,
the most probable one or that of the lowest expected cost, which may disagree with the decision; with --gradcam overlay,
the picture. Needs the folder of a trained model and nothing else of the repository. A research tool, not a medical
device.

Exit status: 0; 1 if an image could not be read (the others are predicted) or there was nothing to predict; 2 if an
option is wrong.
"""

import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from stages.command_line import naming_options, new_file, new_parser, pair, print_text, whole_number, writing
from stages.errors import InputError, printable

if TYPE_CHECKING:
    import pandas as pd

    from stages.dataset.images import ImageFile

LARGEST_COUNT = 1024  # of images in a batch and of threads: more gain nothing and only fill the memory


def find_files(paths: list[Path]) -> tuple[list["ImageFile"], list[str], list[str]]:
    """Find the images that the command's arguments stand for, as of `find_images`; each of them once.

    Returns:
        The images, in the order of the arguments; one line for each folder or archive that cannot be read; and one on
        what was passed over.

    Raises:
        InputError: paths that do not exist or hold no image, each of them named.
    """
    from stages.dataset.images import KINDS, describe_passed_over, find_images

    found: dict[tuple[Path, str | None], ImageFile] = {}
    unreadable, mistakes, passed_over = [], [], []
    for path in paths:
        try:
            mode = path.stat().st_mode
        except OSError as error:
            mistakes.append(f"{path}: {error.strerror or error}")
            continue
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            mistakes.append(f"{path} is neither a file nor a folder")
            continue
        files, problems, others = find_images(path)
        unreadable += problems
        passed_over += others
        if not files and not problems:
            mistakes.append("; ".join([f"{path} holds no {KINDS} file", *describe_passed_over(others)]))
        # The folder's links only: two links to one file are two images, as in a workspace that DVC links to its cache.
        parents = {parent: parent.resolve() for parent in {file.path.parent for file in files}}
        for file in files:
            found.setdefault((parents[file.path.parent] / file.path.name, file.member), file)
    if mistakes:
        raise InputError("; ".join(mistakes) + "; name images, folders or zip archives of images")
    return list(found.values()), unreadable, describe_passed_over(passed_over)


def _problem_of_targets(output: Path | None, gradcam: Path | None, files: list["ImageFile"]) -> str | None:
    """Check for what would fail, or destroy something, after the work."""
    if output is not None:
        if not output.parent.is_dir():
            return f"--output {output}: the folder {output.parent} does not exist; make it first"
        if output.exists() and any(file.path.name == output.name and file.path.samefile(output) for file in files):
            return f"--output {output} is one of the images; name the CSV file to write"
        if not os.access(output.parent, os.W_OK):
            return f"--output {output}: the folder {output.parent} is not writable; name another one"
        if gradcam is not None and gradcam.resolve().is_relative_to(output.resolve()):
            return f"--output {output} would replace the folder of --gradcam {gradcam}; name another CSV file"
    if gradcam is not None and gradcam.exists():
        if not gradcam.is_dir():
            return f"--gradcam {gradcam} is not a folder; name one, which need not exist"
        if any(folder.samefile(gradcam) for folder in {file.path.parent for file in files if file.member is None}):
            return f"--gradcam {gradcam} holds images to predict, which overlays may replace; name another folder"
    return None


def _write(table: "pd.DataFrame", output: Path | None) -> None:
    from stages.files import DECIMALS, write_csv

    if output is None:
        return print_text(table.to_csv(index=False, float_format=f"%.{DECIMALS}f", lineterminator="\n"))
    with writing("--output", output):
        write_csv(output, table)


def main(argv: list[str] | None = None) -> None:
    """Run the command line.

    Raises:
        InputError: an argument or the model is wrong, or images cannot be read; the others are then written.
    """
    parser = new_parser("predict", __doc__)
    add = parser.add_argument
    help_images = "JPEG, PNG, BMP, TIFF or WebP file, folder or zip archive of them"
    add("images", nargs="+", type=Path, metavar="IMAGE_OR_FOLDER", help=help_images)
    add("--output", type=new_file, metavar="FILE.csv", help="file to write (default: standard output)")
    add("--gradcam", type=Path, metavar="DIR", help="folder for pictures with Grad-CAM heatmaps of malignancy")
    known = "table of age, sex and localization of the images, for a model that takes them (default: unknown)"
    add("--metadata", type=Path, metavar="TABLE.csv", help=known)
    named = "the table's name of each of our columns, as image_id=photo"
    add("--columns", metavar="OURS=YOURS", help=named, type=pair, nargs="+", default=[])
    add("--models", type=Path, metavar="DIR", default=Path("models"), help="folder of the model (default: models)")
    given = "calibration to use, as `validate --recalibrate` wrote it (default: the model's own)"
    add("--calibration", type=Path, metavar="FILE.json", help=given)
    count = whole_number(LARGEST_COUNT)
    add("--batch-size", type=count, metavar="N", default=64, help="images per prediction step (default: 64)")
    add("--threads", type=count, metavar="N", default=os.cpu_count(), help="threads (default: one per core)")
    args = parser.parse_args(argv)
    files, problems, notes = find_files(args.images)
    for note in notes:
        print(note, file=sys.stderr)
    if problem := _problem_of_targets(args.output, args.gradcam, files):
        raise InputError(problem)
    if not args.models.is_dir():
        raise InputError(f"--models {args.models} is not a folder; name the one that holds model.json")
    covariates = None
    if args.columns and args.metadata is None:
        raise InputError("--columns names those of --metadata's table; name that, too, or leave the option out")
    if args.metadata is not None:
        from stages.dataset.metadata import read_covariates

        with naming_options():
            covariates = read_covariates(args.metadata, dict(args.columns))
    # These take seconds to import: a mistake above is reported at once.
    from stages.classifier.calibration import load_calibration, read_calibration
    from stages.classifier.description import TRAINED_ON_SYNTHETIC
    from stages.classifier.hardware import set_up_device
    from stages.classifier.weights import load_model
    from stages.prediction import match_metadata, overlay_paths, predict_images

    device = set_up_device(args.threads)
    network, description = load_model(args.models)
    if description.synthetic:
        print(f"warning: {TRAINED_ON_SYNTHETIC}", file=sys.stderr)
    metadata = None
    if covariates is not None:
        if description.metadata is None:
            raise InputError(f"--metadata: the model in {args.models} takes the image alone; leave the option out")
        metadata, notes = match_metadata(covariates, files, description.metadata)
        for note in notes:
            print(printable(note), file=sys.stderr)
    elif description.metadata is not None:
        print("the model also takes age, sex and localization: name their table with --metadata", file=sys.stderr)
    if args.calibration is None:
        calibration = load_calibration(args.models)
    else:
        calibration = read_calibration(args.calibration, args.models)
        print(f"{args.calibration}: fitted on {calibration.fitted_on or 'validation images'}", file=sys.stderr)
    overlays = None if args.gradcam is None else overlay_paths(files, args.gradcam)
    table, unreadable = predict_images(
        files, network, description, calibration, device, args.batch_size, args.threads, overlays, metadata
    )
    problems += unreadable
    if not table.empty:
        _write(table, args.output)
        malignant = (table["decision"] == "malignant").sum()
        print(
            f"predicted {len(table)} image{'s' * (len(table) != 1)}, {malignant} of them called malignant "
            f"(a probability of at least {calibration.threshold})",
            file=sys.stderr,
        )
    if problems:
        count = "no image can" if table.empty else f"{len(problems)} file{'s' * (len(problems) != 1)} cannot"
        raise InputError(f"{count} be read:\n  " + "\n  ".join(map(printable, problems)))
