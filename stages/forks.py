"""Processes that are copies of this one: they start at once, and know what it knows."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from stages.errors import InputError
from stages.ranks import end_with


@contextmanager
def forked_processes(
    workers: int,
    start: Callable[..., None],
    *known: Any,
    killed: str = "a process was killed, perhaps for want of memory",
) -> Iterator[Executor]:
    """Processes on Linux, where starting them takes no time: threads would wait for each other at Python's lock.

    Elsewhere threads, and for one worker. A process that is forked has no other threads, but may have the locks that
    they hold: none should run yet, such as that of a progress bar.

    Args:
        workers: how many.
        start: what each does first, in a process or thread of its own.
        known: its arguments, which are not copied.
        killed: what to say if one of them was.

    Raises:
        InputError: one was killed.
    """
    try:
        if sys.platform != "linux" or workers == 1:
            with ThreadPoolExecutor(workers, initializer=start, initargs=known) as pool:
                yield pool
        else:
            with ProcessPoolExecutor(workers, get_context("fork"), _start, (os.getpid(), start, *known)) as pool:
                yield pool
    except BrokenExecutor:
        raise InputError(killed) from None


def _start(parent: int, start: Callable[..., None], *known: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    end_with(parent)
    start(*known)
