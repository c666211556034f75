"""The device that computes, and what makes it compute the same bits again."""

import os

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
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        # Filling fresh memory shows a program that reads what it never wrote; on a CPU it costs 5 to 8 % of the speed.
        torch.utils.deterministic.fill_uninitialized_memory = False
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
