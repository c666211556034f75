"""Hostile and broken input: a corpus of images and archives, and ways to spoil sound files of every kind.

All of it is made from a random number generator that the caller seeds.
"""

import csv
import io
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import load, save

from benchmarks.plain import HAM10000, PLAIN
from stages.classifier.calibration import CALIBRATION, Calibration, load_calibration, save_calibration
from stages.classifier.description import DESCRIPTION, read_description
from stages.classifier.networks import create_network
from stages.classifier.weights import WEIGHTS, load_model
from stages.config import PARAMS, load_config
from stages.dataset.folds import read_split
from stages.dataset.images import ImageProblem, ImageReader, decode_square, find_images
from stages.dataset.loaders import SplitImages
from stages.dataset.metadata import read_metadata
from stages.dataset.pixels import MANIFEST, PixelStore, shard_path
from stages.dataset.taxonomy import BENIGN_OR_MALIGNANT
from stages.errors import InputError
from stages.evaluate import read_audit
from stages.evaluation.cases import CASES, HEATMAPS, read_cases, write_cases
from stages.evaluation.details import read_details
from stages.evaluation.history import read_history
from stages.evaluation.predictions import predictions_table, read_predictions
from stages.evaluation.subgroups import subgroup_table
from stages.figures.calibration import reliability_table
from stages.figures.model_card import write_model_card
from stages.figures.report import write_report
from stages.figures.subgroups import flat_subgroups
from stages.files import (
    AUGMENTED,
    DETAILS,
    GRADCAM,
    MODELS,
    PREDICTIONS,
    PREPARED,
    SPLIT,
    SPLIT_METRICS,
    TRAINING_METRICS,
    write_csv,
    write_json,
)
from stages.plot import read_examples
from stages.training.checkpoints import CHECKPOINT, KEYS, Checkpoints
from tests.figures.findings import details_of

REPOSITORY = Path(__file__).parents[1]
RED, BLUE = (255, 0, 0), (0, 0, 255)
SIZE = 16  # pixels of a side of prepared images
LONGEST_MESSAGE = 250_000  # characters: 200 problems of 1,000, and their folder

FORMULA = "=cmd|' /C calc'!A0"
SCRIPT = "<script>alert(1)</script>"
MARKDOWN = "a|b`c`*d*[e](f)\n# g"
DEEP = "a nesting so deep that no parser follows it"  # stands for one, which could not be written by itself
# fmt: off
TEXTS = ["", " ", "0", "-1", "nan", "inf", "1e999", "1_0", "٣", FORMULA, SCRIPT, MARKDOWN, "../../x", "/etc/passwd"]
TEXTS += ['"', "\0", "\x1b[2J", "\u2028", "\N{GRINNING FACE}", "é" * 300, "x" * 200_000, "True", "None", "9" * 400]
VALUES = [None, True, False, 0, 1, -1, 2**31, 2**63, 10**400, 0.5, 1e-300, -1e308, math.nan, math.inf, -math.inf]
VALUES += [[], {}, [[]], [None], {"": 0}, DEEP, *TEXTS]
YAML = [
    "!!python/object/apply:os.system [touch hostile]", "!!python/name:os.system", "!!int x", "!!float x", "!!bool x",
    "!!timestamp x", "2020-99-99", "!!binary x", "!!set {a, b}", "!!omap [1]", "*a", "&a [*a]", "&a {b: *a}", "<<: 1",
    "{<<: [1]}", "? [a]", "{[1]: 2}", "{{a: b}: c}", "|", ">", "%", "@", "`", "[", "{", "]", "'", '"\\ud800"', '"\\0"',
    '"a\\nb"', '"\\e[2J"', "\t", "!", "&", "=", "~", "yes", "0o9", ".nan", ".inf", "1e400", "\ufeff", "0x" + "f" * 400,
    "9" * 5000, "[" * 500, "- " * 500,
]
# fmt: on


class Example(NamedTuple):
    """An image file.

    Attributes:
        name: of the file.
        data: its bytes.
        readable: whether it is an image that can be used: red on the left, blue on the right, where it has colours.
    """

    name: str
    data: bytes
    readable: bool


def halves(mode: str = "RGB", size: tuple[int, int] = (48, 32)) -> Image.Image:
    """An image that is red on the left and blue on the right, or as bright as these."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image.convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, bits: int, colours: int, rows: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG file that says of itself what it is told to.

    Args:
        width: in pixels.
        height: likewise.
        bits: of a sample.
        colours: the format's colour type: 0 grey, 2 RGB, 4 grey and alpha, 6 RGB and alpha.
        rows: each with the byte of its filter before it; packed here.
        more: chunks before the pixels, name and content.
    """

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def deep_png(colours: int) -> bytes:
    """The halves, or as bright as these, in 16 bits a sample."""
    red, blue = {0: ([76 * 257], [29 * 257]), 2: ([65535, 0, 0], [0, 0, 65535])}[colours & 2]
    alpha = [65535] if colours & 4 else []
    row = b"\0" + b"".join(struct.pack(f">{len(left)}H", *left) * 24 for left in (red + alpha, blue + alpha))
    return png(48, 32, 16, colours, row * 32)


def rotated(orientation: int, kind: str) -> bytes:
    """The halves as a camera stores them that was held another way, which its EXIF data tells."""
    turn = Image.Transpose
    turns = [turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM, turn.TRANSPOSE, turn.ROTATE_90]
    turns += [turn.TRANSVERSE, turn.ROTATE_270]
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(halves().transpose(turns[orientation - 2]), kind, exif=exif)


def many_scans(count: int) -> bytes:
    """A progressive JPEG file that goes over its pixels again and again: large in time, not in bytes."""
    data = encoded(halves("L"), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + data[-2:]


def images() -> Iterator[Example]:
    """Image files of every kind that people have, and of those that only attackers have."""
    others = {"save_all": True, "append_images": [Image.new("RGB", (48, 32), "green")] * 2}
    for kind in ("BMP", "TIFF", "WEBP"):
        whole = encoded(halves(), kind)
        yield Example(f"{kind}.jpg", whole, True)
        for part in (10, len(whole) // 3, len(whole) // 2):
            yield Example(f"{kind}-first-{part}-bytes.{kind.lower()}", whole[:part], False)
    for kind, ending in (("JPEG", "jpg"), ("PNG", "png")):
        for mode in ("L", "RGB", "CMYK") if kind == "JPEG" else ("L", "LA", "P", "RGB", "RGBA"):
            yield Example(f"{kind}-{mode}.{ending}", encoded(halves(mode), kind), True)
        for orientation in range(2, 9):
            yield Example(f"{kind}-turned-{orientation}.{ending}", rotated(orientation, kind), True)
        whole = encoded(Image.effect_noise((80, 60), 90).convert("RGB"), kind)
        for part in (0, 1, 10, len(whole) // 3, len(whole) // 2, len(whole) * 3 // 4):
            yield Example(f"{kind}-first-{part}-bytes.{ending}", whole[:part], False)
    for colours in (0, 2, 4, 6):
        yield Example(f"16-bit-{colours}.png", deep_png(colours), True)
    transparent = halves("RGBA")
    transparent.putalpha(0)
    yield Example("transparent.png", encoded(transparent), True)
    yield Example("progressive.jpg", encoded(halves(), "JPEG", progressive=True), True)
    yield Example("many-scans.jpg", many_scans(2000), False)
    yield Example("animated.png", encoded(halves(), "PNG", **others), True)
    yield Example("several.jpg", encoded(halves(), "MPO", **others), True)
    yield Example("long.png", encoded(halves(size=(5000, 16))), True)
    for kind in ("GIF", "ICO", "PPM", "EPS"):
        yield Example(f"{kind}.jpg", encoded(halves(), kind), False)
    yield Example("1x1.png", encoded(Image.new("RGB", (1, 1))), False)
    yield Example("15x100.jpg", encoded(Image.new("RGB", (15, 100)), "JPEG"), False)
    for side in (8_000, 100_000, 2**31 - 1):
        yield Example(f"bomb-{side}.png", png(side, side, 8, 2, bytes(1000)), False)
    packed = zlib.compress(bytes(80_000_000), 9)
    yield Example("bomb-text.png", png(48, 32, 8, 2, b"", (b"zTXt", b"a\0\0" + packed)), False)
    yield Example("bomb-profile.png", png(48, 32, 8, 2, b"", (b"iCCP", b"a\0\0" + packed)), False)
    yield Example("page.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", False)


def has_halves(pixels: np.ndarray) -> bool:
    """Whether prepared pixels are red on the left and blue on the right, or as bright as these."""
    left, right = pixels[:, : SIZE // 4].mean((0, 1)), pixels[:, -SIZE // 4 :].mean((0, 1))
    expected = ((76, 76, 76), (29, 29, 29)) if np.ptp(left) < 3 else (RED, BLUE)
    return bool(np.abs(left - expected[0]).max() < 12 and np.abs(right - expected[1]).max() < 12)


def archives() -> Iterator[tuple[str, bytes]]:
    """Zip archives that want to write elsewhere, to fill the memory, or that are none."""
    sound = encoded(halves())
    for packing in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        names = ("../../a.png", "/tmp/b.png", "..\\..\\c.png", "C:\\d.png", "e/../../f.png", f"{FORMULA[1:4]}.png")
        yield f"paths-{packing}", zipped(dict.fromkeys(names, sound), packing)
        yield f"lying-{packing}", lying_zip(packing)
    yield "empty", zipped({})
    yield "twice", zipped([("a.png", sound), ("a.png", b"other")])
    yield "nested", zipped({"a.zip": zipped({"a.png": sound}), "b.png": zipped({"a.png": sound})})
    yield "folder", zipped({"a.png/": b""})
    yield "names", zipped({"\x1b[2J.png": sound, "a\nb.png": sound, "\N{GRINNING FACE}.png": sound, ".png": sound})
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    yield "link", zipped([(link, b"/etc/passwd")])
    encrypted = bytearray(zipped({"a.png": sound}))
    encrypted[6] = encrypted[encrypted.index(b"PK\x01\x02") + 8] = 1
    yield "encrypted", bytes(encrypted)
    yield "no-zip", b"PK\x03\x04"
    yield "nothing", b""


def zipped(members: dict[str, bytes] | list[tuple], packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packing) as archive:
        for name, content in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, content)
    return file.getvalue()


def lying_zip(packing: int, size: int = 20_000_000, claimed: int = 1000) -> bytes:
    """An archive whose member claims fewer bytes than it has."""
    data = bytearray(zipped({"a.jpg": bytes(size)}, packing))
    for place in (22, data.index(b"PK\x01\x02") + 24):
        data[place : place + 4] = struct.pack("<I", claimed)
    return bytes(data)


# What spoils a file of some kind: from its bytes and random numbers to other bytes.
Spoiler = Callable[[bytes, Random], bytes]


def damaged(data: bytes, random: Random) -> bytes:
    """Bytes as a bad disk, a broken download or an attacker leave them: some replaced, inserted or lost."""
    damaged = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        # Headers break more than what they describe.
        place = random.randrange(min(len(damaged), random.choice((16, 128, len(damaged)))) or 1)
        number = struct.pack("<Q", random.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)))
        new = random.choice((random.randbytes(1), b"\0", b"\xff", number, damaged[:64], b""))
        damaged[place : place + random.choice((0, len(new), len(new), 8, 100, len(damaged)))] = new
    return bytes(damaged)


def altered_json(data: bytes, random: Random) -> bytes:
    """JSON with another value, key or entry somewhere."""
    content = json.loads(data)
    for _ in range(random.choice((1, 1, 1, 3))):
        holder = random.choice(list(_holders(content)))
        value = random.choice(VALUES)
        if isinstance(holder, list):
            place = random.randrange(len(holder) + 1)
            holder[place : place + random.randrange(2)] = [value]
        elif holder and random.randrange(3):
            holder[random.choice(list(holder))] = value
        else:
            holder[random.choice(TEXTS)] = holder.pop(random.choice(list(holder)), 0) if holder else value
    if random.randrange(20) == 0:
        content = random.choice(VALUES)
    return json.dumps(content).replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000).encode()


def _holders(content: object) -> Iterator[dict | list]:
    if isinstance(content, dict | list):
        yield content
        for value in content.values() if isinstance(content, dict) else content:
            yield from _holders(value)


def altered_table(data: bytes, random: Random) -> bytes:
    """CSV with other cells, rows, columns, or another encoding."""
    delimiter = "\t" if b"\t" in data else ","
    rows = list(csv.reader(io.StringIO(data.decode(), newline=""), delimiter=delimiter))
    for _ in range(random.choice((1, 1, 2, 4))):
        row, column = random.randrange(len(rows)), random.randrange(len(rows[0]))
        match random.randrange(8):
            case 0 | 1 | 2 | 3:
                rows[row][column % len(rows[row])] = random.choice([*TEXTS, *rows[0]])
            case 4:
                del rows[row][column % len(rows[row]) :]
                rows[row].append("")
            case 5:
                rows.insert(row, list(rows[row]))
            case 6:
                del rows[1 + row :]
            case 7:
                rows[1:] = random.sample(rows[1:], len(rows) - 1)
    text = io.StringIO()
    quoting = random.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    csv.writer(text, delimiter=delimiter, lineterminator=random.choice(("\n", "\r\n")), quoting=quoting).writerows(rows)
    encoding = random.choice(("utf-8",) * 8 + ("utf-8-sig", "utf-16", "latin-1"))
    return text.getvalue().encode(encoding, errors="replace")


def altered_yaml(data: bytes, random: Random) -> bytes:
    """YAML with another value, a key more or less, or aliases that stand for endless text."""
    lines = data.decode().splitlines()
    place = random.choice([number for number, line in enumerate(lines) if line.startswith("  ")])
    key, _, _ = lines[place].partition(":")
    value = random.choice([*YAML, *map(json.dumps, TEXTS)])
    aliases = [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9) if n else 'laugh'}]" for n in range(10)]
    new, before = random.choice(
        (([lines[place]] * 2, []), ([], []), ([lines[place], f"  {value}: 1"], []), ([f"{key}: *x9"], aliases))
        + (([f"{key}: {value}"], []),) * 3
    )
    return "\n".join([*before, *lines[:place], *new, *lines[place + 1 :]]).encode(errors="surrogatepass")


def altered_array(data: bytes, random: Random) -> bytes:
    """A .npy file of another shape, type or order, or with a header that lies."""
    array = np.load(io.BytesIO(data))
    file = io.BytesIO()
    match random.randrange(6):
        case 0:
            array = array.astype(random.choice((np.float64, np.int16, bool, "U3", "S2", complex, "V4", "M8[s]")))
        case 1:
            array = random.choice((np.asfortranarray(array), np.array([None, {}], dtype=object)))
        case 2 | 3:
            shapes = (
                array[..., :-1],
                array[:-1],
                array.ravel(),
                array[None],
                array[:0],
                np.zeros(()),
                array[..., None],
            )
            array = random.choice(shapes)
        case 4:
            np.savez(file, array)
            return file.getvalue()
        case 5:
            sizes = (-1, 0, 2**31, 2**62, 2**63, 10**30, 10**400, True, "x", 1.5, None, *array.shape)
            shape = tuple(random.choice(sizes) for _ in range(random.randrange(6)))
            kinds = ("|u1", "|O", "<U99999999", "|V0", [("a", "|u1")], {"a": 1}, "x", "")
            header = {"descr": random.choice(kinds), "fortran_order": random.choice((False, True, 2)), "shape": shape}
            text = random.choice((str(header), str(header)[:-3], "[" * 500, "{[]: 1}", "__import__('os')", "(1L,)"))
            return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n" + array.tobytes()
    np.save(file, array)
    return file.getvalue()


def altered_tensors(data: bytes, random: Random) -> bytes:
    """A safetensors file with other names, shapes, types or numbers, or with a header that lies."""
    if random.randrange(3) == 0:
        length = struct.unpack("<Q", data[:8])[0]
        header = altered_json(data[8 : 8 + length], random)
        claimed = random.choice((len(header), len(header) + 8, 2**31, 2**63, 2**64 - 1, 0))
        return struct.pack("<Q", claimed) + header + data[8 + length :]
    tensors = load(data)
    name = random.choice(sorted(tensors))
    tensor = tensors.pop(name)
    kinds = (torch.float16, torch.bfloat16, torch.int32, torch.bool, torch.float64)
    others = (tensor.to(random.choice(kinds)), tensor.reshape(-1)[: random.randrange(1, 9)].clone())
    others += (torch.full(tensor.shape, random.choice((math.nan, math.inf, 1e38, 0.0))),)
    match random.randrange(4):
        case 0:
            tensors[random.choice(TEXTS)] = tensor
        case 1 | 2:
            tensors[name] = random.choice(others)
    return save(tensors)


def altered_checkpoint(data: bytes, random: Random) -> bytes:
    """A checkpoint that lacks something, or holds something else."""
    state = torch.load(io.BytesIO(data), weights_only=True)
    del state[random.choice(sorted(state))]
    file = io.BytesIO()
    torch.save(random.choice((state, state | {"metrics": "text"}, None, [], torch.zeros(3), "text")), file)
    return file.getvalue()


class Target(NamedTuple):
    """A file that somebody reads.

    Attributes:
        path: in the folder that `lay_out` fills.
        spoilers: what is done to it.
        read: reads it, as the project's code does, and uses what it holds.
    """

    path: Path
    spoilers: tuple[Spoiler, ...]
    read: Callable[[Path], object]


def lay_out(folder: Path) -> None:
    """Add to a folder that holds what `prepare`, `split` and `train` write a sound file of each other kind."""
    dataset = folder / "dataset"
    dataset.mkdir()
    manifest = PixelStore(folder / PREPARED).manifest
    manifest.drop(columns=["shard", "row"]).to_csv(dataset / "HAM10000_metadata.csv", index=False)
    (folder / "archives").mkdir()
    (folder / "archives/images.zip").write_bytes(zipped({f"{n}/naïve{n}.png": encoded(halves()) for n in range(3)}))
    (folder / "photo.jpg").write_bytes(rotated(6, "JPEG"))
    (folder / "photo.png").write_bytes(rotated(6, "PNG"))
    (folder / PARAMS).write_bytes((REPOSITORY / PARAMS).read_bytes())
    save_calibration(Calibration(False, 1.0, 0.4, 0.9, 0.5), folder / MODELS)
    random = np.random.default_rng(0)
    split = read_split(folder / SPLIT, manifest)
    tables = []
    for name in ("val", "test"):
        images = manifest[split["split"] == name]
        labels = ["malignant" if HAM10000[dx].malignant else "benign" for dx in images["dx"]]
        chance = random.uniform(0.01, 0.99, len(images))
        tables.append(
            predictions_table(images, name, labels, np.stack([1 - chance, chance], axis=1), BENIGN_OR_MALIGNANT)
        )
    write_csv(folder / PREDICTIONS, pd.concat(tables))
    write_json(folder / DETAILS, details_of(2))
    cases = pd.DataFrame({"case": ["true positive", "false negative"], "image_id": tables[1]["image_id"].iloc[:2]})
    write_cases(folder / GRADCAM, cases, random.integers(0, 256, (2, SIZE, SIZE), np.uint8))
    (folder / "checkpoint").mkdir()
    torch.save(dict.fromkeys(KEYS, 0) | {"module": {"a": torch.zeros(3)}}, folder / "checkpoint" / CHECKPOINT)


def _decode(path: Path) -> None:
    assert decode_square(path.read_bytes(), SIZE).shape == (SIZE, SIZE, 3)


def _read_archive(folder: Path) -> None:
    files, problems, _ = find_images(folder / "archives")
    with ImageReader() as reader:
        for file in files:
            decode_square(reader.read(file), SIZE)
    if problems:
        raise InputError("\n".join(problems))


def _read_metadata(folder: Path) -> None:
    table, problems, _ = read_metadata(folder / "dataset", HAM10000)
    assert table["dx"].isin(list(HAM10000)).all()
    assert (table["age"].isna() | table["age"].between(0, 120)).all()
    assert not table["image_id"].str.contains(r"[^A-Za-z0-9_.-]|^\W").any()
    if problems:
        raise InputError(f"{folder / 'dataset'}: " + "\n".join(problems)[: LONGEST_MESSAGE - 200])


def _read_pixels(folder: Path) -> None:
    store = PixelStore(folder / PREPARED)
    pixels = store.read(np.arange(len(store.manifest)))
    assert np.array_equal(pixels, np.load(shard_path(folder / PREPARED, 0)))
    subgroup_table(store.manifest)
    if len(store.manifest) == 70:
        SplitImages(store, "test", folder / SPLIT, 7)


def _read_split(folder: Path) -> None:
    manifest = PixelStore(folder / PREPARED).manifest
    assert list(read_split(folder / SPLIT, manifest)["image_id"]) == list(manifest["image_id"])


def _read_predictions(folder: Path) -> None:
    test = read_predictions(folder / PREDICTIONS, None).of("test")
    assert ((test.malignant_probability >= 0) & (test.malignant_probability <= 1)).all()
    assert len(test.labels) == len(test.predicted) == len(test.lesions) > 0


def _read_model(folder: Path) -> None:
    network, description = load_model(folder / MODELS)
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, SIZE, SIZE)).shape == (1, len(description.classes))


def _read_start(folder: Path) -> None:
    weights = str(folder / MODELS / WEIGHTS)
    create_network(replace(PLAIN.model, name="baseline_cnn", variant=None, pretrained=False, weights=weights), SIZE)


def _read_details(folder: Path) -> None:
    details = read_details(folder / DETAILS)
    manifest = PixelStore(folder / PREPARED).manifest
    write_report(folder / "report.html", details, folder / "no pictures", manifest, {})
    reliability_table(details)
    flat_subgroups(details)
    description = asdict(read_description(folder / MODELS / DESCRIPTION))
    split = read_split(folder / SPLIT, manifest)
    write_model_card(folder / "card.md", details, description, folder / MODELS / WEIGHTS, PLAIN, manifest, split)
    assert not any(SCRIPT in (folder / name).read_text(encoding="utf-8") for name in ("report.html", "card.md"))


CURVE = TRAINING_METRICS / "plots" / "metrics"
TABLE, JSON = (damaged, altered_table, altered_table), (damaged, altered_json, altered_json, altered_json)
ARRAY, TENSORS = (damaged, altered_array, altered_array), (damaged, altered_tensors, altered_tensors)
TARGETS = {
    "JPEG": Target(Path("photo.jpg"), (damaged,), lambda folder: _decode(folder / "photo.jpg")),
    "PNG": Target(Path("photo.png"), (damaged,), lambda folder: _decode(folder / "photo.png")),
    "zip archive": Target(Path("archives/images.zip"), (damaged,), _read_archive),
    "metadata table": Target(Path("dataset/HAM10000_metadata.csv"), TABLE, _read_metadata),
    "params.yaml": Target(PARAMS, (damaged, altered_yaml, altered_yaml), lambda folder: load_config(folder / PARAMS)),
    "manifest.csv": Target(PREPARED / MANIFEST, TABLE, _read_pixels),
    "shard of pixels": Target(shard_path(PREPARED, 0), ARRAY, _read_pixels),
    "split.csv": Target(SPLIT, TABLE, _read_split),
    "split.json": Target(SPLIT_METRICS, JSON, lambda folder: read_audit(folder / SPLIT_METRICS)),
    "predictions.csv": Target(PREDICTIONS, TABLE, _read_predictions),
    "model.json": Target(MODELS / DESCRIPTION, JSON, _read_model),
    "model.safetensors": Target(MODELS / WEIGHTS, TENSORS, _read_model),
    "model.weights": Target(MODELS / WEIGHTS, TENSORS, _read_start),
    "calibration.json": Target(MODELS / CALIBRATION, JSON, lambda folder: load_calibration(folder / MODELS)),
    "checkpoint": Target(
        Path("checkpoint") / CHECKPOINT,
        (damaged, altered_checkpoint),
        lambda folder: Checkpoints(folder / "checkpoint", minutes=1).load(),
    ),
    "details.json": Target(DETAILS, JSON, _read_details),
    "loss.tsv": Target(CURVE / "train/loss.tsv", TABLE, lambda folder: read_history(folder / TRAINING_METRICS)),
    "augmented.npy": Target(AUGMENTED, ARRAY, lambda folder: read_examples(folder / AUGMENTED)),
    "cases.csv": Target(GRADCAM / CASES, TABLE, lambda folder: read_cases(folder / GRADCAM)),
    "heatmaps.npy": Target(GRADCAM / HEATMAPS, ARRAY, lambda folder: read_cases(folder / GRADCAM)),
}


def attempt(target: Target, folder: Path, random: Random) -> str | None:
    """Spoil the target's file in a folder of `lay_out`, read it, and put it back.

    Returns:
        The message if it was refused; None if it was read.

    Raises:
        Exception: neither the one nor the other.
    """
    path = folder / target.path
    sound = path.read_bytes()
    path.write_bytes(random.choice(target.spoilers)(sound, random))
    try:
        target.read(folder)
    except (InputError, ImageProblem) as refusal:
        message = str(refusal)
        assert message, "a refusal must say why"
        assert len(message) <= LONGEST_MESSAGE, f"a message of {len(message)} characters"
        assert "\x1b" not in message, "a message that moves the cursor"
        return message
    finally:
        path.write_bytes(sound)
    return None
