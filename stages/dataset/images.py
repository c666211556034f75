"""Image files, loose or in zip archives: found by image id, checked and decoded."""

import io
import os
import threading
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from stages.errors import printable

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
KINDS = "JPEG, PNG, BMP, TIFF or WebP"
TABLES = (".csv", ".tab", ".tsv")
MOST_NAMED = 5  # files that are passed over
MIN_SIDE = 16  # pixels; anything smaller is a thumbnail of an icon
MAX_PIXELS = 50_000_000  # a dermatoscope's camera has fewer; a decompression bomb has more
MAX_BYTES = 100_000_000
MAX_SCANS = 500  # of a progressive JPEG, which have about 10; each goes over all pixels and may take 75 bytes

# Pillow warns about small faults that it repairs, from every thread and without the file's name.
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageProblem(Exception):
    """Why a file is not an image that can be used."""


@dataclass(frozen=True)
class ImageFile:
    """Where one image is: a file, or a member of a zip archive."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return printable(self.path if self.member is None else f"{self.path}:{self.member}")

    @property
    def name(self) -> str:
        """Without the folders."""
        return _parts(self.member)[-1] if self.member else self.path.name

    @property
    def image_id(self) -> str:
        """The name without its ending."""
        return PurePosixPath(self.name).stem


class Found(NamedTuple):
    """What a path stands for.

    Attributes:
        images: those in archives last, in an order that depends on the names alone.
        problems: one line for each folder or archive that cannot be read.
        passed_over: the files and members that are neither images nor tables.
    """

    images: list[ImageFile]
    problems: list[str]
    passed_over: list[str]


def find_images(path: Path) -> Found:
    """Find the images that a path stands for: the one way in which all commands and stages do.

    A folder stands for the images below it and in the zip archives below it; what is hidden is left out, and links are
    followed, to each folder once. An archive stands for the images in it, any other file for itself.
    """
    found = Found([], [], [])
    paths = files_below(path, found.problems) if path.is_dir() else [path]
    files = [ImageFile(file) for file in paths if not _is_archive(file)]
    for archive in filter(_is_archive, paths):
        try:
            files += [ImageFile(archive, member) for member in _members(archive)]
        except ImageProblem as problem:
            found.problems.append(f"{ImageFile(archive)}: {problem}; download it again")
    for file in files:
        # A link that leads nowhere is an image that is missing; a socket or a pipe is none.
        is_file = file.member is not None or file.path.is_file() or file.path.is_symlink()
        if is_file and (is_image(file.name) or file == ImageFile(path)):
            found.images.append(file)
        elif PurePosixPath(file.name).suffix.lower() not in TABLES:
            found.passed_over.append(str(file))
    return found


def describe_passed_over(names: list[str]) -> list[str]:
    """A line that counts the files that are no images, by their endings, and names the first, if there are any."""
    if not names:
        return []
    endings = Counter(PurePosixPath(name).suffix.lower() or "without an ending" for name in names)
    counts = ", ".join(f"{count} {ending}" for ending, count in sorted(endings.items()))
    are = "file that is no image" if len(names) == 1 else "files that are no images"
    return [f"passed over {len(names)} {are} ({counts}): {name_first(names)}"]


def name_first(names: list[str]) -> str:
    """The first of many names, to be read."""
    return ", ".join(map(printable, names[:MOST_NAMED])) + (", …" if len(names) > MOST_NAMED else "")


def files_below(folder: Path, problems: list[str]) -> list[Path]:
    """What lies below a folder but folders, in an order that depends on the names alone; what is hidden is left out.

    Links are followed, to each folder once. A line for each folder that cannot be read is added to `problems`.
    """

    def report(error: OSError) -> None:
        problems.append(f"{error.filename}: cannot be read ({error.strerror})")

    found, visited = [], set()
    for parent, folders, names in os.walk(folder, onerror=report, followlinks=True):
        if (real := os.path.realpath(parent)) in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, name) for name in sorted(names) if not name.startswith(".")]
    return found


def by_image_id(files: list[ImageFile]) -> tuple[dict[str, ImageFile], list[str]]:
    """The images by their id, and a line for each that has the id of another.

    Where an archive was unpacked beside itself, the loose file is taken.
    """
    images: dict[str, ImageFile] = {}
    problems = []
    for file in sorted(files, key=lambda file: file.member is not None):
        first = images.setdefault(file.image_id, file)
        if first is not file and (first.member is None) == (file.member is None):
            problems.append(f"{file}: the same image id as {first}; keep one of them")
    return images, problems


def _is_archive(path: Path) -> bool:
    return path.suffix.lower() == ".zip"


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def _members(archive: Path) -> list[str]:
    """The files in a zip archive, sorted, but not what macOS adds."""
    try:
        with zipfile.ZipFile(archive) as content:
            members = sorted(content.namelist())
    except Exception as error:  # whatever Python has for bytes that are not an archive, or one that is encrypted
        raise ImageProblem(f"not a readable zip archive ({error})") from None
    parts = ((member, _parts(member)) for member in members if not member.endswith(("/", "\\")))
    return [member for member, parts in parts if "__MACOSX" not in parts and not parts[-1].startswith(".")]


def _parts(member: str) -> tuple[str, ...]:
    """The folders and the name of a member; programs of Windows write backslashes."""
    return PurePosixPath(member.replace("\\", "/")).parts


class ImageReader:
    """Reads image files as bytes, from several threads; archives stay open until it is closed.

    Args:
        files: whose archives are opened at once, so that processes that are forked have the lists of their members.
    """

    def __init__(self, files: Iterable[ImageFile] = ()) -> None:
        self._lock = threading.Lock()
        self._archives: dict[Path, zipfile.ZipFile] = {}
        self._files = ExitStack()
        for path in {file.path for file in files if file.member is not None}:
            with suppress(Exception):  # which `read` will tell
                self._archive(path)

    def __enter__(self) -> "ImageReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def read(self, file: ImageFile) -> bytes:
        """The bytes of `file`.

        Raises:
            ImageProblem: it cannot be read or is absurdly large.
        """
        try:
            if file.member is None:
                size, read = file.path.stat().st_size, file.path.read_bytes
            else:
                archive = self._archive(file.path)
                info = archive.getinfo(file.member)
                size, read = info.file_size, lambda: _unpack(archive, info)
            if size > MAX_BYTES:
                raise ImageProblem(f"{size} bytes; at most {MAX_BYTES} are accepted")
            return read()
        except ImageProblem:
            raise
        except Exception as error:  # as for `_members`
            raise ImageProblem(f"cannot be {'read' if file.member is None else 'unpacked'} ({error})") from None

    def reopen(self) -> None:
        """In a process that was forked: open them again, for the place in a file is one for all processes."""
        for path, archive in self._archives.items():
            archive.fp = self._files.enter_context(path.open("rb"))

    def _archive(self, path: Path) -> zipfile.ZipFile:
        # All threads share one: a list of members for each would take more memory and time the more cores there are.
        # They take turns at its lock only while they read compressed bytes.
        with self._lock:
            if path not in self._archives:
                # Given an open file, ZipFile does not close it by a count of its readers, which no lock protects.
                self._archives[path] = zipfile.ZipFile(self._files.enter_context(path.open("rb")))
            return self._archives[path]


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """The bytes of a member, and memory for not many more, whatever size it claims to have.

    zipfile cuts at the size that is claimed, but unpacks all that it has read before it does so: 600 bytes may be a
    gigabyte.
    """
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # whose unpacking has no such limit
        raise ImageProblem("is packed by another method than Deflate; make the archive again")
    with archive.open(info) as member:
        data = member.read(info.file_size)  # unpacks no more than it is asked for
        member.read(1)  # compares the checksum
        return data


def measure(data: bytes) -> tuple[int, int, int]:
    """Width and height in pixels of an image that `decode_square` takes, and the bytes of its file."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return *image.size, len(data)


def decode_square(data: bytes, size: int, detail: int | None = None) -> np.ndarray:
    """Decode an image, turn it upright, and resize it to a square, ignoring its aspect ratio.

    Not cropped: the border of a large lesion, which is where its diagnosis shows, lies outside the square.
    On the validation fold of HAM10000 (144 px, 7 classes) cropping raised the loss from 0.520 to 0.543 nats.

    Of an animation it is the first picture; transparent pixels have the colour that the file gives them; of 16 bits
    per colour the upper 8 are kept.

    Args:
        data: the bytes of an image file.
        size: pixels of a side of the result.
        detail: pixels of the shorter side to which a larger image is reduced first: what it shows beyond is lost.

    Returns:
        uint8, shape (size, size, 3), RGB.

    Raises:
        ImageProblem: not an image, truncated, or of an absurd size.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if min(width, height) < MIN_SIDE or width * height > MAX_PIXELS:
                raise ImageProblem(
                    f"is {width}×{height} pixels; accepted are sides from {MIN_SIDE} and at most {MAX_PIXELS} in all"
                )
            if image.info.get("progressive") and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
                raise ImageProblem(f"has {scans} scans; at most {MAX_SCANS} are accepted")
            # Lets the JPEG decoder skip detail that the resize would average away; never below the size asked for.
            image.draft("RGB", (size, size))
            ImageOps.exif_transpose(image, in_place=True)  # without a copy of those that are upright
            if image.mode.startswith("I;16"):  # which Pillow would not scale but cut: all above 255 would be white
                upright = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            else:
                upright = image.convert("RGB")
    except ImageProblem:
        raise
    except UnidentifiedImageError:
        raise ImageProblem(f"is not a {KINDS} image") from None
    except Image.DecompressionBombError as error:
        raise ImageProblem(f"is of an absurd size ({error})") from None
    except Exception as error:  # whatever Pillow has for damaged pixels and EXIF data
        raise ImageProblem(f"is truncated or damaged ({error})") from None
    if detail is not None and (scale := detail / min(upright.size)) < 1:
        width, height = upright.size
        upright = upright.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    return np.asarray(upright.resize((size, size), Image.Resampling.BICUBIC))
