"""HTTP downloads that go on where they stopped."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import requests
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from stages.errors import InputError

CHUNK = 1 << 16  # bytes; of a connection that drops, those of the last chunk are lost
TIMEOUT = (10, 60)  # seconds to connect, and between two pieces
WAITS = (1, 2, 4, 8)  # seconds before each further attempt of those that bring nothing new
LONGEST_WAIT = 30  # seconds, whatever the server asks for
TRANSIENT = {408, 429, 500, 502, 503, 504}
# Harvard Dataverse refuses the name that Python's own library gives. Ranges and sizes are of the file as it is.
HEADERS = {"User-Agent": "skin-lesion-pipeline", "Accept-Encoding": "identity"}


class Interrupted(Exception):
    """Why an attempt ended where another may well succeed; `wait`: seconds that the server asks for."""

    def __init__(self, reason: str, wait: int = 0) -> None:
        super().__init__(reason)
        self.wait = wait


def fetch(url: str, partial: Path, size: int | None, advice: str) -> None:
    """Complete the file at `partial` with what `url` has, in as many attempts as bring something new.

    Beside `partial` lies `….version.partial`: the ETag or date of the file that it is a part of.

    Args:
        url: the file.
        partial: where it grows; what an earlier call left there is continued.
        size: the size that the file must have, in bytes; None: the one that the server states.
        advice: what the user can do where the file cannot be had here.

    Raises:
        InputError: the file cannot be had; what there is of it stays.
    """
    farthest, failures = _size(partial), 0
    with _progress_bar(partial.stem) as show, requests.Session() as session:
        while True:
            try:
                return _attempt(session, url, partial, size, advice, show)
            except Interrupted as error:
                reason, wait = str(error), error.wait
            except (requests.exceptions.SSLError, requests.exceptions.TooManyRedirects, ValueError) as error:
                # ValueError: what requests says of an address that is none.
                raise InputError(f"{url} cannot be had ({_cause(error)}); {advice}") from None
            except requests.RequestException as error:
                reason, wait = _cause(error), 0
            failures = 0 if _size(partial) > farthest else failures + 1
            farthest = max(farthest, _size(partial))
            if failures > len(WAITS):
                kept = f", it goes on after the {_size(partial)} bytes that are there" if partial.exists() else ""
                raise InputError(
                    f"{url} cannot be had now ({reason}); check the connection and run this again{kept}; or {advice}"
                )
            time.sleep(min(LONGEST_WAIT, max(wait, WAITS[max(failures, 1) - 1])))


def discard(partial: Path) -> None:
    """Remove what there is of a download."""
    for path in (partial, _version_file(partial)):
        path.unlink(missing_ok=True)


def _attempt(
    session: requests.Session, url: str, partial: Path, size: int | None, advice: str, show: Callable[[int, int], None]
) -> None:
    """Ask once for what `partial` lacks and append it; all of it where the server has no ranges or another file."""
    start, version = _size(partial), _read_version(partial)
    resumed = bool(start and version)
    ranges = {"Range": f"bytes={start}-", "If-Range": version} if resumed else {}
    with session.get(url, headers=HEADERS | ranges, stream=True, timeout=TIMEOUT) as response:
        status, answer = response.status_code, f"the server answers {response.status_code} {response.reason}"
        offset, total = _content_range(response)
        if status == 416 and resumed and total == start:
            return
        if status in TRANSIENT:
            wait = response.headers.get("Retry-After", "")
            raise Interrupted(answer, int(wait) if wait.isdigit() else 0)
        # Not every server heeds If-Range: some send the rest of another version.
        if status == 416 or (status == 206 and (offset != start or _version(response) not in ("", version))):
            discard(partial)
            raise Interrupted("the file on the server is another than the one begun; starting again")
        if status not in (200, 206):
            raise InputError(f"{url} cannot be had: {answer}; {advice}")
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise InputError(f"{url} is a web page, not the file: a login or a notice may be in the way; {advice}")
        if status == 200:
            discard(partial)
            length = response.headers.get("Content-Length", "")
            start, version, total = 0, "", int(length) if length.isdigit() else None
        total = _checked_size(url, total, size, advice)
        free = shutil.disk_usage(partial.parent).free
        if total - start > free:
            raise InputError(
                f"{partial.parent} has {free:,} bytes free, and {total - start:,} more are needed: make room, or name "
                "another folder with --output"
            )
        _version_file(partial).write_text(_version(response) or version, encoding="utf-8")
        # Unbuffered: what was received is there, whatever happens to this process.
        with partial.open("ab", buffering=0) as out:
            show(start, total)
            for chunk in response.iter_content(CHUNK):
                _append(out, chunk)
                show(out.tell(), total)
    if _size(partial) != total:
        raise Interrupted(f"the connection ended after {_size(partial)} of {total} bytes")


def _checked_size(url: str, stated: int | None, size: int | None, advice: str) -> int:
    """The size that the whole file will have."""
    if stated is None and size is None:
        raise InputError(f"{url}: the server does not say how large the file is, so it might end anywhere; {advice}")
    if stated == 0 or (None not in (stated, size) and stated != size):
        expected = f"; the published file has {size}" if size else ""
        raise InputError(f"{url} has {stated} bytes{expected}; {advice}")
    return size if stated is None else stated


def _append(out: BinaryIO, chunk: bytes) -> None:
    # A try of its own: what requests raises is an OSError too.
    try:
        rest = memoryview(chunk)
        while rest:
            rest = rest[out.write(rest) :]
    except OSError as error:
        raise InputError(
            f"{out.name} cannot be written ({error.strerror}): make room and run this again, it goes on from there"
        ) from None


def _content_range(response: requests.Response) -> tuple[int | None, int | None]:
    """At which byte the content starts, and how many the file has; None: the server does not say."""
    unit, _, value = response.headers.get("Content-Range", "").partition(" ")
    place, _, total = value.partition("/")
    start = place.partition("-")[0]
    numbers = (int(text) if unit.lower() == "bytes" and text.isdigit() else None for text in (start, total))
    return next(numbers), next(numbers)


def _version(response: requests.Response) -> str:
    """What names this version of the file; a weak ETag does not promise the same bytes (RFC 9110, 13.1.5)."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")


def _version_file(partial: Path) -> Path:
    return partial.with_name(f"{partial.stem}.version.partial")


def _read_version(partial: Path) -> str:
    try:
        return _version_file(partial).read_text(encoding="ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _cause(error: BaseException) -> str:
    """The innermost of the exceptions that requests and urllib3 wrap into one another."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return str(error) or type(error).__name__


@contextmanager
def _progress_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, and a function that sets it: the bytes that are there, and those there will be."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(file=sys.stderr)) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
