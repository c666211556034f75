"""Locks between processes, also on shared disks that have none."""

import errno
import time
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout


def try_lock(path: Path) -> BaseFileLock | None:
    """Take a lock unless another process has it: until the object is released or gone, or the process ends.

    Where the file system has no locks, as NFS without its lock service (ENOLCK), Lustre without its option for them
    (ENOSYS) and some others (EOPNOTSUPP), a file that exists is the lock: one whose process has ended is taken over on
    the same machine, but not on another, which cannot know.

    Args:
        path: of the lock, in a folder that exists.
    """
    lock: BaseFileLock = FileLock(path, fallback_to_soft=False)
    try:
        try:
            lock.acquire(blocking=False)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            lock = SoftFileLock(existing(path))
            lock.acquire(blocking=False)
    except Timeout:
        return None
    return lock


def wait_for_lock(path: Path, message: str) -> BaseFileLock:
    """Take a lock; if another process has it, say so first and wait."""
    if (lock := try_lock(path)) is not None:
        return lock
    print(f"{message}{hint(path)}", flush=True)
    while (lock := try_lock(path)) is None:
        time.sleep(0.2)
    return lock


def hint(path: Path) -> str:
    """What to do about a lock that nobody will release; empty where the file system does."""
    marker = existing(path)
    return f" (a disk without locks: if the machine that held it has died, delete {marker})" if marker.exists() else ""


def existing(path: Path) -> Path:
    """The file that is the lock where there is no other."""
    return path.with_name(f"{path.name}.held")
