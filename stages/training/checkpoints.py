"""Checkpoints from which killed training resumes, to the same bits.

They lie in a folder that Git ignores and DVC does not know: DVC deletes a stage's outputs before it runs. The folder's
name is a fingerprint of all that the result depends on, so that training never resumes from another run's.
"""

import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.classifier.hardware import describe_hardware
from stages.config import Config
from stages.errors import DiskFullError, InputError, printable
from stages.files import replacing, sha256_of

CHECKPOINT = "last.ckpt"
KEYS = {"module", "optimizer", "scaler", "schedule", "progress", "best"}
# Of unfinished training runs: there may be a queue of them.
MAX_UNFINISHED = 10
# Besides these, all that were written to within this time: their runs may still be going on, and a finished network of
# an ensemble waits for the others.
STALE_AFTER_SECONDS = 24 * 60 * 60
# These have no effect on the result.
_WITHOUT_EFFECT = ("resume", "checkpoint_minutes", "profiler")
_AUGMENTATION = ("augment", "augment_strength", "acquisition_strength", "cutout", "mixup", "cutmix")


def checkpoint_folder(root: Path) -> Path:
    """Where checkpoints lie: in the folder that CHECKPOINT_DIR names, as on a disk that several machines share.

    Else, and if that is relative, in the main repository: a queued experiment's own copy is deleted when it fails.
    """
    return Path(os.environ.get("DVC_ROOT", ".")) / (os.environ.get("CHECKPOINT_DIR") or root)


def require_writable(folder: Path) -> None:
    """Create the folder of checkpoints, and check that files can be written there.

    Raises:
        InputError: they cannot, which would end the training when it saves its first checkpoint.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        if error.errno != errno.ENOSPC:  # there may be space by then
            reason = f"{error.strerror}); CHECKPOINT_DIR names another folder"
            raise InputError(f"checkpoints cannot be written in {folder} ({reason}") from None


def fingerprint(config: Config, inputs: Iterable[Path]) -> str:
    """A name for all that the result of training depends on: parameters, data, code, versions and hardware.

    Args:
        config: the parameters.
        inputs: the files that training reads, and folders of such files.
    """
    settings = {
        "training": {key: value for key, value in asdict(config.training).items() if key not in _WITHOUT_EFFECT},
        "model": asdict(config.model),
        "cpu_threads": config.runtime.cpu_threads,
        "data": {name: getattr(config.data, name) for name in _AUGMENTATION},
        "hardware": describe_hardware(),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    files = [file for path in inputs for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock
        for content in pool.map(sha256_of, [*loaded_code(), *files]):
            digest.update(content.encode())
    return digest.hexdigest()[:16]


def loaded_code() -> list[Path]:
    """The files of this pipeline's code that this process runs, whatever the name of their module: `__main__` too."""
    package = f"{Path(__file__).parents[1]}{os.sep}"
    files = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    return sorted(Path(file) for file in map(os.path.abspath, files) if file.startswith(package))


class Checkpoints:
    """The checkpoint of one training, replaced by each later one.

    A thread writes it to a temporary file while training goes on, and moves it into place once it is complete. If the
    disk is full, training goes on: no result depends on a checkpoint, the previous one stays, and there may be space
    for the next.

    Args:
        folder: of this training's fingerprint.
        minutes: between two checkpoints.

    Attributes:
        path: of the file.
        last_save_ok: whether there was space for the last one.
    """

    def __init__(self, folder: Path, minutes: float) -> None:
        self.path = folder / CHECKPOINT
        self.last_save_ok = True
        self._seconds = 60 * minutes
        self._saved_at = time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future | None = None

    def load(self) -> dict[str, Any] | None:
        """What was saved last; None if nothing was. Tensors, numbers and text only: no code.

        Raises:
            InputError: the file is damaged.
        """
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # of the archive, of what is pickled in it, of tensors: there is no list
            reason = printable(str(error).partition("\n")[0][:200])
        else:
            if isinstance(state, dict) and state.keys() == KEYS:
                return state
            reason = "it holds something else"
        raise InputError(f"{self.path} is not a checkpoint ({reason}); delete it, or set training.resume=false")

    def is_due(self) -> bool:
        """Whether the last one is old enough for the next."""
        return time.monotonic() - self._saved_at > self._seconds

    def save(self, state: dict[str, Any]) -> None:
        """Copy `state` to the CPU, and let a thread write it."""
        self.wait()
        self._saved_at = time.monotonic()
        self._writing = self._thread.submit(_write, _copied(state), self.path)

    def wait(self) -> None:
        """Until the last one is written."""
        if self._writing is not None:
            self.last_save_ok = self._writing.result()
            self._writing = None


def _copied(value: Any) -> Any:
    """`value` with the tensors in its dictionaries, lists and tuples copied to the CPU, as they lie in memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_copied, value))
    return value


def _write(state: dict[str, Any], path: Path) -> bool:
    """Whether there was space for it."""
    try:
        # Into an open file: where PyTorch opens it, its errors do not say why.
        with replacing(path) as partial, partial.open("wb") as file:
            torch.save(state, file)
    except DiskFullError as error:
        print(f"warning: no checkpoint: {error}; training goes on", flush=True)
        return False
    return True


def prune(root: Path, finished: Iterable[Path] = ()) -> None:
    """Delete the checkpoints of finished training runs, and all but the latest of unfinished ones."""
    for folder in finished:
        shutil.rmtree(folder, ignore_errors=True)
    with suppress(FileNotFoundError):  # there are none yet, or another training deletes them, too
        folders = sorted((path.stat().st_mtime, path) for path in root.iterdir() if path.is_dir())
        for written_at, folder in folders[:-MAX_UNFINISHED]:
            if time.time() - written_at > STALE_AFTER_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
