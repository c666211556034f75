"""Downloads against a local HTTP server that can do all that real ones do wrong."""

import hashlib
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks.plain import PLAIN
from stages import transfer
from stages.commands import download
from stages.commands.download import DATASETS, Dataset, RemoteFile, download_dataset
from stages.errors import InputError
from stages.prepare import prepare_dataset

ROOT = Path(__file__).parents[2]
TABLE = b"image_id,dx\n" + b"I000,nv\n" * 400
ETAG = '"one"'


def archive(seed=0):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as members:
        members.writestr("I000.jpg", bytes((seed + number * number) % 251 for number in range(60_000)))
    return file.getvalue()


ARCHIVE = archive()


class Server(ThreadingHTTPServer):
    """Serves `files`, and misbehaves as it is told.

    Attributes:
        files: content by name.
        requests: the `Range` header of each request, None without one.
        answers: statuses to answer with first, each once.
        drop_after: bytes of the content after which a connection ends, for each request in turn; None: it does not.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"table.csv": TABLE, "images.zip": ARCHIVE}
        self.requests, self.answers, self.drop_after = [], [], []
        self.etag, self.ranges, self.if_range, self.length, self.shift = ETAG, True, True, True, 0
        self.type, self.headers = "application/octet-stream", {}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.server.requests.append(self.headers.get("Range"))
        self.answer(body=True)

    def answer(self, body):
        server, name = self.server, self.path.lstrip("/").partition("?")[0]
        if server.answers and body:
            return self.reply(server.answers.pop(0), b"", body)
        if name not in server.files:
            return self.reply(404, b"", body)
        content, wanted = server.files[name], re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = not server.if_range or self.headers.get("If-Range", server.etag) == server.etag
        if not (wanted and server.ranges and same):
            return self.reply(200, content, body)
        start = int(wanted[1]) + server.shift
        if start >= len(content):
            return self.reply(416, b"", body, {"Content-Range": f"bytes */{len(content)}"})
        place = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        return self.reply(206, content[start:], body, place)

    def reply(self, status, content, body, headers=()):
        server = self.server
        self.send_response(status)
        headers = dict(headers) | server.headers | {"Content-Type": server.type}
        if server.etag:
            headers["ETag"] = server.etag
        if server.length:
            headers["Content-Length"] = str(len(content))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if not body:
            return
        drop = server.drop_after.pop(0) if server.drop_after and content else None
        self.wfile.write(content[:drop])
        if drop is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(transfer, "CHUNK", 1000)


@pytest.fixture
def waits(monkeypatch):
    """The pauses between attempts, which are not made."""
    pauses = []
    monkeypatch.setattr(transfer.time, "sleep", pauses.append)
    return pauses


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


def published(server, checksums=True):
    """A dataset of two files; with checksums as HAM10000, without as ISIC 2019."""
    files = {"table.csv": TABLE, "images.zip": ARCHIVE}
    return Dataset(
        "Two files",
        "https://example.org/page",
        "CC BY-NC 4.0",
        tuple(
            RemoteFile(name, f"{server.url}/{name}", len(content), hashlib.md5(content).hexdigest())
            if checksums
            else RemoteFile(name, f"{server.url}/{name}")
            for name, content in files.items()
        ),
    )


def is_complete(folder):
    return {path.name for path in folder.iterdir()} == {"SHA256SUMS", "images.zip", "table.csv"} and (
        (folder / "images.zip").read_bytes() == ARCHIVE and (folder / "table.csv").read_bytes() == TABLE
    )


def refusal(dataset, folder, url=None):
    with pytest.raises(InputError) as caught:
        download_dataset(dataset, folder, url)
    return str(caught.value)


@pytest.mark.parametrize("checksums", [True, False])
def test_files_are_fetched_and_their_checksums_kept(server, folder, checksums, capsys):
    download_dataset(published(server, checksums), folder)
    assert is_complete(folder)
    assert (folder / "SHA256SUMS").read_text() == "".join(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n"
        for name, content in (("images.zip", ARCHIVE), ("table.csv", TABLE))
    )
    assert capsys.readouterr().out == "table.csv: complete\nimages.zip: complete\n"


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="needs sha256sum")
def test_sha256sum_reads_the_checksums(server, folder):
    download_dataset(published(server), folder)
    assert subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True).returncode == 0


def test_a_second_run_checks_and_fetches_nothing(server, folder, capsys):
    download_dataset(published(server, checksums=False), folder)
    server.requests.clear()
    before = (folder / "SHA256SUMS").stat().st_mtime_ns
    download_dataset(published(server, checksums=False), folder)
    assert server.requests == []
    assert (folder / "SHA256SUMS").stat().st_mtime_ns == before
    assert capsys.readouterr().out.endswith("table.csv: there, and unchanged\nimages.zip: there, and unchanged\n")


@pytest.mark.parametrize("checksums", [True, False])
def test_a_second_run_names_a_file_that_has_changed_and_leaves_it(server, folder, checksums):
    download_dataset(published(server, checksums), folder)
    (folder / "table.csv").write_bytes(b"changed")
    message = refusal(published(server, checksums), folder)
    assert f"{folder}/table.csv has the {'MD5' if checksums else 'SHA-256'}" in message
    assert f"move {folder}/table.csv away" in message
    assert (folder / "table.csv").read_bytes() == b"changed"


def test_a_file_that_was_fetched_by_hand_is_checked_and_taken(server, folder, capsys):
    folder.mkdir()
    (folder / "images.zip").write_bytes(ARCHIVE)
    download_dataset(published(server), folder)
    assert is_complete(folder)
    assert "images.zip: there, and unchanged" in capsys.readouterr().out


def test_a_connection_that_drops_is_resumed_where_it_ended(server, folder, waits):
    server.drop_after = [None, 10_000, 20_000, 5_000]
    download_dataset(published(server), folder)
    assert is_complete(folder)
    assert server.requests == [None, None, "bytes=10000-", "bytes=30000-", "bytes=35000-"]
    assert waits == [1, 1, 1]


def test_another_run_resumes_what_an_interrupted_one_left(server, folder, waits):
    server.drop_after = [None, 10_000, *[0] * 5]
    message = refusal(published(server), folder)
    assert "run this again, it goes on after the 10000 bytes that are there" in message
    assert waits == [1, 1, 2, 4, 8]
    assert not (folder / "images.zip").exists()
    assert (folder / "images.zip.partial").read_bytes() == ARCHIVE[:10_000]
    server.requests.clear()
    download_dataset(published(server), folder)
    assert is_complete(folder)
    assert server.requests == ["bytes=10000-"]


@pytest.mark.parametrize("checksums", [True, False])
def test_where_the_server_ignores_ranges_it_starts_again(server, folder, waits, checksums):
    server.ranges, server.drop_after = False, [None, 10_000]
    download_dataset(published(server, checksums), folder)
    assert is_complete(folder)
    assert server.requests == [None, None, "bytes=10000-"]


def test_a_server_without_ranges_that_always_drops_ends_the_attempts(server, folder, waits):
    server.ranges, server.drop_after = False, [None, *[10_000] * 20]
    assert "cannot be had now" in refusal(published(server), folder)
    assert waits == [1, 1, 2, 4, 8]


def test_a_file_without_a_version_is_not_continued_blindly(server, folder, waits):
    server.etag, server.drop_after = "", [None, 10_000]
    download_dataset(published(server, checksums=False), folder)
    assert is_complete(folder)
    assert server.requests == [None, None, None]


def test_the_version_of_an_older_part_is_not_taken_for_that_of_a_file_without_one(server, folder, waits):
    folder.mkdir()
    (folder / "images.zip.partial").write_bytes(b"x" * 100)
    (folder / "images.zip.version.partial").write_text(ETAG)
    server.etag, server.ranges, server.drop_after = "", False, [None, 10_000]
    download_dataset(published(server, checksums=False), folder)
    assert is_complete(folder)
    assert server.requests == [None, "bytes=100-", None]


@pytest.mark.parametrize("if_range", [True, False])
def test_a_file_that_changed_on_the_server_is_not_joined_to_the_old_one(server, folder, waits, if_range):
    server.files["images.zip"] = archive(7)
    server.drop_after = [None, 10_000, *[0] * 5]
    refusal(published(server, checksums=False), folder)
    server.files["images.zip"], server.etag, server.if_range = ARCHIVE, '"two"', if_range
    download_dataset(published(server, checksums=False), folder)
    assert is_complete(folder)


def test_a_range_that_starts_elsewhere_is_refused(server, folder, waits):
    server.drop_after, server.shift = [None, 10_000], -500
    download_dataset(published(server), folder)
    assert is_complete(folder)
    assert server.requests == [None, None, "bytes=10000-", None]


def test_what_was_complete_already_is_not_fetched_again(server, folder):
    """Killed between the last byte and the name."""
    download_dataset(published(server), folder)
    (folder / "images.zip").rename(folder / "images.zip.partial")
    (folder / "images.zip.version.partial").write_text(ETAG)
    download_dataset(published(server), folder)
    assert is_complete(folder)
    assert server.requests[-1] == f"bytes={len(ARCHIVE)}-"


def test_more_than_the_file_has_is_thrown_away(server, folder, waits):
    folder.mkdir()
    (folder / "images.zip.partial").write_bytes(ARCHIVE + b"more")
    (folder / "images.zip.version.partial").write_text(ETAG)
    download_dataset(published(server), folder)
    assert is_complete(folder)
    assert server.requests == [None, f"bytes={len(ARCHIVE) + 4}-", None]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_server_that_is_busy_is_asked_again(server, folder, waits, status):
    server.answers = [status, status]
    download_dataset(published(server), folder)
    assert is_complete(folder)
    assert waits == [1, 2]


@pytest.mark.parametrize(("asked", "waited"), [("3", 3), ("86400", 30), ("Wed, 21 Oct 2026 07:28:00 GMT", 1)])
def test_a_pause_that_the_server_asks_for_is_kept_within_reason(server, folder, waits, asked, waited):
    server.answers, server.headers = [503], {"Retry-After": asked}
    download_dataset(published(server), folder)
    assert waits == [waited]


def test_a_server_that_stays_busy_is_named(server, folder, waits):
    server.answers = [503] * 5
    message = refusal(published(server), folder)
    assert "the server answers 503 Service Unavailable" in message
    assert "https://example.org/page" in message
    assert sum(waits) <= 30


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_final(server, folder, waits, status):
    server.answers = [status]
    message = refusal(published(server), folder)
    assert f"{server.url}/table.csv cannot be had: the server answers {status}" in message
    assert "download it from https://example.org/page into" in message
    assert "--url" in message
    assert waits == []
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_where_nobody_answers_the_message_says_so(server, folder, waits, url):
    message = refusal(published(server), folder, url)
    assert f"{url}/table.csv cannot be had now" in message
    assert "check the connection and run this again" in message
    assert "object at 0x" not in message
    assert len(waits) == 4


@pytest.mark.parametrize("url", ["example.org", "ftp://example.org", "http://", "http://[::1"])
def test_an_address_that_is_none_is_refused(server, folder, waits, url):
    assert f"{url.rstrip('/')}/table.csv cannot be had" in refusal(published(server), folder, url)
    assert waits == []


def test_wrong_bytes_are_removed_and_named(server, folder):
    server.files["images.zip"] = wrong = ARCHIVE[:-1] + bytes([ARCHIVE[-1] ^ 1])
    message = refusal(published(server), folder)
    assert f"images.zip.partial has the MD5 {hashlib.md5(wrong).hexdigest()}" in message
    assert f"the published file has {hashlib.md5(ARCHIVE).hexdigest()}" in message
    assert {path.name for path in folder.iterdir()} == {"SHA256SUMS", "table.csv"}
    server.files["images.zip"] = ARCHIVE
    download_dataset(published(server), folder)
    assert is_complete(folder)


def test_wrong_bytes_in_the_part_that_was_there_are_found(server, folder):
    folder.mkdir()
    (folder / "images.zip.partial").write_bytes(b"x" * 100)
    (folder / "images.zip.version.partial").write_text(ETAG)
    assert "has the MD5" in refusal(published(server), folder)
    download_dataset(published(server), folder)
    assert is_complete(folder)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (ARCHIVE[:30_000], "is no whole zip archive"),
        (ARCHIVE[:30_000] + b"xxxx" + ARCHIVE[30_004:], "is damaged: 'I000.jpg' in it has another checksum"),
        (b"no archive", "is no whole zip archive"),
    ],
    ids=["cut", "changed", "something else"],
)
def test_an_archive_without_a_published_checksum_is_checked_by_its_own(server, folder, content, expected):
    server.files["images.zip"] = content
    assert expected in refusal(published(server, checksums=False), folder)
    assert {path.name for path in folder.iterdir()} == {"SHA256SUMS", "table.csv"}


def test_a_file_that_is_fetched_anew_must_be_the_one_of_the_first_time(server, folder):
    download_dataset(published(server, checksums=False), folder)
    (folder / "table.csv").unlink()
    server.files["table.csv"] = TABLE.replace(b"nv", b"df")
    message = refusal(published(server, checksums=False), folder)
    assert "SHA256SUMS says" in message
    assert not (folder / "table.csv").exists()


def test_a_file_of_another_size_is_refused_before_it_is_fetched(server, folder):
    server.files["images.zip"] = ARCHIVE + b"more"
    message = refusal(published(server), folder)
    assert f"has {len(ARCHIVE) + 4} bytes; the published file has {len(ARCHIVE)}" in message
    assert not (folder / "images.zip.partial").exists()


def test_an_empty_file_is_refused(server, folder):
    server.files["table.csv"] = b""
    assert "table.csv has 0 bytes" in refusal(published(server, checksums=False), folder)


def test_a_file_that_might_end_anywhere_is_refused_unless_its_size_is_known(server, folder):
    server.length = False
    assert "does not say how large the file is" in refusal(published(server, checksums=False), folder)
    download_dataset(published(server), folder)
    assert is_complete(folder)


def test_a_login_page_is_not_taken_for_the_file(server, folder):
    server.type = "text/html; charset=utf-8"
    assert "table.csv is a web page, not the file" in refusal(published(server, checksums=False), folder)
    assert list(folder.iterdir()) == []


def test_a_disk_that_is_too_small_is_named_before_anything_is_written(server, folder, monkeypatch):
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    message = refusal(published(server), folder)
    assert f"{folder} has 1 bytes free, and {len(TABLE):,} more are needed: make room" in message
    assert list(folder.iterdir()) == []


def run_command(arguments, folder, prelude=""):
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", f"{prelude}\nfrom stages.commands.download import *\nrun(main)", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "COLUMNS": "100"},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )


def test_a_disk_that_fills_up_leaves_what_can_be_continued(server, folder, tmp_path, monkeypatch):
    """The limit on a file's size stands for the disk's: a write fails in the same way."""
    server.files = {file.name: ARCHIVE for file in DATASETS["isic2019"].files}
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    done = run_command(["isic2019", "--url", server.url], tmp_path, limit)
    assert done.returncode == 1
    assert "ISIC_2019_Training_Metadata.csv.partial cannot be written (File too large): make room" in done.stderr
    assert "Traceback" not in done.stderr
    data = tmp_path / "data/isic2019"
    assert (data / "ISIC_2019_Training_Metadata.csv.partial").stat().st_size == 20_000
    server.requests.clear()
    done = run_command(["isic2019", "--url", server.url], tmp_path)
    assert done.returncode == 0, done.stderr
    assert server.requests[0] == "bytes=20000-"


def test_the_licence_comes_first_and_the_next_commands_last(server, tmp_path):
    server.files = {file.name: ARCHIVE for file in DATASETS["isic2019"].files}
    done = run_command(["isic2019", "--url", f"{server.url}/"], tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[2].startswith("Licence: CC BY-NC 4.0")
    assert lines[3] == "ISIC_2019_Training_Metadata.csv: complete"
    assert lines[-1] == "next: dvc add data/isic2019, then dvc exp run -S data.data_dir=data/isic2019"
    assert "ISIC_2019_Training_Input.zip" in done.stderr, "the progress bar"


def test_a_killed_download_leaves_nothing_under_the_final_name_and_is_continued(server, tmp_path):
    server.files = {file.name: ARCHIVE for file in DATASETS["isic2019"].files}
    kill = "from stages import transfer\nimport os, signal\nappend = transfer._append\ntransfer.CHUNK = 1000\n"
    kill += (
        "def die(out, chunk):\n    append(out, chunk)\n    out.tell() > 5000 and os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = run_command(["isic2019", "--url", server.url], tmp_path, kill + "transfer._append = die")
    assert done.returncode == -9
    data = tmp_path / "data/isic2019"
    assert all(path.name.endswith(".partial") for path in data.iterdir())
    done = run_command(["isic2019", "--url", server.url], tmp_path)
    assert done.returncode == 0, done.stderr
    assert server.requests[1] == "bytes=6000-"
    assert all((data / name).read_bytes() == ARCHIVE for name in server.files)


def test_a_mirror_of_ham10000_cannot_serve_other_files(server, tmp_path):
    server.files = {file.name: ARCHIVE for file in DATASETS["ham10000"].files}
    done = run_command(["ham10000", "--url", server.url, "--output", "elsewhere"], tmp_path)
    assert done.returncode == 1
    assert f"HAM10000_metadata.csv has {len(ARCHIVE)} bytes; the published file has 690218" in done.stderr
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("name", DATASETS)
def test_the_list_names_every_file_with_its_address(name, capsys):
    download.main([name, "--list"])
    printed = capsys.readouterr().out
    assert "Licence: " in printed
    for file in DATASETS[name].files:
        assert file.url in printed
        assert (file.md5 or "no published checksum") in printed
    assert not Path("data", name, download.SUMS).exists()


def test_a_folder_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "file").write_text("")
    assert f"{tmp_path}/file/data cannot be written or read" in refusal(published(server), tmp_path / "file/data")


@pytest.fixture
def repository(tmp_path):
    """A function that runs DVC in a repository of its own."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def dvc(*arguments):
        done = subprocess.run(
            ["dvc", *arguments], cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr

    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    dvc("init", "--quiet")
    dvc("config", "core.analytics", "false")
    dvc("config", "core.check_update", "false")
    return dvc


@pytest.mark.parametrize("etag", [ETAG, ""], ids=["with an ETag", "without"])
def test_dvc_import_url_brings_an_archive_and_updates_it(server, repository, tmp_path, etag):
    server.etag = etag
    (tmp_path / "imported").mkdir()
    repository("import-url", f"{server.url}/images.zip?format=original", "imported/images.zip")
    assert (tmp_path / "imported/images.zip").read_bytes() == ARCHIVE
    assert f"{server.url}/images.zip" in (tmp_path / "imported/images.zip.dvc").read_text()
    server.files["images.zip"] = newer = archive(3) + b"x"
    server.etag = etag and '"two"'
    repository("update", "imported/images.zip.dvc")
    assert (tmp_path / "imported/images.zip").read_bytes() == newer


def test_the_files_of_a_download_are_a_dataset(server, dataset, tmp_path, monkeypatch, capsys):
    """Tables as ISIC 2019 publishes them, and images in an archive."""
    dataset.write_zips()
    zips = sorted(dataset.folder.glob("*.zip"))
    with zipfile.ZipFile(zips[0], "a") as members, zipfile.ZipFile(zips[1]) as others:
        for name in others.namelist():
            members.writestr(name, others.read(name))
    metadata = "".join(f"{row['image_id']},{row['lesion_id']}\n" for row in dataset.rows)
    truth = "".join(
        f"{row['image_id']},{','.join(str(float(row['dx'] == dx)) for dx in ('nv', 'mel', 'bkl'))}\n"
        for row in dataset.rows
    )
    server.files = {
        "ISIC_2019_Training_Metadata.csv": b"image,lesion_id\n" + metadata.encode(),
        "ISIC_2019_Training_GroundTruth.csv": b"image,NV,MEL,BKL\n" + truth.encode(),
        "ISIC_2019_Training_Input.zip": zips[0].read_bytes(),
    }
    monkeypatch.chdir(tmp_path)
    download.main(["isic2019", "--url", server.url])
    manifest = prepare_dataset(replace(PLAIN.data, data_dir="data/isic2019", image_size=16), tmp_path / "prepared")
    assert list(manifest["dx"]) == [row["dx"] for row in dataset.rows]
    assert list(manifest["lesion_id"]) == [row["lesion_id"] for row in dataset.rows]
