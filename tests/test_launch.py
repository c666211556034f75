import errno
import getpass
import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from stages.errors import InputError
from stages.launch import LOCK, run, run_stage

ROOT = Path(__file__).parents[1]
STAGE = "from stages.launch import run_stage; run_stage(lambda: print('ran'), 'a stage')"


def start(code=STAGE, *arguments, stderr=None, **environment):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A folder that DVC knows, as the working directory."""
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)


def test_a_mistake_ends_a_command_with_its_message_and_status_1():
    def mistake():
        raise InputError("params.yaml: wrong")

    with pytest.raises(SystemExit, match=r"^error: params\.yaml: wrong$"):
        run(mistake)


def test_an_experiment_in_a_folder_below_dvc_tells_no_way_back(tmp_path, monkeypatch):
    """As that of a queue, or of a job on a cluster, whose log its user reads elsewhere."""
    clone = tmp_path / ".dvc/tmp/jobs/1/clone"
    clone.mkdir(parents=True)
    monkeypatch.setenv("DVC_EXP_NAME", "tuned")

    def mistake():
        raise InputError("wrong")

    for folder, message in ((clone, "^error: wrong$"), (tmp_path, "wrong\n.*`git checkout")):
        monkeypatch.chdir(folder)
        monkeypatch.setenv("DVC_ROOT", str(folder))
        with pytest.raises(SystemExit, match=message):
            run(mistake)


def test_it_prints_where_the_terminal_lacks_letters(repository):
    assert start(STAGE.replace("ran", "ran …"), PYTHONIOENCODING="ascii").communicate(timeout=60)[0] == "ran ?\n"


def test_a_user_may_be_a_bare_number(monkeypatch):
    """As in a container that is started with another one; DVC asks for a name."""

    def unknown(number):
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(os, "environ", {})
    run(lambda: None)
    assert getpass.getuser() == str(os.getuid())


def test_python_does_not_search_for_cycles_when_a_stage_has_ended(repository):
    """It takes seconds where PyTorch is loaded."""
    count = "import atexit, gc; atexit.register(lambda: print(len(gc.get_objects()) < 100)); "
    assert start(count + STAGE).communicate(timeout=60)[0] == "ran\nTrue\n"


def test_a_stage_waits_until_another_in_its_folder_has_ended(repository):
    LOCK.parent.mkdir()
    with FileLock(LOCK):
        waiting = start()
        assert "another stage is running in this folder" in waiting.stdout.readline()
        assert waiting.poll() is None
    assert waiting.communicate(timeout=60)[0] == "ran\n"


def test_ctrl_c_ends_the_waiting_without_a_traceback(repository):
    LOCK.parent.mkdir()
    with FileLock(LOCK):
        waiting = start(stderr=subprocess.PIPE)
        assert "another stage is running in this folder" in waiting.stdout.readline()
        waiting.send_signal(signal.SIGINT)
        assert waiting.communicate(timeout=60) == ("", "")
    assert waiting.returncode == 130


def test_a_full_disk_is_told_from_other_errors(tmp_path):
    def fill():
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "a.txt")
        except OSError as error:
            raise RuntimeError("unexpected pos") from error  # as PyTorch does

    with pytest.raises(
        SystemExit, match=r"^error: a\.txt cannot be written: the disk is full \(No space left on device\); "
    ):
        run(fill)
    with pytest.raises(IsADirectoryError):
        run(tmp_path.read_bytes)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_file_that_may_not_be_written_is_named(number):
    """As in a container that has its repository read-only."""

    def write():
        raise OSError(number, os.strerror(number), ".dvc/tmp/sweep.lock")

    with pytest.raises(SystemExit, match=r"^error: \.dvc/tmp/sweep\.lock may not be read or written here \("):
        run(write)


def test_a_stage_that_was_killed_does_not_block_the_next(repository):
    killed = start(STAGE.replace("print('ran')", "(print('on', flush=True), __import__('time').sleep(60))"))
    assert killed.stdout.readline() == "on\n"
    killed.kill()
    killed.communicate()
    assert start().communicate(timeout=60)[0] == "ran\n"


def test_processes_that_train_together_do_not_wait_for_each_other(repository, monkeypatch):
    monkeypatch.setenv("NODE_RANK", "1")
    monkeypatch.setattr(sys, "argv", ["train.py"])
    ran = []
    LOCK.parent.mkdir()
    with FileLock(LOCK):
        run_stage(lambda: ran.append("a stage"), "a stage", lambda: ran.append("others"))
        assert ran == ["others", "a stage"]
        # Another program may take the place of the first, which has no lock then: one of those it starts takes it.
        monkeypatch.delenv("NODE_RANK")
        first = start(STAGE.replace("'a stage'", "'a stage', lambda: print('others', flush=True)"))
        assert first.stdout.readline() == "others\n"
        assert "another stage is running in this folder" in first.stdout.readline()
        first.kill()


def test_a_stage_that_is_one_process_refuses_to_be_several(repository, monkeypatch):
    srun = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
    for name, value in (srun | {"SLURM_NTASKS_PER_NODE": "4"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["split.py"])
    message = "^error: SLURM started 4 processes, but this stage is a single one: run `dvc repro` once"
    with pytest.raises(SystemExit, match=message):
        run_stage(lambda: pytest.fail("it ran"), "a stage")


def test_without_a_repository_there_is_nothing_to_lock(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert start().communicate(timeout=60)[0] == "ran\n"
    assert list(tmp_path.iterdir()) == []


def test_a_stage_asked_for_help_or_given_an_argument_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = start(STAGE, "--help").communicate(timeout=60)[0]
    assert "a stage" in said
    assert "dvc repro" in said
    assert "ran" not in said.split()
    refused = start(STAGE, "--epochs=3", stderr=subprocess.PIPE)
    assert refused.communicate(timeout=60)[0] == ""
    assert refused.returncode == 2
