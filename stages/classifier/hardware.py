"""The device that computes, and what makes it compute the same bits again."""

import os
import platform
from importlib.metadata import version

import torch


def set_up_device(cpu_threads: int, deterministic: bool = True) -> torch.device:
    """Choose the first GPU where there is one, else the CPU, and fix what its results depend on.

    Args:
        cpu_threads: threads of one operation on a CPU; their number decides how sums are split, and so their last bits.
        deterministic: use only algorithms that give the same bits again.
    """
    torch.set_num_threads(cpu_threads)
    if deterministic:
        # Must be set before cuBLAS starts: its default workspaces are shared between streams.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = False  # it takes half a minute and gains nothing
    if deterministic:
        # Filling fresh memory shows a program that reads what it never wrote; on a CPU it costs 5 to 8 % of the speed.
        torch.utils.deterministic.fill_uninitialized_memory = False
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def describe_hardware() -> dict:
    """What a result may depend on beside code, data and parameters: the machine, and the versions of what computes."""
    return {
        "cpu": platform.processor() or platform.machine(),
        "cpu_cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "pytorch-lightning", "timm", "numpy")},
    }
