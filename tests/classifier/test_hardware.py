"""What is recorded of a run, and the threads that it computes with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_info

from stages.arithmetic import has_avx2
from stages.classifier import hardware
from stages.classifier.hardware import (
    RESULT_AFFECTING_PACKAGES,
    describe_environment,
    describe_hardware,
    processor,
    set_up_device,
)
from stages.training.checkpoints import fingerprint

ROOT = Path(__file__).parents[2]
# Of requirements.in, what runs, stores, asks or shows, but computes nothing that an output holds.
WITHOUT_EFFECT = {
    "dvc",
    "dvc-s3",
    "filelock",
    "nvidia-ml-py",
    "optuna",
    "pooch",
    "psutil",
    "pydantic",
    "rich",
    "ruamel.yaml",
    "sqlalchemy",
    "submitit",
    "threadpoolctl",
    "typing-extensions",
}


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """An empty Git repository as the working directory, and a function that runs Git in it."""
    monkeypatch.chdir(tmp_path)
    author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]

    def git(*arguments):
        return subprocess.run(["git", *author, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    return git


def test_each_requirement_is_recorded_or_known_to_compute_nothing():
    lines = (ROOT / "requirements.in").read_text(encoding="utf-8").splitlines()
    required = {line.partition("==")[0].partition("[")[0] for line in lines if "==" in line}
    assert required == {*RESULT_AFFECTING_PACKAGES, *WITHOUT_EFFECT}
    assert describe_hardware().keys() > {*RESULT_AFFECTING_PACKAGES}


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs a system that tells, as Linux does")
def test_the_processor_is_named_as_its_maker_calls_it():
    assert processor() not in ("", os.uname().machine)
    assert processor() in Path("/proc/cpuinfo").read_text(encoding="utf-8")


def test_without_portable_arithmetic_processors_of_one_name_are_told_apart_by_their_instructions(monkeypatch):
    monkeypatch.setattr(hardware, "is_portable", lambda: False)
    here = describe_hardware()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    there = describe_hardware()
    assert there["cpu"] == here["cpu"]
    assert there != here


def test_the_commit_and_whether_code_or_parameters_changed_since(repository):
    environment = describe_environment()
    assert (environment["commit"], environment["dirty"]) == (None, None)  # nothing is committed yet
    Path("params.yaml").write_text("a: 1")
    Path("metrics").mkdir()
    Path("metrics/evaluation.json").write_text("1")
    repository("add", "--all")
    repository("commit", "--quiet", "--message", "one")
    # An output, which the pipeline itself writes.
    Path("metrics/evaluation.json").write_text("2")
    environment = describe_environment()
    assert (environment["commit"], environment["dirty"]) == (repository("rev-parse", "HEAD"), False)
    Path("params.yaml").write_text("a: 2")
    assert describe_environment()["dirty"] is True
    repository("checkout", "--quiet", "params.yaml")
    Path("stages").mkdir()
    Path("stages/new.py").touch()
    assert describe_environment()["dirty"] is True


def test_without_git_the_commit_is_unknown(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    environment = describe_environment()
    assert (environment["commit"], environment["dirty"]) == (None, None)


def test_outside_of_a_repository_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environment = describe_environment()
    assert (environment["commit"], environment["dirty"]) == (None, None)


def test_another_processor_is_another_training_only_where_it_computes_otherwise(repository, quick, monkeypatch):
    before = fingerprint(quick(), [])
    repository("commit", "--quiet", "--allow-empty", "--message", "one")  # another commit is not
    monkeypatch.setattr(hardware, "processor", lambda: "another")
    assert (fingerprint(quick(), []) == before) == has_avx2()
    monkeypatch.setattr(hardware, "is_portable", lambda: False)
    assert fingerprint(quick(), []) != before


SUMS = """
import hashlib
import numpy as np
from stages.classifier.hardware import set_up_device

set_up_device(2)
random = np.random.default_rng(0)
# As many images as a fold of HAM10000 has, and replicates of them; and more.
sums = [random.poisson(1, (500, images)).astype(float) @ random.random((images, 10)) for images in (1226, 5000)]
print(*(hashlib.md5(each.tobytes()).hexdigest() for each in sums))
"""


def test_sums_of_numpy_do_not_depend_on_the_threads_that_the_machine_offers(capsys):
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SUMS]
    one = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    exec(SUMS, {})  # here, where it offers all cores
    assert capsys.readouterr().out == one


def test_every_library_computes_with_the_threads_that_are_asked_for():
    before = {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}
    try:
        for threads in (3, 1):
            set_up_device(threads)
            assert {pool["num_threads"] for pool in threadpool_info()} == {threads}
    finally:
        hardware.threadpool_limits(max(before.values()))
