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

    Each batch is read into pinned memory, from which the GPU copies by itself, on a stream of its own. PyTorch gives
    that memory to another batch once it is copied.

    Args:
        store: where they are read from.
        batches: rows of the store, each shape (n,).
        device: the GPU.
        threads: that read; None: one for each core, at most `MOST_THREADS`.

    Yields:
        uint8 of shape (n, size, size, 3), ready on the current stream.
    """
    threads = threads or min(MOST_THREADS, os.cpu_count() or 1)
    shape = store.image_size, store.image_size, 3
    copies = torch.cuda.Stream(device)

    def read(rows: np.ndarray) -> Tensor:
        images = torch.empty((len(rows), *shape), dtype=torch.uint8, pin_memory=True)
        store.read(rows, out=images.numpy())
        return images

    with ThreadPoolExecutor(threads, thread_name_prefix="read-ahead") as pool:
        reading: deque[Future[Tensor]] = deque(pool.submit(read, rows) for rows in batches[:READ_AHEAD])
        try:
            for number in range(len(batches)):
                with torch.cuda.stream(copies):
                    images = reading.popleft().result().to(device, non_blocking=True)
                computes = torch.cuda.current_stream(device)
                computes.wait_stream(copies)
                # Its memory must not be given to another tensor before the network has read it.
                images.record_stream(computes)
                reading.extend(pool.submit(read, rows) for rows in batches[number + READ_AHEAD :][:1])
                yield images
        finally:
            for each in reading:
                each.cancel()
