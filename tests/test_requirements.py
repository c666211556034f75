"""What `make` installs: the files whose hashes are in requirements*.txt, and no others."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.clone import ENVIRONMENT, ROOT

# Stubs in place of the real packages: of the one that is installed first, the pipeline's, and the tests'.
PACKAGES = {"uv": "requirements-dev.txt", "pipeline": "requirements.txt", "tests": "requirements-dev.txt"}


@pytest.fixture
def install(tmp_path):
    """A function that installs all with other lines for the packages: what make did, and what is installed then."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    subprocess.run([sys.executable, "-m", "virtualenv", "--quiet", tmp_path / "venv"], check=True)
    lines = {}
    for name in PACKAGES:
        wheel = tmp_path / f"{name}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"{name}_stub.py", "")
            archive.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            archive.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
        lines[name] = f"{name}==1.0 \\\n    --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"
    environment = ENVIRONMENT | {"PIP_CONFIG_FILE": os.devnull, "UV_CACHE_DIR": str(tmp_path / "cache")}
    environment["PYTHONDONTWRITEBYTECODE"] = ""  # pip is started six times
    environment |= {f"{tool}_NO_INDEX": "1" for tool in ("PIP", "UV")}
    environment |= {f"{tool}_FIND_LINKS": str(tmp_path) for tool in ("PIP", "UV")}

    def run(**changes):
        for path in set(PACKAGES.values()):
            text = "".join((lines | changes)[name] for name in PACKAGES if PACKAGES[name] == path)
            (tmp_path / path).write_text(text)
        done = subprocess.run(
            ["make", "VENV=venv", "venv/installed-dev"],
            cwd=tmp_path, env=environment, text=True, capture_output=True, check=False,
        )  # fmt: skip
        stubs = tmp_path.glob("venv/lib/*/site-packages/*_stub.py")
        return done, {path.name.removesuffix("_stub.py") for path in stubs}

    return run


def test_only_packages_with_the_pinned_hashes_are_installed(install):
    flipped = " --hash=sha256:" + 64 * "0" + "\n"
    done, installed = install(uv="uv==1.0" + flipped)
    assert (done.returncode, installed) == (2, set()), done.stdout + done.stderr
    assert "DO NOT MATCH THE HASHES" in done.stderr

    done, installed = install(pipeline="pipeline==1.0" + flipped)
    assert (done.returncode, installed) == (2, {"uv"}), done.stdout + done.stderr
    assert "Hash mismatch" in done.stderr  # says uv, and so does pip, which is tried after it
    assert "DO NOT MATCH THE HASHES" in done.stderr

    # One hash in a file would have pip demand all; uv is installed by now.
    done, installed = install(uv="uv==1.0 \\\n    ; python_version > '3'\n", tests="tests==1.0\n")
    assert (done.returncode, installed) == (2, {"uv", "pipeline"}), done.stdout + done.stderr
    assert "Hashes are required" in done.stderr

    done, installed = install()
    assert (done.returncode, installed) == (0, set(PACKAGES)), done.stdout + done.stderr
