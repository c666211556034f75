"""A clone of this repository in which tests run DVC as its users do."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {
    **os.environ,
    # DVC runs `python`: it must be this one.
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    # Threads that wait for work must not take the other tests' processor.
    "OMP_WAIT_POLICY": "passive",
    "GIT_AUTHOR_NAME": "test",
    "GIT_AUTHOR_EMAIL": "test@example.org",
    "GIT_COMMITTER_NAME": "test",
    "GIT_COMMITTER_EMAIL": "test@example.org",
    "COLUMNS": "200",
    # timm imports Weights & Biases where it is installed: seconds of every stage, which users need not have.
    "PYTHONPATH": str(ROOT / "tests/without_wandb"),
}
# What makes a run short where only its course matters.
QUICK = {
    "model.name": "baseline_cnn",
    "model.variant": "null",
    "model.pretrained": "false",
    "training.max_epochs": "1",
    "data.image_size": "32",
}


class Clone:
    """A clone of this repository as it stands in the working tree, or of another clone.

    Args:
        folder: where to make it.
        origin: another clone.
        copied: a folder to copy instead, with all that DVC keeps there.

    Attributes:
        folder: where it is.
        environment: of the programs that run in it; may be changed.
    """

    status_before = ""

    def __init__(self, folder: Path, origin: "Clone | None" = None, copied: Path | None = None) -> None:
        self.folder, self.environment = folder, dict(ENVIRONMENT)
        if copied:
            shutil.copytree(copied, folder, symlinks=True, dirs_exist_ok=True)
            return
        if origin:
            self._git("clone", "--quiet", str(origin.folder), str(folder), cwd=ROOT)
            return
        files = self._git("ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT).split("\0")
        for name in filter(None, files):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        self._git("init", "--quiet", "--initial-branch=main")
        self.commit("as it stands")

    def _git(self, *arguments: str, cwd: Path | None = None) -> str:
        command = ["git", *arguments]
        return subprocess.run(
            command, cwd=cwd or self.folder, env=self.environment, check=True, text=True, capture_output=True
        ).stdout

    def commit(self, message: str) -> None:
        self._git("add", "--all")
        self._git("commit", "--quiet", "--allow-empty", "--message", message)

    def take_from_cache(self) -> None:
        """Copy what dvc.lock names and DVC keeps of it where these tests are."""
        hashes = re.compile(r"[0-9a-f]{32}(?:\.dir)?")
        pending = {*hashes.findall((self.folder / "dvc.lock").read_text(encoding="utf-8"))}
        while pending:
            name = pending.pop()
            path = Path(".dvc/cache/files/md5", name[:2], name[2:])
            if (ROOT / path).is_file():
                (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / path, self.folder / path)
                if name.endswith(".dir"):
                    pending |= {*hashes.findall((ROOT / path).read_text(encoding="utf-8"))}

    def changes(self) -> str:
        """What Git says has changed since the last commit."""
        return self._git("status", "--porcelain")

    def fails(self, *arguments: str) -> str:
        """Run DVC, which must fail, and return all that it printed."""
        done = self._dvc(*arguments)
        assert done.returncode != 0, done.stdout
        return done.stdout + done.stderr

    def dvc(self, *arguments: str) -> str:
        """Run DVC, which must succeed, and return its output."""
        done = self._dvc(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _dvc(self, *arguments: str) -> subprocess.CompletedProcess:
        process = self.start(*arguments)
        out, err = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start(self, *arguments: str) -> subprocess.Popen:
        """Start DVC and do not wait for its end."""
        command = [sys.executable, "-m", "dvc", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, text=True, stdout=pipe, stderr=pipe)

    def json(self, path: str) -> dict:
        return json.loads((self.folder / path).read_text(encoding="utf-8"))


def overrides(**parameters: str) -> list[str]:
    """`-S` options for `QUICK` and other parameters, whose dots are double underscores here."""
    chosen = QUICK | {name.replace("__", "."): value for name, value in parameters.items()}
    return [option for name, value in chosen.items() for option in ("-S", f"{name}={value}")]
