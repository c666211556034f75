"""Downloads from an HTTP server on this machine, whole, wrong, interrupted and absent."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.plain import PLAIN
from stages.commands import download
from stages.commands.download import DATASETS, Dataset, RemoteFile, download_dataset
from stages.errors import InputError
from stages.prepare import prepare_dataset
from tests.clone import ENVIRONMENT, ROOT
from tests.hostile import encoded, halves, zipped

TABLE = b"image_id,dx\n" + b"I000,nv\n" * 400
ARCHIVE = zipped({"I000.jpg": encoded(halves(size=(400, 300)), "JPEG")}, zipfile.ZIP_STORED)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        name = self.path.lstrip("/").partition("?")[0]
        self.server.requests.append(name)
        content = self.server.files.get(name)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        drop = self.server.drops.pop(name, None)
        self.wfile.write((content or b"")[:drop])
        if drop is not None:
            self.server.dropping.wait(60)
            self.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def server(monkeypatch):
    """Serves `files`; ends the next answer for a name in `drops` after so many bytes, once `dropping` is set."""
    monkeypatch.setattr(download, "RETRIES", 0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.requests, server.drops = {"table.csv": TABLE, "images.zip": ARCHIVE}, [], {}
    server.dropping, server.url = threading.Event(), f"http://127.0.0.1:{server.server_address[1]}"
    server.dropping.set()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


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
            RemoteFile(name, f"{server.url}/{name}", md5=hashlib.md5(content).hexdigest() if checksums else None)
            for name, content in files.items()
        ),
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refusal(dataset, folder, url=None):
    with pytest.raises(InputError) as caught:
        download_dataset(dataset, folder, url)
    return str(caught.value)


@pytest.mark.parametrize("checksums", [True, False])
def test_files_are_fetched_with_their_checksums_and_not_again(server, folder, checksums):
    for _ in range(2):
        download_dataset(published(server, checksums), folder)
        assert contents(folder) == server.files
        assert server.requests == ["table.csv", "images.zip"]


def test_a_file_that_changed_after_its_download_is_named_and_left(server, folder):
    download_dataset(published(server), folder)
    (folder / "table.csv").write_bytes(b"changed")
    assert f"{folder}/table.csv has the checksum" in refusal(published(server), folder)
    assert (folder / "table.csv").read_bytes() == b"changed"


@pytest.mark.parametrize(
    ("checksums", "name", "content", "expected"),
    [
        (True, "images.zip", ARCHIVE[:-1] + b"x", hashlib.md5(ARCHIVE).hexdigest()),
        (False, "images.zip", ARCHIVE[:900] + b"xxxx" + ARCHIVE[904:], "its member 'I000.jpg' is damaged"),
        (False, "images.zip", ARCHIVE[:900], "it is not a complete zip archive"),
        (False, "table.csv", b"\n<!DOCTYPE html>", "it is a web page"),
        (False, "table.csv", b"", "it is empty"),
    ],
    ids=["another checksum", "damaged", "cut off", "a web page", "empty"],
)
def test_other_bytes_than_the_published_ones_are_refused_and_removed(
    server, folder, checksums, name, content, expected
):
    right = server.files[name]
    server.files[name] = content
    message = refusal(published(server, checksums), folder)
    assert f"{server.url}/{name} is not" in message
    assert expected in message
    assert f"download it from https://example.org/page into {folder}, or name a mirror with --url" in message
    assert set(contents(folder)) == ({"table.csv"} if name == "images.zip" else set())
    server.files[name] = right
    download_dataset(published(server, checksums), folder)
    assert contents(folder) == server.files


def test_a_connection_that_drops_is_tried_again(server, folder, monkeypatch):
    monkeypatch.setattr(download, "RETRIES", 1)
    server.drops = {"images.zip": 500}
    download_dataset(published(server), folder)
    assert contents(folder) == server.files
    assert server.requests == ["table.csv", "images.zip", "images.zip"]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:9", "Connection refused"),
        ("{url}/elsewhere", "404"),
        ("ftp://127.0.0.1:9", ""),
        ("example.org", ""),
    ],
)
def test_a_server_that_has_nothing_is_named_with_what_to_do(server, folder, url, expected):
    url = url.format(url=server.url)
    message = refusal(published(server), folder, url)
    assert message.startswith(f"{url}/table.csv is not available (")
    assert expected in message
    assert "check the connection and run this again, or download it from https://example.org/page" in message
    assert "object at 0x" not in message
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "file").write_text("")
    assert f"{tmp_path}/file/data cannot be written" in refusal(published(server), tmp_path / "file/data")


def start(arguments, folder, prelude=""):
    """The command in a process of its own."""
    code = f"{prelude}\nfrom stages.commands.download import main\nfrom stages.launch import run\nrun(main)"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_download_leaves_no_half_file_and_starts_again(server, tmp_path):
    server.files = {file.name: TABLE if file.name.endswith("csv") else ARCHIVE for file in DATASETS["isic2019"].files}
    server.drops = {"ISIC_2019_Training_Input.zip": 500}
    server.dropping.clear()
    killed, data = start(["isic2019", "--url", server.url], tmp_path), tmp_path / "data/isic2019"
    while len(server.requests) < 3:
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    server.dropping.set()
    assert {path.name for path in data.glob("[!.]*")} == {*server.requests[:2]}
    again = start(["isic2019", "--url", f"{server.url}/"], tmp_path)
    out, err = again.communicate(timeout=60)
    assert (again.returncode, err) == (0, "")
    assert out.splitlines()[2].startswith("Licence: CC BY-NC 4.0")
    assert out.endswith("next: dvc add data/isic2019, then dvc exp run -S data.data_dir=data/isic2019\n")
    assert contents(data) == server.files


def test_a_disk_that_fills_up_is_named_and_leaves_nothing(server, tmp_path):
    """The limit on a file's size stands for the disk's: a write fails in the same way."""
    server.files = dict.fromkeys((file.name for file in DATASETS["isic2019"].files), ARCHIVE * 10)
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    full = start(["isic2019", "--url", server.url], tmp_path, limit)
    error = full.communicate(timeout=60)[1]
    assert full.returncode == 1
    assert "cannot be written: the disk is full" in error
    assert "Traceback" not in error
    assert os.listdir(tmp_path / "data/isic2019") == []  # noqa: PTH208


@pytest.mark.parametrize("name", DATASETS)
def test_the_list_names_every_file_with_its_address_and_downloads_nothing(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    download.main([name, "--list"])
    printed = capsys.readouterr().out
    assert "Licence: " in printed
    for file in DATASETS[name].files:
        assert file.url in printed
        assert (file.md5 or "no published checksum") in printed
    assert list(tmp_path.iterdir()) == []


def test_the_files_of_a_download_are_a_dataset(server, dataset, tmp_path, monkeypatch):
    """Tables as ISIC 2019 publishes them, and images in an archive."""
    metadata = "".join(f"{row['image_id']},{row['lesion_id']}\n" for row in dataset.rows)
    labels = ("nv", "mel", "bkl")
    truth = "".join(
        f"{row['image_id']},{','.join(str(float(row['dx'] == dx)) for dx in labels)}\n" for row in dataset.rows
    )
    server.files = {
        "ISIC_2019_Training_Metadata.csv": b"image,lesion_id\n" + metadata.encode(),
        "ISIC_2019_Training_GroundTruth.csv": b"image,NV,MEL,BKL\n" + truth.encode(),
        "ISIC_2019_Training_Input.zip": zipped({f"{image_id}.png": encoded(halves()) for image_id in dataset.ids}),
    }
    monkeypatch.chdir(tmp_path)
    download.main(["isic2019", "--url", server.url])
    manifest = prepare_dataset(replace(PLAIN.data, data_dir="data/isic2019", image_size=16), tmp_path / "prepared")
    assert list(manifest["dx"]) == [row["dx"] for row in dataset.rows]
    assert list(manifest["lesion_id"]) == [row["lesion_id"] for row in dataset.rows]
