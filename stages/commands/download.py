"""Download: fetch the archives of a published dataset.

    python -m stages download ham10000              # into data/ham10000
    python -m stages download isic2019 --url https://mirror.example.org/isic2019

An interrupted download goes on where it stopped when the command runs again. Each file is checked before it gets its
name, and its SHA-256 is kept in the folder's SHA256SUMS, against which the next run (or `sha256sum -c`) checks it.
"""

import argparse
import hashlib
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.errors import InputError
from stages.files import replacing
from stages.transfer import CHUNK, discard, fetch

SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class RemoteFile:
    """A published file.

    Attributes:
        name: what it is called here, and on mirrors.
        url: where it is published.
        size: in bytes, where its publisher states it.
        md5: likewise; without one, the size that the server states and the archive's own checksums are checked.
    """

    name: str
    url: str
    size: int | None = None
    md5: str | None = None


@dataclass(frozen=True)
class Dataset:
    """A published dataset: its files, and what whoever uses it must know."""

    title: str
    page: str
    licence: str
    files: tuple[RemoteFile, ...]


_DATAVERSE = "https://dataverse.harvard.edu/api/access/datafile"
_ISIC = "https://isic-challenge-data.s3.amazonaws.com/2019"
DATASETS = {
    # Sizes and MD5 as Harvard Dataverse states them for version 4.0. Its tables are converted when they are deposited;
    # checksums are of the original.
    "ham10000": Dataset(
        title="HAM10000: 10,015 dermatoscopic images (Tschandl et al., Scientific Data 5:180161, 2018)",
        page="https://doi.org/10.7910/DVN/DBW86T",
        licence="CC BY-NC 4.0: name the authors; not for commercial use, nor are models trained on it",
        files=(
            RemoteFile(
                "HAM10000_metadata.csv",
                f"{_DATAVERSE}/4338392?format=original",
                690_218,
                "8f85fb1aa29d80a2797247e434deb79d",
            ),
            RemoteFile(
                "HAM10000_images_part_1.zip",
                f"{_DATAVERSE}/3172585",
                1_366_522_108,
                "4639bfa73ab251610530a97c898e6e46",
            ),
            RemoteFile(
                "HAM10000_images_part_2.zip",
                f"{_DATAVERSE}/3172584",
                1_403_566_547,
                "da43d6cc50f6613013be07e8986b384b",
            ),
        ),
    ),
    # No checksums are published for these.
    "isic2019": Dataset(
        title="ISIC 2019: 25,331 dermatoscopic images of the challenge's training set",
        page="https://challenge.isic-archive.com/data/#2019",
        licence=(
            "CC BY-NC 4.0: not for commercial use; name the sources BCN_20000 (Hospital Clínic de Barcelona), "
            "HAM10000 (ViDIR Group, Medical University of Vienna) and MSK (arXiv:1710.05006, arXiv:1902.03368)"
        ),
        files=tuple(
            RemoteFile(name, f"{_ISIC}/{name}")
            for name in (
                "ISIC_2019_Training_Metadata.csv",
                "ISIC_2019_Training_GroundTruth.csv",
                "ISIC_2019_Training_Input.zip",
            )
        ),
    ),
}


def download_dataset(dataset: Dataset, folder: Path, url: str | None = None) -> None:
    """Fetch the files of `dataset` that `folder` lacks, and check those that it has.

    Args:
        dataset: what to fetch.
        folder: where to; made if need be.
        url: a mirror, below which the files have the names that they have here.

    Raises:
        InputError: a file cannot be had, or is not what was published. What has come of it is kept, and the next run
            goes on from there, unless it was wrong.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sums = _read_sums(folder / SUMS)
        for file in dataset.files:
            _bring(file, dataset.page, folder, url, sums)
    except OSError as error:
        raise InputError(f"{folder} cannot be written or read ({error}); name another with --output") from None


def _bring(file: RemoteFile, page: str, folder: Path, url: str | None, sums: dict[str, str]) -> None:
    """Fetch or check one file, and keep its SHA-256 in `sums` and in the folder."""
    target, partial = folder / file.name, folder / f"{file.name}.partial"
    recorded = sums.get(file.name)
    if target.exists():
        sums[file.name] = _verify(target, file, recorded, f"move {target} away and run this again")
        if recorded is None:
            _write_sums(folder / SUMS, sums)
        print(f"{file.name}: there, and unchanged")
        return
    advice = f"download it from {page} into {folder}, or name a mirror with --url"
    fetch(f"{url.rstrip('/')}/{file.name}" if url else file.url, partial, file.size, advice)
    try:
        sums[file.name] = _verify(partial, file, recorded, f"it was removed: run this again, or {advice}")
    except InputError:
        discard(partial)
        raise
    # Before the file gets its name, so that no file has a name and no checksum.
    _write_sums(folder / SUMS, sums)
    partial.replace(target)
    discard(partial)
    print(f"{file.name}: complete")


def _verify(path: Path, file: RemoteFile, recorded: str | None, advice: str) -> str:
    """Check a file against what its publisher states and what SHA256SUMS holds; its SHA-256.

    Raises:
        InputError: it is another one; with `advice`.
    """
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as content:
        while chunk := content.read(CHUNK):
            md5.update(chunk)
            sha256.update(chunk)
    if file.md5 not in (None, md5.hexdigest()):
        raise InputError(f"{path} has the MD5 {md5.hexdigest()}; the published file has {file.md5}; {advice}")
    if recorded not in (None, sha256.hexdigest()):
        raise InputError(
            f"{path} has the SHA-256 {sha256.hexdigest()}; {path.parent / SUMS} says {recorded} (if a new version was "
            f"published, remove that line); {advice}"
        )
    if file.md5 is None and recorded is None and file.name.endswith(".zip"):
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
            raise InputError(f"{path} is no whole zip archive ({error}); {advice}") from None
        if damaged:
            raise InputError(f"{path} is damaged: {damaged!r} in it has another checksum; {advice}")
    return sha256.hexdigest()


def _read_sums(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    # As sha256sum writes it: the digest, a space, a space or an asterisk, the name.
    return {line[66:]: line[:64] for line in lines if len(line) > 66}


def _write_sums(path: Path, sums: dict[str, str]) -> None:
    with replacing(path) as partial:
        text = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
        partial.write_text(text, encoding="utf-8", newline="\n")


def describe(dataset: Dataset) -> str:
    """What is fetched, and under which licence."""
    return f"{dataset.title}\n{dataset.page}\nLicence: {dataset.licence}"


def list_files(dataset: Dataset) -> str:
    """The files, one a line: name, size, what it is checked against, address."""
    return "\n".join(
        f"  {file.name}  {f'{file.size:,} bytes' if file.size else 'size unpublished'}  "
        f"{f'MD5 {file.md5}' if file.md5 else 'no published checksum'}  {file.url}"
        for file in dataset.files
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stages download",
        description="Fetch the archives of a published dataset; an interrupted download goes on where it stopped.",
    )
    parser.add_argument("dataset", choices=DATASETS)
    parser.add_argument("--output", type=Path, help="folder to download into (default: data/ and the dataset's name)")
    parser.add_argument("--url", help="mirror: the address below which the files of --list lie")
    parser.add_argument("--list", action="store_true", help="list the files and download nothing")
    options = parser.parse_args(arguments)
    dataset = DATASETS[options.dataset]
    print(describe(dataset))
    if options.list:
        print(list_files(dataset))
        return
    folder = options.output or Path("data") / options.dataset
    download_dataset(dataset, folder, options.url)
    print(f"next: dvc add {folder}, then dvc exp run -S data.data_dir={folder}")
