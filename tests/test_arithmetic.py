"""The instructions that the libraries compute with, as they themselves tell."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stages.arithmetic import PORTABLE, choose_instructions, has_avx2, is_portable

ROOT = Path(__file__).parent.parent
TELL = """
import stages
import numpy, torch
from threadpoolctl import threadpool_info
from numpy._core._multiarray_umath import __cpu_features__
import scipy.linalg
print("NumPy:", "AVX-512" if __cpu_features__["AVX512F"] and __cpu_features__.get("X86_V4", True) else "AVX2")
print("OpenBLAS:", {library["architecture"] for library in threadpool_info() if library["internal_api"] == "openblas"})
print("PyTorch:", torch.backends.cpu.get_cpu_capability())
torch.nn.functional.conv2d(torch.ones(2, 8, 32, 32), torch.ones(8, 8, 3, 3))
torch.ones(64, 64, dtype=torch.float64) @ torch.ones(64, 64, dtype=torch.float64)
"""


@pytest.fixture
def params_yaml(tmp_path):
    """A function that writes a params.yaml of one line below `runtime:` and gives its path."""

    def write(line):
        (tmp_path / "params.yaml").write_text(f"runtime:\n{line}\n  cpu_threads: 2\n", encoding="utf-8")
        return tmp_path / "params.yaml"

    return write


@pytest.mark.skipif(not has_avx2(), reason="needs AVX2 instructions")
def test_every_library_computes_with_the_instructions_that_all_processors_have(params_yaml):
    folder = params_yaml("  cpu_instructions: avx2").parent
    environment = {name: value for name, value in os.environ.items() if name not in PORTABLE}
    environment |= {"PYTHONPATH": str(ROOT), "ONEDNN_VERBOSE": "1", "MKL_VERBOSE": "1"}
    command = [sys.executable, "-c", TELL]
    said = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, check=True).stdout
    assert "NumPy: AVX2\n" in said
    assert "OpenBLAS: {'Haswell'}" in said
    assert "PyTorch: AVX2" in said
    assert re.search(r"onednn_verbose.*isa:Intel AVX2\n", said)
    assert re.search(r"MKL_VERBOSE DGEMM.* CNR:COMPATIBLE ", said)


@pytest.mark.skipif(not has_avx2(), reason="needs AVX2 instructions")
@pytest.mark.parametrize(
    ("line", "portable"),
    [
        ("  cpu_instructions: avx2   # or native", True),
        ("  # cpu_instructions: native", True),
        ("  cpu_instructions: native", False),
        ('  "cpu_instructions": "native"', False),
        ("  other: {cpu_instructions: native}", False),
    ],
)
def test_the_parameter_decides_whatever_the_process_before_had_chosen(params_yaml, monkeypatch, line, portable):
    for before in ({}, PORTABLE):
        for name in PORTABLE:
            monkeypatch.delenv(name, raising=False)
        for name, value in before.items():
            monkeypatch.setenv(name, value)
        choose_instructions(params_yaml(line))
        assert is_portable() == portable
        assert portable or not PORTABLE.keys() & os.environ.keys()


def test_what_the_user_says_of_waiting_threads_stays(params_yaml, monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    choose_instructions(params_yaml(""))
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    choose_instructions(params_yaml(""))
    assert os.environ["GOMP_SPINCOUNT"] == "7"
