import os
import tempfile

import pytest

from stages import gpus


def test_each_stage_leases_gpus_of_its_own_and_waits_where_none_is_free(monkeypatch, capsys, tmp_path):
    """`seen` is what each of the stages that start one after another sees."""
    monkeypatch.setattr(gpus.pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(gpus.pynvml, "nvmlDeviceGetCount", lambda: 8)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    for name in ("LOCAL_RANK", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    stages, seen = [], []

    def start(count, **options):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
        monkeypatch.setattr(gpus, "_LEASES", [])
        gpus.lease_gpus(count, **options)
        seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
        stages.append(gpus._LEASES)

    start(1)
    start(2)
    start(1, wait=False)  # evaluate shares what there is
    assert seen == ["2", "5,7", "2,5,7"]
    monkeypatch.setattr(gpus.time, "sleep", lambda _: [lock.release() for lock in stages[1]])
    start(2)
    assert seen[-1] == "5,7"
    assert "waiting until 2 of 3 are free" in capsys.readouterr().out
    monkeypatch.setenv("SLURM_JOB_ID", "1")  # which counts its own GPUs from 0
    start(1)
    start(1)
    assert seen[-2:] == ["2", "5"]
    monkeypatch.setenv("LOCAL_RANK", "0")
    start(1)
    assert seen[-1] == "2,5,7"  # its launcher has chosen


@pytest.mark.parametrize(
    ("named", "visible"),
    [
        (None, ["0", "1"]),
        ("1,0", ["1", "0"]),
        ("0,2,1", ["0"]),
        ("", []),
        ("-1", []),
        ("GPU-8f3a,MIG-2b,NoDevFiles", ["GPU-8f3a", "MIG-2b"]),
    ],
)
def test_gpus_are_those_that_cuda_shows(monkeypatch, named, visible):
    monkeypatch.setattr(gpus.pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(gpus.pynvml, "nvmlDeviceGetCount", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert gpus.visible_gpus() == visible
