"""The GPUs of this machine, each for one stage at a time; without PyTorch, which takes seconds to load."""

import os
import tempfile
import time
from itertools import takewhile
from pathlib import Path

import pynvml
from filelock import BaseFileLock

from stages.locks import try_lock
from stages.ranks import has_own_gpus

# Held until this process ends, however it ends.
_LEASES: list[BaseFileLock] = []


def lease_gpus(count: int, wait: bool = True) -> None:
    """Take `count` GPUs that no other stage on this machine has taken, and see no others from now on.

    So each of the experiments that run side by side, in a queue's workers or in several shells, gets GPUs of its own.
    Where srun or torchrun has started several processes, each has its GPU already. To be called before anything uses a
    GPU; what CUDA_VISIBLE_DEVICES names is chosen from, and in a job of SLURM, which counts its GPUs from 0, what no
    other stage of the job has taken.

    Args:
        count: how many; more than there are: all.
        wait: until that many are free; else this process shares those of others.
    """
    if _LEASES or has_own_gpus():
        return
    names = visible_gpus()
    said, job = False, os.environ.get("SLURM_JOB_ID", "")
    while names:
        leases = {}
        for name in names:
            path = Path(tempfile.gettempdir()) / f"skin-lesions-{os.getuid()}-gpu-{job}-{name}.lock"
            if len(leases) < min(count, len(names)) and (lock := try_lock(path)):
                leases[name] = lock
        if len(leases) == min(count, len(names)):
            _LEASES.extend(leases.values())
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(leases)
            return
        for lock in leases.values():
            lock.release()
        if not wait:
            return
        if not said:
            print(
                f"other stages use the GPUs of this machine: waiting until {count} of {len(names)} are free", flush=True
            )
        said = True
        time.sleep(1)


def visible_gpus() -> list[str]:
    """The GPUs that CUDA shows this process, by the names that CUDA_VISIBLE_DEVICES has or may have for them."""
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError:  # there is none of NVIDIA
        return []
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    # Like CUDA, up to the first that is not there; others than numbers are names of whole GPUs or of parts of one.
    return list(takewhile(lambda name: name and (name[0] in "GM" or (name.isdigit() and int(name) < count)), names))
