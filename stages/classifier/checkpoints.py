"""Checkpoints from which a training that was killed goes on to the same bits.

They lie in a folder that Git ignores and DVC does not know: DVC deletes a stage's outputs before it runs. The folder's
name is a fingerprint of all that the result depends on, so that a training never goes on from another one's.
"""

import hashlib
import json
import os
import random
import re
import shutil
import sys
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed
from dvclive.lightning import DVCLiveLogger
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.utilities.exceptions import SIGTERMException

from stages.classifier.hardware import describe_hardware
from stages.classifier.packing import Packed, pack, unpack
from stages.classifier.step import STEPS_AHEAD
from stages.config import Config
from stages.errors import DiskFullError, InputError, printable
from stages.files import replacing, sha256_of
from stages.launch import is_first_process

CHECKPOINT = "last.ckpt"
_FILE_NAME = re.compile(r"\w[\w .-]{0,99}")
_KEYS = {"epoch", "batch", "steps", "module", "optimizer", "progress", "best", "early_stopping", "random", "metrics"}
# Of trainings that did not end: there may be a queue of them.
UNFINISHED_KEPT = 10
# Besides these, all that were written to within so many seconds: their trainings may be running, as many at a time as a
# sweep has workers, with a folder for each network of an ensemble. A training writes every few minutes; a network of an
# ensemble that has ended waits for the others, for hours.
SPARED_SECONDS = 24 * 60 * 60
# Batches after which several processes ask each other whether a checkpoint is due: their clocks differ. They wait for
# the answer.
AGREE_EVERY = 50
# Between two checkpoints, where the later one is behind an epoch: packing it takes the time of a step, in which the GPU
# has nothing to do, and several processes wait for each other.
EPOCH_SECONDS = 5.0
# What changes nothing in the result.
_WITHOUT_EFFECT = ("resume", "checkpoint_minutes")


def checkpoint_folder(root: Path) -> Path:
    """Where checkpoints lie: in the main repository, for a queued experiment's own copy is deleted when it fails."""
    return Path(os.environ.get("DVC_ROOT", ".")) / root


def fingerprint(config: Config, inputs: Iterable[Path]) -> str:
    """A name for all that a training's result depends on: parameters, data, code, versions and hardware.

    Args:
        config: the parameters.
        inputs: the files that training reads, and folders of such files.
    """
    training = {name: value for name, value in asdict(config.training).items() if name not in _WITHOUT_EFFECT}
    names = ("augment", "augment_strength", "cutout", "mixup", "cutmix")
    augmentation = {name: getattr(config.data, name) for name in names}
    settings = {"training": training, "model": asdict(config.model), "data": augmentation}
    settings |= {"threads": config.runtime.cpu_threads, "on": describe_hardware()}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    modules = sorted((name, module.__file__) for name, module in sys.modules.items() if name.startswith("stages."))
    code = [Path(file) for _, file in modules if file]
    files = [file for path in inputs for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock
        for content in pool.map(sha256_of, code + files):
            digest.update(content.encode())
    return digest.hexdigest()[:16]


class Best(NamedTuple):
    """The epoch with the lowest `training.monitor` so far.

    Attributes:
        epoch: from 0.
        val_loss: the monitored validation loss of it.
        weights: of the network that is kept.
    """

    epoch: int
    val_loss: float
    weights: dict[str, torch.Tensor]


class Checkpoints(Callback):
    """Keeps the best weights, and all that is needed to go on, behind epochs and every few minutes.

    A checkpoint holds the weights and their average, the optimizer, the learning rate, the random numbers of every
    library and process, the place in the epoch, the best weights, early stopping, and DVCLive's files. It is written
    aside, while training goes on, and put in its place when it is whole. Where the disk is full, training goes on: no
    result depends on a checkpoint, the one before stays, and there may be space for the next.

    Args:
        folder: of this training's fingerprint.
        metrics: folder of DVCLive.
        minutes: between two checkpoints inside an epoch; behind an epoch, `EPOCH_SECONDS` or these, whichever is less.
        resume: go on from the folder's checkpoint, if it has one.
        monitor: name of the validation loss that is lowest in the best epoch.

    Raises:
        InputError: the checkpoint is damaged.

    Attributes:
        best: None before the first validation.
        resumed: the epoch, from 0, and the batch that training went on with; None if it started anew.
        written: whether there was space for the last checkpoint.
        holds: the epoch, from 0, and the batch with which the last checkpoint goes on; None if there is none.
    """

    def __init__(
        self, folder: Path, metrics: Path, minutes: float, resume: bool = True, monitor: str = "val_loss"
    ) -> None:
        self.path = folder / CHECKPOINT
        self._monitor = monitor
        self.best: Best | None = None
        self.resumed: tuple[int, int] | None = None
        self.written = True
        self._metrics, self._minutes = metrics, minutes
        self._opened: int | None = None
        self.holds: tuple[int, int] | None = None
        self._saved_at = time.monotonic()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._packed: Packed | None = None
        self._writing: Future | None = None
        self._state: dict | None = None
        self._last_curves: dict[str, str] = {}
        if resume and self.path.exists():
            self._state = _read(self.path)
            self._last_curves = _curves(self._state["metrics"])
            self.resumed = self.holds = (self._state["epoch"], self._state["batch"])

    def restore_metrics(self) -> bool:
        """Put DVCLive's files back as they were; whether there is anything to go on from."""
        if self._state is None:
            return False
        if not is_first_process():
            return True
        # What was logged behind the checkpoint is logged again.
        shutil.rmtree(self._metrics, ignore_errors=True)
        for name, text in self._state["metrics"].items():
            with replacing(self._metrics / name) as partial:
                partial.write_text(text, encoding="utf-8", newline="")
        return True

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Make the interrupted epoch the next one that Lightning starts."""
        if trainer.is_global_zero:
            self._metrics.mkdir(parents=True, exist_ok=True)
            self._opened = os.open(self._metrics, os.O_RDONLY)
        if self._state is None:
            return
        epoch, batch = self.resumed
        loop = trainer.fit_loop
        for name in ("ready", "started", "processed", "completed"):
            setattr(loop.epoch_progress.current, name, epoch)
        loop.epoch_loop._batches_that_stepped = epoch * trainer.num_training_batches
        steps = loop.epoch_loop.manual_optimization.optim_step_progress.total
        steps.ready = steps.completed = self._state["steps"]
        # The batches that were trained on come as None, which Lightning passes over; nor are they validated again.
        trainer.train_dataloader.skip = batch
        self._val_check_batch = trainer.val_check_batch
        trainer.val_check_batch = float("inf") if batch else self._val_check_batch

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self._state is None:
            self._check_place(trainer)
            # Now, since the last epoch's metrics are logged behind its end.
            if trainer.current_epoch and self._is_due(trainer, min(EPOCH_SECONDS, 60 * self._minutes)):
                self.save(trainer, module, trainer.current_epoch, 0, later=module.device.type == "cuda")
            return
        self._restore(trainer, module, self._state)
        if self._state["batch"] == 0:
            self._state = None

    def _restore(self, trainer: Trainer, module: LightningModule, state: dict) -> None:
        module.load_state_dict(state["module"])
        optimizer = module.optimizers(use_pl_optimizer=False)
        rates = [group["lr"] for group in optimizer.param_groups]
        optimizer.load_state_dict(state["optimizer"])
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate  # the tensor that a captured step reads
        module.restore(state["progress"], in_epoch=state["batch"] > 0)
        self.best = None if state["best"] is None else Best(*state["best"])
        _early_stopping(trainer).load_state_dict(state["early_stopping"])
        _set_random_state(state["random"][trainer.global_rank], module.device)

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch, batch_idx: int) -> None:
        if self._state is not None:
            trainer.val_check_batch = self._val_check_batch
            trainer.train_dataloader.skip = 0
            self._state = None

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs, batch, batch_idx: int) -> None:
        # Not before the GPU has enough to do: writing takes Python's lock from the thread that launches its steps.
        if batch_idx + 1 >= STEPS_AHEAD or trainer.is_last_batch:
            self._write()
        # A batch with a validation behind it is not over yet.
        in_between = batch is not None and (batch_idx + 1) % trainer.val_check_batch and not trainer.is_last_batch
        in_turn = trainer.world_size == 1 or (batch_idx + 1) % AGREE_EVERY == 0
        if in_between and in_turn and self._is_due(trainer, 60 * self._minutes):
            self.save(trainer, module, trainer.current_epoch, batch_idx + 1)

    def _is_due(self, trainer: Trainer, seconds: float) -> bool:
        """Whether the last checkpoint is so many seconds old; several processes agree on it, since all take part."""
        due = time.monotonic() - self._saved_at > seconds
        return due if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(due, all=False)

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        val_loss = trainer.callback_metrics[self._monitor].item()
        if self.best is None or val_loss < self.best.val_loss:
            weights = {name: tensor.clone() for name, tensor in module.kept.state_dict().items()}
            self.best = Best(trainer.current_epoch, val_loss, weights)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SIGTERMException):
            done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
            ended = done >= trainer.num_training_batches
            self.save(trainer, module, trainer.current_epoch, 0 if ended else done)
        self._write()
        self._wait()

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._wait()

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if self._opened is not None:
            os.close(self._opened)
            self._opened = None

    def save(self, trainer: Trainer, module: LightningModule, epoch: int, batch: int, later: bool = False) -> None:
        """Write a checkpoint from which training goes on.

        Args:
            trainer: Lightning's.
            module: what it trains.
            epoch: with which training goes on, from 0.
            batch: of that epoch, from 0.
            later: pack it only, for `_write`.

        Raises:
            InputError: DVCLive's folder was deleted; what is there lacks what was logged before.
        """
        states = [_random_state(module.device)]
        if trainer.world_size > 1:
            states = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, _random_state(module.device))
        self._saved_at, self.holds = time.monotonic(), (epoch, batch)
        if not trainer.is_global_zero:
            return
        self._check_place(trainer)
        state = {
            "epoch": epoch,
            "batch": batch,
            "steps": trainer.global_step,
            "module": module.state_dict(),
            "optimizer": module.optimizers(use_pl_optimizer=False).state_dict(),
            "progress": module.progress(),
            "best": None if self.best is None else tuple(self.best),
            "early_stopping": _early_stopping(trainer).state_dict(),
            "random": states,
            "metrics": self._logged(trainer),
        }
        self._packed = pack(state)
        if not later:
            self._write()

    def _logged(self, trainer: Trainer) -> dict[str, str]:
        """DVCLive's files by their names, up to what was logged last.

        Raises:
            InputError: a curve is not the one of the last checkpoint with more rows: its folder is just being deleted.
        """
        paths = [path for path in self._metrics.rglob("*") if path.is_file()]
        files = {path.relative_to(self._metrics).as_posix(): path.read_text("utf-8") for path in paths}
        if not all(files.get(name, "").startswith(text) for name, text in self._last_curves.items()):
            raise self._deleted()
        self._last_curves = _curves(files)
        live = next(logger.experiment for logger in trainer.loggers if isinstance(logger, DVCLiveLogger))
        if live.summary:
            # DVCLive writes it at the end of an epoch only. To make it write now would put its keys in another order.
            files[Path(live.metrics_file).name] = json.dumps(live.summary, default=float)
        return files

    def _write(self) -> None:
        """Let what is packed, if anything is, be written while training goes on."""
        if self._packed is not None:
            self._wait()
            self._writing, self._packed = self._writer.submit(_write, self._packed, self.path), None

    def _check_place(self, trainer: Trainer) -> None:
        """Raise an InputError if DVCLive's folder is not the one that was there at the start."""
        if not trainer.is_global_zero:
            return
        try:
            # No other folder can get the number of one that is open.
            in_place = os.path.samestat(os.fstat(self._opened), self._metrics.stat())
        except FileNotFoundError:
            in_place = False
        if not in_place:
            raise self._deleted()

    def check_deleted(self, error: Exception) -> None:
        """Raise an InputError if an error comes from DVCLive's folder being deleted while a file of it was in use."""
        missing = error.filename if isinstance(error, FileNotFoundError) else None
        if missing is not None and Path(missing).is_relative_to(self._metrics):
            raise self._deleted() from None

    def _deleted(self) -> InputError:
        return InputError(
            f"{self._metrics} was deleted while training wrote to it, as by another `dvc repro`; this training ends, "
            f"and that one goes on from the last checkpoint in {self.path.parent}, if there is one"
        )

    def _wait(self) -> None:
        if self._writing is not None:
            self.written = self._writing.result()
            self._writing = None


def _early_stopping(trainer: Trainer) -> EarlyStopping:
    return next(callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping))


def _write(state: Packed, path: Path) -> bool:
    """Whether there was space for it."""
    if state.ready is not None:
        state.ready.synchronize()
    try:
        # Into an open file: where PyTorch opens it, its errors do not say why.
        with replacing(path) as partial, partial.open("wb") as file:
            torch.save(state.content, file)
    except DiskFullError as error:
        print(f"warning: no checkpoint: {error}; training goes on", flush=True)
        return False
    return True


def _read(path: Path) -> dict:
    """A checkpoint; no code: tensors, numbers and text only.

    Raises:
        InputError: it is none that `Checkpoints` writes.
    """
    try:
        state = unpack(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # of the archive, of what is pickled in it, and of tensors: there is no list of them
        reason = printable(str(error).partition("\n")[0][:200])
    else:
        files = state.get("metrics") if isinstance(state, dict) and state.keys() == _KEYS else None
        if isinstance(files, dict) and all(map(_is_metrics_file, files.items())):
            return state
        reason = "it holds something else"
    raise InputError(f"{path} is no checkpoint ({reason}); delete it, or set training.resume=false")


def _curves(files: dict[str, str]) -> dict[str, str]:
    """Those of DVCLive's files that only grow."""
    return {name: text for name, text in files.items() if name.endswith(".tsv")}


def _is_metrics_file(item: tuple[object, object]) -> bool:
    """Whether these are a path below a folder and a text to write there."""
    name, text = item
    parts = name.split("/") if isinstance(name, str) else []
    return bool(parts) and isinstance(text, str) and all(_FILE_NAME.fullmatch(part) for part in parts)


def _random_state(device: torch.device) -> dict:
    kind, words, position, has_gauss, gauss = np.random.get_state()
    version, numbers, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": (kind, torch.from_numpy(words.astype(np.int64)), position, has_gauss, gauss),
        "python": (version, torch.tensor(numbers), gauss_next),
    }


def _set_random_state(state: dict, device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    kind, words, *rest = state["numpy"]
    np.random.set_state((kind, words.numpy().astype(np.uint32), *rest))
    version, numbers, gauss_next = state["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss_next))


def prune(root: Path, finished: Path | None = None) -> None:
    """Delete the checkpoints of a training that ended, and of those that did not all but the latest."""
    if finished is not None:
        shutil.rmtree(finished, ignore_errors=True)
    if root.is_dir():
        folders = sorted((_written_at(path), path) for path in root.iterdir() if path.is_dir())
        for written_at, folder in folders[:-UNFINISHED_KEPT]:
            if time.time() - written_at > SPARED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _written_at(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:  # another training has just deleted it
        return 0.0
