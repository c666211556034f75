"""Predict: calibrated probabilities and the decision, malignant or benign, for image files, folders and zip archives.

  python -m stages predict lesion.jpg photos/ more.zip --output predictions.csv --gradcam heatmaps/

Prints a CSV line for each image; the decision is that at the model's threshold. Needs the folder of a trained model and
nothing else of the repository. A research tool, not a medical device.

Exit status: 0; 1 if an image could not be read (the others are predicted) or there was nothing to predict; 2 if an
option is wrong.
"""

import argparse
import os
import re
import stat
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from stages.command_line import new_file, new_parser, pair, print_text, whole_number, writing
from stages.errors import InputError, printable

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

    from stages.classifier.calibration import Calibration
    from stages.classifier.networks import Ensemble, NormalizedNetwork
    from stages.classifier.weights import ModelDescription
    from stages.dataset.encoding import MetadataEncoding
    from stages.dataset.images import ImageFile, ImageProblem

LARGEST_COUNT = 1024  # of images in a batch and of threads: more gain nothing and only fill the memory
NAME_BYTES = 200  # of an overlay's name: file systems allow 255, and its writer adds some
OVERLAY_SIDE, OVERLAY_TEXT = 320, 15  # pixels that an image in an overlay has at least, and of its text


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


def predict_images(
    files: list["ImageFile"],
    network: "NormalizedNetwork | Ensemble",
    description: "ModelDescription",
    calibration: "Calibration",
    device: "torch.device",
    batch_size: int,
    threads: int,
    overlays: dict["ImageFile", Path] | None = None,
    metadata: dict["ImageFile", "np.ndarray"] | None = None,
) -> tuple["pd.DataFrame", list[str]]:
    """Decode and predict images, a few batches of them in memory at a time.

    Args:
        files: the images.
        network: what `load_model` gives.
        description: what `load_model` gives.
        calibration: what `load_calibration` gives.
        device: where to compute.
        batch_size: images of one prediction step.
        threads: threads that decode, ahead of the network.
        overlays: folder for each image with its Grad-CAM heatmap over it; none by default.
        metadata: of each image the row of `MetadataEncoding.encode`; None: nothing is known.

    Returns:
        One row for each image that can be read, in the order of `files`: file, `probability_` of each class,
        malignant_probability, decision, of a model of diagnoses diagnosis and, with `overlays`, overlay; and one line
        for each other image.

    Raises:
        InputError: the network has no feature maps to explain, or an overlay cannot be written.
    """
    import numpy as np
    import pandas as pd
    import torch

    from stages.classifier.calibration import cost_matrix, decide
    from stages.classifier.inference import predict_calibrated
    from stages.evaluation.predictions import PREFIX, malignant_probability
    from stages.files import DECIMALS
    from stages.progress import progress_bar

    classes = description.told_apart
    tables, problems = [], []
    with progress_bar() as progress:
        task = progress.add_task("predicting", total=len(files))
        size = description.image_size, description.detail
        decoded = _decode_ahead(files, size, threads, ahead=max(batch_size, 2 * threads))
        while batch := list(islice(decoded, batch_size)):
            progress.advance(task, len(batch))
            readable = [(file, image) for file, image in batch if isinstance(image, np.ndarray)]
            problems += [f"{file}: {image}" for file, image in batch if not isinstance(image, np.ndarray)]
            if not readable:
                continue
            images = torch.from_numpy(np.stack([image for _, image in readable]))
            known = None if metadata is None else np.stack([metadata[file] for file, _ in readable])
            # Rounded as they will be written: the decision follows from the file's numbers.
            probabilities = predict_calibrated(network, [images], device, calibration, known).round(DECIMALS)
            malignant = malignant_probability(probabilities, classes)
            table = pd.DataFrame(probabilities, columns=pd.Index([PREFIX + name for name in classes.names]))
            table.insert(0, "file", [_cell(file) for file, _ in readable])
            table["malignant_probability"] = malignant
            table["decision"] = np.where(malignant >= calibration.threshold, "malignant", "benign")
            if classes.are_diagnoses:
                decided = decide(probabilities, cost_matrix(calibration.costs, len(classes.names)))
                table["diagnosis"] = [classes.names[number] for number in decided]
            if overlays is not None:
                from stages.classifier.gradcam import gradcam_heatmaps
                from stages.reporting import rounded_percent

                heatmaps = gradcam_heatmaps(network, images, classes, device, metadata=known)
                if heatmaps is None:
                    raise InputError(
                        f"--gradcam: {description.architecture} has no feature maps that are fine enough for "
                        "Grad-CAM; leave the option out"
                    )
                paths = [overlays[file] for file, _ in readable]
                called = f"called malignant from {rounded_percent(calibration.threshold)} on"
                texts = [f"P(malignant) {rounded_percent(probability)}, {called}" for probability in malignant]
                _draw_overlays(paths, images.numpy(), heatmaps, texts)
                table["overlay"] = [_cell(path) for path in paths]
            tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(), problems


def _decode_ahead(
    files: list["ImageFile"], size: tuple[int, int | None], threads: int, ahead: int
) -> Iterator[tuple["ImageFile", "np.ndarray | ImageProblem"]]:
    """The files with their pixels, or what is wrong with them, in order; at most `ahead` of them wait in memory."""
    from stages.dataset.images import ImageProblem, ImageReader, decode_square

    def decode(file: "ImageFile") -> "np.ndarray | ImageProblem":
        try:
            return decode_square(reader.read(file), *size)
        except ImageProblem as problem:
            return problem

    waiting = deque()
    with ImageReader() as reader, ThreadPoolExecutor(threads) as pool:
        for file in files:
            waiting.append((file, pool.submit(decode, file)))
            if len(waiting) > ahead:
                first, image = waiting.popleft()
                yield first, image.result()
        for first, image in waiting:
            yield first, image.result()


def _draw_overlays(paths: list[Path], images: "np.ndarray", heatmaps: "np.ndarray", texts: list[str]) -> None:
    """Each image beside itself with its heatmap, large enough to be looked at, below what was predicted."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    from stages.figures.overlay import overlay
    from stages.files import replacing

    times, font = -(-OVERLAY_SIDE // images.shape[1]), ImageFont.load_default(OVERLAY_TEXT)
    for path, image, heatmap, text in zip(paths, images, heatmaps, texts):
        large = image.repeat(times, axis=0).repeat(times, axis=1)
        pair = np.hstack([large, overlay(large, heatmap)])
        picture = Image.new("RGB", (pair.shape[1], pair.shape[0] + 3 * OVERLAY_TEXT), "white")
        picture.paste(Image.fromarray(pair), (0, 3 * OVERLAY_TEXT))
        cells = f"right: what speaks for malignancy, {len(heatmap)} × {len(heatmap)} cells"
        ImageDraw.Draw(picture).multiline_text((4, 2), f"{text}\n{cells}".replace("\xa0", " "), "black", font)
        with writing("--gradcam:", path), replacing(path) as partial:
            picture.save(partial, format="PNG")


def match_metadata(
    table: "pd.DataFrame", files: list["ImageFile"], encoding: "MetadataEncoding"
) -> tuple[dict["ImageFile", "np.ndarray"], list[str]]:
    """What a table says of the images, by their names without ending, as numbers for a network.

    Args:
        table: what `read_covariates` gives.
        files: the images.
        encoding: of the network.

    Returns:
        Of each image a row of `encoding`, and one line for each thing that the user should know.

    Raises:
        InputError: a row may be of several images.
    """
    from stages.dataset.encoding import COLUMNS, UNKNOWN

    ids, by_id = [file.image_id for file in files], {}
    for file in files:
        by_id.setdefault(file.image_id, []).append(str(file))
    if several := [" and ".join(by_id[name]) for name in table.index if len(by_id.get(name, [])) > 1]:
        raise InputError(f"--metadata: one row is of several images, {several[0]}; predict them apart, or rename one")
    told = table.reindex(ids).fillna(dict.fromkeys(COLUMNS[1:], UNKNOWN))
    idle, missing = len(set(table.index) - by_id.keys()), len(by_id.keys() - set(table.index))
    values = encoding.unheard_of(told)
    notes = [
        *([f"--metadata: {missing} of {len(files)} images have no row: nothing is known of them"] if missing else []),
        *([f"--metadata: {idle} row{'s are' if idle > 1 else ' is'} of no image here"] if idle else []),
        *([f"the model was trained on no {', '.join(values)}: taken as unknown"] if values else []),
    ]
    return dict(zip(files, encoding.encode(told))), notes


def overlay_paths(files: list["ImageFile"], folder: Path) -> dict["ImageFile", Path]:
    """Where in `folder` each image's overlay goes: under the name of its file, numbered where others have the same."""
    paths, taken = {}, set()
    for file in files:
        # Without what leads to another folder, or is special to a shell or a spreadsheet, on any platform.
        stem = re.sub(r"[^\w. ()-]", "_", file.image_id).encode()[:NAME_BYTES].decode(errors="ignore")
        name, number = stem, 2
        while name.casefold() in taken:  # macOS and Windows hold A.png and a.png for the same
            name, number = f"{stem}-{number}", number + 1
        taken.add(name.casefold())
        paths[file] = folder / f"{name}.png"
    return paths


def _cell(path: object) -> str:
    """A path as a cell of a table that no spreadsheet takes for a formula: `=a.jpg` is `./=a.jpg` as well."""
    text = printable(path)
    return f"./{text}" if text.startswith(("=", "+", "-", "@")) else text


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


def _parse(argv: list[str] | None) -> argparse.Namespace:
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
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the command line.

    Raises:
        InputError: an argument or the model is wrong, or images cannot be read; the others are then written.
    """
    args = _parse(argv)
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

        covariates = read_covariates(args.metadata, dict(args.columns))
    # These take seconds to import: a mistake above is reported at once.
    from stages.classifier.calibration import load_calibration, read_calibration
    from stages.classifier.hardware import set_up_device
    from stages.classifier.weights import load_model

    device = set_up_device(args.threads)
    network, description = load_model(args.models)
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
            f"predicted {len(table)} image{'s' * (len(table) != 1)}, {malignant} of them malignant "
            f"(a probability of at least {calibration.threshold})",
            file=sys.stderr,
        )
    if problems:
        count = "no image can" if table.empty else f"{len(problems)} file{'s' * (len(problems) != 1)} cannot"
        raise InputError(f"{count} be read:\n  " + "\n  ".join(map(printable, problems)))
