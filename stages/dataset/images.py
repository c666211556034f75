"""Image files, loose or in zip archives: found by image id, checked and decoded."""

import io
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

EXTENSIONS = (".jpg", ".jpeg", ".png")
MIN_SIDE = 16  # pixels; anything smaller is a thumbnail of an icon
MAX_PIXELS = 50_000_000  # a dermatoscope's camera has fewer; a decompression bomb has more
MAX_BYTES = 100_000_000

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
        return str(self.path) if self.member is None else f"{self.path}:{self.member}"


def find_images(data_dir: Path) -> tuple[dict[str, ImageFile], list[str]]:
    """Find the JPEG and PNG files below `data_dir` and in the zip archives directly in it.

    Where an archive was unpacked beside itself, the loose file is taken.

    Returns:
        The files by image id (their name without ending), and one line for each problem.
    """
    images: dict[str, ImageFile] = {}
    problems = []
    for path in sorted(data_dir.rglob("*")):
        if _is_image(path.name) and path.is_file():
            if path.stem in images:
                problems.append(f"{path}: the same image id as {images[path.stem]}; keep one of them")
            images.setdefault(path.stem, ImageFile(path))
    loose = set(images)
    for path in sorted(data_dir.glob("*.zip")):
        try:
            with zipfile.ZipFile(path) as archive:
                members = sorted(info.filename for info in archive.infolist() if not info.is_dir())
        except (zipfile.BadZipFile, OSError) as error:
            problems.append(f"{path}: not a readable zip archive ({error}); download it again")
            continue
        for member in members:
            name = PurePosixPath(member)
            if not _is_image(name.name) or "__MACOSX" in name.parts or name.stem in loose:
                continue
            if name.stem in images:
                problems.append(f"{path}:{member}: the same image id as {images[name.stem]}; keep one of them")
            images.setdefault(name.stem, ImageFile(path, member))
    return images, problems


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


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
                size, read = archive.getinfo(file.member).file_size, lambda: archive.read(file.member)
            if size > MAX_BYTES:
                raise ImageProblem(f"{size} bytes; at most {MAX_BYTES} are accepted")
            return read()
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ImageProblem(f"cannot be read ({error})") from None
        except (RuntimeError, NotImplementedError) as error:  # encrypted, or packed in a way Python does not know
            raise ImageProblem(f"cannot be unpacked ({error})") from None

    def _archive(self, path: Path) -> zipfile.ZipFile:
        # All threads share one: a list of members for each would take more memory and time the more cores there are.
        # They take turns at its lock only while they read compressed bytes.
        with self._lock:
            if path not in self._archives:
                # Given an open file, ZipFile does not close it by a count of its readers, which no lock protects.
                self._archives[path] = zipfile.ZipFile(self._files.enter_context(path.open("rb")))
            return self._archives[path]


def decode_square(data: bytes, size: int) -> np.ndarray:
    """Decode an image, turn it upright, and squeeze it into a square.

    Squeezed, not cropped: the border of a large lesion, which is where its diagnosis shows, lies outside the square.
    On the validation fold of HAM10000 (144 px, 7 classes) cropping raised the loss from 0.520 to 0.543 nats.

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
            # Lets the JPEG decoder skip detail that the resize would average away; never below the size asked for.
            image.draft("RGB", (size, size))
            ImageOps.exif_transpose(image, in_place=True)  # without a copy of those that are upright
            upright = image.convert("RGB")
    except UnidentifiedImageError:
        raise ImageProblem("is not a JPEG or PNG image") from None
    except Image.DecompressionBombError as error:
        raise ImageProblem(f"is of an absurd size ({error})") from None
    # What Pillow raises on damaged files; the last four on damaged EXIF data.
    except (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise ImageProblem(f"is truncated or damaged ({error})") from None
    return np.asarray(upright.resize((size, size), Image.Resampling.BICUBIC))
