"""Images for a GPU whose memory does not hold them all: read ahead by threads, copied while the GPU computes."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from stages.dataset.pixels import PixelStore

READ_AHEAD = 6  # batches: enough to bridge a slow read, and no more memory than these
MOST_THREADS = 8


def stream(
    store: PixelStore, batches: list[np.ndarray], device: torch.device, threads: int | None = None
) -> Iterator[Tensor]:
    """The images of each batch on a GPU, in order.

    Each batch is read into pinned memory, from which the GPU copies by itself, on a stream of its own.

    Args:
        store: where they are read from.
        batches: rows of the store, each shape (n,).
        device: the GPU.
        threads: that read; None: one for each core, at most `MOST_THREADS`.

    Yields:
        uint8 of shape (n, size, size, 3), ready on the current stream.
    """
    threads = threads or min(MOST_THREADS, os.cpu_count() or 1)
    largest = max((len(rows) for rows in batches), default=0)
    side = store.image_size
    copies = torch.cuda.Stream(device)
    free = [torch.empty((largest, side, side, 3), dtype=torch.uint8, pin_memory=True) for _ in range(READ_AHEAD)]
    copied: dict[int, torch.Event] = {}  # by buffer: when the GPU has taken what was in it
    pending: deque[tuple[Future, Tensor, int]] = deque()

    def read(rows: np.ndarray, buffer: int) -> None:
        if buffer in copied:
            copied[buffer].synchronize()
        store.read(rows, out=free[buffer][: len(rows)].numpy())

    with ThreadPoolExecutor(threads, thread_name_prefix="read-ahead") as pool:
        try:
            for number in range(len(batches) + READ_AHEAD):
                ready = None
                if number >= READ_AHEAD:
                    reading, images, buffer = pending.popleft()
                    reading.result()
                    with torch.cuda.stream(copies):
                        ready = images.to(device, non_blocking=True)
                        copied[buffer] = copies.record_event()
                    torch.cuda.current_stream(device).wait_stream(copies)
                    # Its memory must not be given to another tensor before the network has read it.
                    ready.record_stream(torch.cuda.current_stream(device))
                if number < len(batches):
                    buffer = number % READ_AHEAD  # the one that has just been copied
                    images = free[buffer][: len(batches[number])]
                    pending.append((pool.submit(read, batches[number], buffer), images, buffer))
                if ready is not None:
                    yield ready
        finally:
            for reading, _, _ in pending:
                reading.cancel()
