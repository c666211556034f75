"""Image files, loose or in zip archives: found by image id, checked and decoded."""

import io
import lzma
import struct
import threading
import warnings
import zipfile
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from stages.errors import printable

EXTENSIONS = (".jpg", ".jpeg", ".png")
MIN_SIDE = 16  # pixels; anything smaller is a thumbnail of an icon
MAX_PIXELS = 50_000_000  # a dermatoscope's camera has fewer; a decompression bomb has more
MAX_BYTES = 100_000_000
MAX_SCANS = 500  # of a progressive JPEG, which have about 10; each goes over all pixels and may take 75 bytes

# What zipfile raises on damaged archives; the last three on members that are encrypted or packed in another way.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    MemoryError,
    RuntimeError,
    NotImplementedError,
)

# Pillow warns of small faults that it mends, from every thread and without the file's name.
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


def find_images(data_dir: Path) -> tuple[dict[str, ImageFile], list[str]]:
    """Find the JPEG and PNG files below `data_dir` and in the zip archives directly in it.

    Where an archive was unpacked beside itself, the loose file is taken.

    Returns:
        The files by image id (their name without ending), and one line for each problem.
    """
    images: dict[str, ImageFile] = {}
    problems = []
    for path in sorted(data_dir.rglob("*")):
        if is_image(path.name) and path.is_file():
            _add(ImageFile(path), path.stem, images, problems)
    loose = set(images)
    for path in sorted(data_dir.glob("*.zip")):
        try:
            members = images_in(path)
        except ImageProblem as problem:
            problems.append(f"{ImageFile(path)}: {problem}; download it again")
            continue
        for member in members:
            stem = PurePosixPath(member).stem
            if stem not in loose:
                _add(ImageFile(path, member), stem, images, problems)
    return images, problems


def _add(file: ImageFile, image_id: str, images: dict[str, ImageFile], problems: list[str]) -> None:
    if image_id in images:
        problems.append(f"{file}: the same image id as {images[image_id]}; keep one of them")
    images.setdefault(image_id, file)


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image: a JPEG or PNG file that is not hidden."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def images_in(path: Path) -> list[str]:
    """The members of a zip archive that are images, sorted, but not what macOS adds.

    Raises:
        ImageProblem: the archive cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = sorted(archive.namelist())
    except ZIP_ERRORS as error:
        raise ImageProblem(f"not a readable zip archive ({error})") from None
    names = ((member, PurePosixPath(member)) for member in members if not member.endswith("/"))
    return [member for member, name in names if is_image(name.name) and "__MACOSX" not in name.parts]


class ImageReader:
    """Reads image files as bytes, from several threads; archives stay open until it is closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._archives: dict[Path, zipfile.ZipFile] = {}
        self._files = ExitStack()

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
        except ZIP_ERRORS as error:
            raise ImageProblem(f"cannot be {'read' if file.member is None else 'unpacked'} ({error})") from None

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


def decode_square(data: bytes, size: int) -> np.ndarray:
    """Decode an image, turn it upright, and squeeze it into a square.

    Squeezed, not cropped: the border of a large lesion, which is where its diagnosis shows, lies outside the square.
    On the validation fold of HAM10000 (144 px, 7 classes) cropping raised the loss from 0.520 to 0.543 nats.

    Of an animation it is the first picture; transparent pixels have the colour that the file gives them; of 16 bits a
    colour the upper 8 are kept.

    Args:
        data: the bytes of a JPEG or PNG file.
        size: pixels of a side of the result.

    Returns:
        uint8, shape (size, size, 3), RGB.

    Raises:
        ImageProblem: not an image, truncated, or of an absurd size.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
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
            if image.mode == "I;16":  # which Pillow would not scale but cut: all above 255 would be white
                upright = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            else:
                upright = image.convert("RGB")
    except UnidentifiedImageError:
        raise ImageProblem("is not a JPEG or PNG image") from None
    except Image.DecompressionBombError as error:
        raise ImageProblem(f"is of an absurd size ({error})") from None
    # What Pillow raises on damaged files; the last four on damaged EXIF data.
    except (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise ImageProblem(f"is truncated or damaged ({error})") from None
    return np.asarray(upright.resize((size, size), Image.Resampling.BICUBIC))
