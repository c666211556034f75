"""Download: fetch the files of a published dataset and check them.

    python -m stages download ham10000              # into data/ham10000
    python -m stages download isic2019 --url https://mirror.example.org/isic2019

A file gets its name once it is complete and has the checksum that its publisher states, if any; a run that was
interrupted fetches the files that are missing when it runs again. `dvc add` then notes the checksums of all.
"""

import shlex
import shutil
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from stages.command_line import new_parser
from stages.errors import InputError, no_space

RETRIES = 2  # of a download that fails


class RemoteFile(NamedTuple):
    """A published file: its name here and on mirrors, its address, and what its publisher states of size and MD5."""

    name: str
    url: str
    size: int | None = None
    md5: str | None = None


class Dataset(NamedTuple):
    """A published dataset: its files, and what its users must know."""

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
        files=tuple(
            RemoteFile(name, f"{_DATAVERSE}/{address}", size, md5)
            for name, address, size, md5 in (
                ("HAM10000_metadata.csv", "4338392?format=original", 690_218, "8f85fb1aa29d80a2797247e434deb79d"),
                ("HAM10000_images_part_1.zip", "3172585", 1_366_522_108, "4639bfa73ab251610530a97c898e6e46"),
                ("HAM10000_images_part_2.zip", "3172584", 1_403_566_547, "da43d6cc50f6613013be07e8986b384b"),
            )
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
            RemoteFile(f"ISIC_2019_Training_{part}", f"{_ISIC}/ISIC_2019_Training_{part}")
            for part in ("Metadata.csv", "GroundTruth.csv", "Input.zip")
        ),
    ),
}


def download_dataset(dataset: Dataset, folder: Path, url: str | None = None) -> None:
    """Fetch the files of `dataset` that `folder` lacks, and check those that it has.

    Args:
        dataset: what to fetch.
        folder: where to; created if missing.
        url: a mirror, below which the files have the names that they have here.

    Raises:
        InputError: a file is not available, or is not what was published. The files before it are kept.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")
    partial = folder / ".download.partial"  # DVC ignores what ends so
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error}); name another with --output") from None
    advice = f"download it from {dataset.page} into {folder}, or name a mirror with --url"
    try:
        for file in dataset.files:
            path = folder / file.name
            if not path.exists():
                address = f"{url.rstrip('/')}/{file.name}" if url else file.url
                _fetch(address, partial / file.name, file.md5 and f"md5:{file.md5}", advice)
                (partial / file.name).replace(path)
            elif file.md5 and (digest := pooch.file_hash(path, "md5")) != file.md5:
                raise InputError(f"{path} has the checksum {digest}, not {file.md5}; move it away, and {advice}")
            print(f"{file.name}: complete", flush=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fetch(url: str, path: Path, known_hash: str | None, advice: str) -> None:
    import pooch

    # Harvard Dataverse refuses the name that Python's own library gives.
    headers = {"User-Agent": "skin-lesion-pipeline"}
    downloader: Any = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), headers=headers)
    registry, urls = {path.name: known_hash}, {path.name: url}
    source = pooch.create(path=path.parent, base_url="", registry=registry, urls=urls, retry_if_failed=RETRIES)
    try:
        source.fetch(path.name, downloader=downloader)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors, and another checksum is a ValueError
        if no_space(error):
            raise
        while inner := error.__cause__ or error.__context__:  # requests and urllib3 wrap errors into one another
            error = inner
        raise InputError(
            f"{url} is not available ({error}); check the connection and run this again, or {advice}"
        ) from None
    if known_hash is None and (problem := _problem_of(path)):
        raise InputError(f"{url} is not the published file: {problem}; {advice}")


def _problem_of(path: Path) -> str | None:
    """What is wrong with a file that has no published checksum: archives contain checksums."""
    if path.suffix != ".zip":
        with path.open("rb") as content:
            start = content.read(100).lstrip()
        return "it is a web page" if start.startswith(b"<") else None if start else "it is empty"
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        return f"it is not a complete zip archive ({error})"
    return damaged and f"its member {damaged!r} is damaged"


def main(argv: list[str] | None = None) -> None:
    parser = new_parser("download", __doc__)
    parser.add_argument("dataset", choices=DATASETS)
    parser.add_argument("--output", type=Path, help="folder to download into (default: data/ and the dataset's name)")
    parser.add_argument("--url", help="mirror: the address below which the files of --list lie")
    parser.add_argument("--list", action="store_true", help="list the files and download nothing")
    args = parser.parse_args(argv)
    dataset = DATASETS[args.dataset]
    print(f"{dataset.title}\n{dataset.page}\nLicence: {dataset.licence}")
    if args.list:
        for file in dataset.files:
            size = f"{file.size:,} bytes" if file.size else "size unpublished"
            print(f"  {file.name}  {size}  {f'MD5 {file.md5}' if file.md5 else 'no published checksum'}  {file.url}")
        return
    folder = args.output or Path("data") / args.dataset
    download_dataset(dataset, folder, args.url)
    commands = ["dvc", "add", str(folder)], ["dvc", "exp", "run", "-S", f"data.data_dir={folder}"]
    print(f"next: {', then '.join(map(shlex.join, commands))}")
