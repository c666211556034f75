"""`make s3`: what it prints works as printed, it keeps to this machine, asks for keys and ends cleanly."""

import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import psutil
import pytest

from stages.errors import InputError
from tests.clone import ENVIRONMENT, ROOT
from tests.s3_server import BUCKET, KEYS, check_free, s3_server

pytestmark = pytest.mark.xdist_group("storage")
SECONDS = 60  # of waiting for a process: a test that hangs says less than one that fails


@pytest.fixture
def start():
    """A function that starts the command; what still runs when the test ends is stopped."""
    started = []

    def run(folder, port: int) -> subprocess.Popen:
        command = [sys.executable, "-m", "tests.s3_server", "--folder", str(folder), "--port", str(port)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, cwd=ROOT, text=True, **pipes))
        return started[-1]

    yield run
    for process in started:
        process.terminate()
        process.communicate(timeout=SECONDS)


def test_the_printed_lines_work(start, s3_port, tmp_path):
    port = s3_port()
    server = start(tmp_path / "s3", port)
    printed = [server.stdout.readline() for _ in range(4)]
    assert f"S3 at http://127.0.0.1:{port}" in printed[0], server.communicate(timeout=SECONDS)
    clone = tmp_path / "clone"
    script = [
        "git init --quiet .",
        "dvc init --quiet",
        *printed[2:],
        "echo 1 > data",
        "dvc add --quiet data",
        "dvc push",
    ]
    clone.mkdir()
    done = subprocess.run(
        ["bash", "-e"], input="\n".join(script), cwd=clone, env=ENVIRONMENT, text=True, capture_output=True
    )
    assert "1 file pushed" in done.stdout, done.stderr
    assert "endpointurl" not in (clone / ".dvc/config").read_text()

    second = start(tmp_path / "other", port)
    message = second.communicate(timeout=SECONDS)[1]
    assert second.returncode == 1
    assert message.startswith(f"error: port {port} of 127.0.0.1 is not available")
    assert "--port" in message


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it(start, s3_port, tmp_path, end):
    port = s3_port()
    server = start(tmp_path / "s3", port)
    server.stdout.readline()
    server.send_signal(end)
    assert "stopped" in server.communicate(timeout=SECONDS)[0]
    assert server.returncode == 0
    check_free(port)


def test_it_listens_on_loopback_only_and_serves_nobody_without_keys(s3_port, tmp_path):
    with s3_server(tmp_path / "s3", s3_port()) as server:
        server.client().put_object(Bucket=BUCKET, Key="secret", Body=b"secret")
        addresses = psutil.Process(server.process.pid).net_connections(kind="tcp")
        ports = [address.laddr.port for address in addresses if address.status == psutil.CONN_LISTEN]
        assert int(server.endpoint.rpartition(":")[2]) in ports
        assert {address.laddr.ip for address in addresses} == {"127.0.0.1"}
        for port in ports:
            for path in (
                f"/{BUCKET}/secret",
                f"/buckets/{BUCKET}/secret",
                f"/buckets/{BUCKET}/?pretty=y",
                "/dir/assign",
            ):
                with pytest.raises((urllib.error.HTTPError, OSError)) as refusal:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5)
                assert getattr(refusal.value, "code", 400) >= 400
    assert (tmp_path / "s3" / KEYS).stat().st_mode & 0o077 == 0


def test_the_next_start_has_the_objects_and_the_keys_of_the_last(s3_port, tmp_path):
    folder = tmp_path / "s3"
    with s3_server(folder, s3_port()) as first:
        first.client().put_object(Bucket=BUCKET, Key="a", Body=b"1")
    with s3_server(folder, s3_port()) as second:
        assert second.environment == first.environment
        assert second.client().get_object(Bucket=BUCKET, Key="a")["Body"].read() == b"1"


def test_a_server_that_does_not_start_says_why(s3_port, tmp_path):
    (tmp_path / "objects").write_text("no folder")
    with pytest.raises(InputError, match="did not start; its log"), s3_server(tmp_path, s3_port()):
        pass


def test_a_port_that_another_program_has_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} of 127.0.0.1"):
            check_free(port)
