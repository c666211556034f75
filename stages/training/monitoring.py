"""What is shown of training while it runs: losses that nobody waits for, its speed, and one line per epoch or a bar."""

import sys
import time
from collections import deque
from typing import Any, NamedTuple

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

# How far Python may run ahead of the GPU: what it does meanwhile costs no time if it takes less than these steps.
MAX_IN_FLIGHT = 16


class StepLoss(NamedTuple):
    """What is known of a step that was taken.

    Attributes:
        epoch: counted from 0.
        batch: of the epoch, counted from 0.
        step: of training, counted from 0.
        rate: its learning rate.
        loss: its mean loss.
    """

    epoch: int
    batch: int
    step: int
    rate: float
    loss: float = float("nan")


class AsyncLossQueue:
    """The losses of the steps, read a few steps late, so that nobody waits for the GPU and it never waits for Python.

    Args:
        max_pending: how many steps the GPU may lag behind.
    """

    def __init__(self, max_pending: int = MAX_IN_FLIGHT) -> None:
        self._max_pending = max_pending
        self._pending: deque[tuple[StepLoss, Tensor, Any]] = deque()

    def put(self, step: StepLoss, loss: Tensor) -> list[StepLoss]:
        """Take the loss of a step; the steps, in order, whose losses are known by now."""
        if loss.device.type == "cuda":
            copied = torch.empty((), pin_memory=True).copy_(loss, non_blocking=True)
            event = torch.cuda.current_stream(loss.device).record_event()
        else:
            copied, event = loss, None
        self._pending.append((step, copied, event))
        return self._take(self._max_pending if event is not None else 0)

    def drain(self) -> list[StepLoss]:
        """Wait for the GPU; the remaining steps."""
        return self._take(0)

    def _take(self, left: int) -> list[StepLoss]:
        known = []
        while len(self._pending) > left:
            step, loss, event = self._pending.popleft()
            if event is not None:
                event.synchronize()
            known.append(step._replace(loss=loss.item()))
        return known


class Throughput:
    """Images per second of an epoch, validation and checkpoints left out.

    Args:
        device: that computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._images, self._seconds = 0, 0.0
        self._start: float | None = None

    def count(self, images: int) -> None:
        """Note that a step over this many images is about to be launched."""
        if self._start is None:
            self._start = time.perf_counter()
        self._images += images

    def pause(self) -> None:
        """Stop the clock until the next step."""
        if self._start is not None:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self._seconds += time.perf_counter() - self._start
            self._start = None

    def of_epoch(self) -> tuple[float, int]:
        """That of the epoch that ends now, and how many images it is of: fewer, if training was resumed in it."""
        self.pause()
        speed, images = self._images / max(self._seconds, 1e-9), self._images
        self._images, self._seconds = 0, 0.0
        return speed, images


class Display:
    """A progress bar where there is a terminal, and a line for each epoch where there is none.

    Args:
        epochs: of the training.
        batches: of an epoch.
        shown: whether this process shows anything.
    """

    def __init__(self, epochs: int, batches: int, shown: bool) -> None:
        self._epochs, self._shown = epochs, shown
        self._bar = None
        if shown and sys.stdout.isatty():
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            # It redraws on its own clock: drawing takes longer than launching a step.
            self._bar = Progress(*columns)
            self._task = self._bar.add_task("", total=epochs * batches)
            self._bar.start()

    def advance(self, epoch: int, step: int) -> None:
        """Show the number of steps taken, and the epoch, counted from 0."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=f"epoch {epoch + 1}/{self._epochs}")

    def end_epoch(self, metrics: dict[str, float], images_per_second: float, images: int, seconds: float) -> None:
        """Print the metrics of an epoch, among them `epoch`, counted from 1."""
        if self._shown:
            numbers = " ".join(f"{name} {value:.4g}" for name, value in sorted(metrics.items()) if name != "epoch")
            position = f"epoch {metrics['epoch']}/{self._epochs}"
            speed = f"{images} images at {images_per_second:.0f}/s; {seconds:.1f} s with validation"
            line = f"{position} {numbers} ({speed})"
            print(line, flush=True) if self._bar is None else self._bar.console.print(line, highlight=False)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
