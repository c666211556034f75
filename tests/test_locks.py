import errno
import fcntl
import os
import subprocess
import sys

import pytest

from stages.locks import existing, try_lock, wait_for_lock


def refusing(code):
    """A system call that always fails so."""

    def fail(*_):
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("code", [None, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_one_process_at_a_time_has_a_lock_on_any_file_system(code, tmp_path, monkeypatch):
    if code:
        monkeypatch.setattr(fcntl, "flock", refusing(code))
    path = tmp_path / "a.lock"
    first = try_lock(path)
    assert first is not None
    assert try_lock(path) is None
    assert existing(path).exists() == bool(code)
    first.release()
    assert try_lock(path) is not None


def test_where_a_file_is_the_lock_that_of_a_process_that_ended_is_taken_over(tmp_path, monkeypatch, capsys):
    path = tmp_path / "a.lock"
    code = "import os, sys; from filelock import SoftFileLock as L; L(sys.argv[1]).acquire(); os._exit(0)"
    subprocess.run([sys.executable, "-c", code, existing(path)], check=True)
    monkeypatch.setattr(fcntl, "flock", refusing(errno.ENOLCK))
    assert try_lock(path) is not None
    # Of another machine nobody knows: its user does.
    existing(path).write_text("1\nelsewhere\n")
    monkeypatch.setattr("stages.locks.time.sleep", lambda _: existing(path).unlink())
    assert wait_for_lock(path, "waiting") is not None
    assert f"has died, delete {existing(path)}" in capsys.readouterr().out


def test_other_errors_of_a_lock_are_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", refusing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        try_lock(tmp_path / "a.lock")
