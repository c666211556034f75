"""Which of a processor's instructions compute: the same ones on every machine, or all that it has.

Libraries choose their kernels by the processor, and each kernel adds in an order of its own, so that last bits differ.
They look at the environment when they load: `stages/__init__.py` calls `choose_instructions` before anything loads one.
"""

import os
import platform
import re
from pathlib import Path

# Each is read by one library.
PORTABLE = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # oneDNN: convolutions and linear layers of PyTorch
    "MKL_CBWR": "COMPATIBLE",  # MKL: its other matrix products; with AVX2, those of AMD and Intel would differ
    "ATEN_CPU_CAPABILITY": "avx2",  # PyTorch's own kernels
    "OPENBLAS_CORETYPE": "Haswell",  # OpenBLAS: matrix products of NumPy and SciPy
    # NumPy's own loops, by the names since NumPy 2.4 and those before; it passes over the ones that it does not know.
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR",
}
# OpenMP's threads wait for the next piece of work in a loop of so many turns before they sleep. Its default of 300,000
# takes shared cores from those who compute; none at all wakes threads too late. benchmarks/README.md has the ratios.
SPIN = "1000"
# Not by a YAML parser, which takes longer to load than the rest of a command's `--help`; `config.py` checks the value.
_NATIVE = re.compile(r"^[^#\n]*\bcpu_instructions\W+native\b", re.MULTILINE)


def choose_instructions(params: Path = Path("params.yaml")) -> None:
    """Set the environment for `runtime.cpu_instructions`: `avx2`, also where there is no such file, or `native`."""
    text = params.read_text(encoding="utf-8", errors="replace") if params.is_file() else ""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN)
    if has_avx2() and not _NATIVE.search(text):
        os.environ.update(PORTABLE)
    else:  # a process that started this one may have chosen otherwise
        for name in [name for name, value in PORTABLE.items() if os.environ.get(name) == value]:
            del os.environ[name]


def is_portable() -> bool:
    """Whether this process computes with the instructions that every processor with AVX2 has."""
    return all(os.environ.get(name) == value for name, value in PORTABLE.items())


def has_avx2() -> bool:
    """Whether the processor has these instructions, as far as the system tells: x86 processors since 2013 do."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    cpuinfo = Path("/proc/cpuinfo")
    return not cpuinfo.is_file() or " avx2 " in cpuinfo.read_text(encoding="utf-8")
