"""What a model says of image files: probabilities, decisions and heatmaps, a few batches in memory at a time."""

import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw, ImageFont

from stages.classifier.calibration import Calibration, cost_matrix, decide
from stages.classifier.description import TRAINED_ON_SYNTHETIC, ModelDescription
from stages.classifier.gradcam import gradcam_heatmaps
from stages.classifier.inference import predict_calibrated
from stages.classifier.networks import Ensemble, NormalizedNetwork
from stages.command_line import writing
from stages.dataset.encoding import COLUMNS, UNKNOWN, MetadataEncoding
from stages.dataset.images import ImageFile, ImageProblem, ImageReader, decode_square
from stages.errors import InputError, printable
from stages.evaluation.predictions import PREFIX, malignant_probability
from stages.files import DECIMALS, replacing
from stages.progress import progress_bar
from stages.reporting import number, rounded_percent

NAME_BYTES = 200  # of an overlay's name: file systems allow 255, and its writer adds some
OVERLAY_SIDE, OVERLAY_TEXT = 320, 15  # pixels that an image in an overlay has at least, and of its text


def predict_images(
    files: list[ImageFile],
    network: NormalizedNetwork | Ensemble,
    description: ModelDescription,
    calibration: Calibration,
    device: torch.device,
    batch_size: int,
    threads: int,
    overlays: dict[ImageFile, Path] | None = None,
    metadata: dict[ImageFile, np.ndarray] | None = None,
) -> tuple[pd.DataFrame, list[str]]:
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
                heatmaps = gradcam_heatmaps(network, images, classes, device, metadata=known)
                if heatmaps is None:
                    raise InputError(
                        f"--gradcam: {description.architecture} has no feature maps that are fine enough for "
                        "Grad-CAM; leave the option out"
                    )
                paths = [overlays[file] for file, _ in readable]
                warned = [f"warning: {TRAINED_ON_SYNTHETIC}"] * bool(description.synthetic)
                threshold = number(calibration.threshold)
                texts = [
                    [f"called {said}: P(malignant) {rounded_percent(probability)}, threshold {threshold}", *warned]
                    for said, probability in zip(table["decision"], malignant)
                ]
                _draw_overlays(paths, images.numpy(), heatmaps, texts)
                table["overlay"] = [_cell(path) for path in paths]
            tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(), problems


def _decode_ahead(
    files: list[ImageFile], size: tuple[int, int | None], threads: int, ahead: int
) -> Iterator[tuple[ImageFile, np.ndarray | ImageProblem]]:
    """The files with their pixels, or what is wrong with them, in order; at most `ahead` of them wait in memory."""

    def decode(file: ImageFile) -> np.ndarray | ImageProblem:
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


def _draw_overlays(paths: list[Path], images: np.ndarray, heatmaps: np.ndarray, texts: list[list[str]]) -> None:
    """Each image beside itself with its heatmap, large enough to be looked at, below lines on what was predicted."""
    from stages.figures.overlay import overlay  # and Matplotlib, which most predictions need not load

    times, font = -(-OVERLAY_SIDE // images.shape[1]), ImageFont.load_default(OVERLAY_TEXT)
    for path, image, heatmap, lines in zip(paths, images, heatmaps, texts):
        large = image.repeat(times, axis=0).repeat(times, axis=1)
        pair = np.hstack([large, overlay(large, heatmap)])
        lines = [*lines, f"right: what speaks for malignancy, {len(heatmap)} by {len(heatmap)} cells"]
        top = round(1.5 * OVERLAY_TEXT * len(lines))
        picture = Image.new("RGB", (pair.shape[1], top + pair.shape[0]), "white")
        picture.paste(Image.fromarray(pair), (0, top))
        ImageDraw.Draw(picture).multiline_text((4, 2), "\n".join(lines).replace("\xa0", " "), "black", font)
        with writing("--gradcam:", path), replacing(path) as partial:
            picture.save(partial, format="PNG")


def match_metadata(
    table: pd.DataFrame, files: list[ImageFile], encoding: MetadataEncoding
) -> tuple[dict[ImageFile, np.ndarray], list[str]]:
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


def overlay_paths(files: list[ImageFile], folder: Path) -> dict[ImageFile, Path]:
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
