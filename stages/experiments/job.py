"""An experiment as a job of a cluster, in a clone of its own; it imports little, for each job does.

Of DVC only its commands are used: `dvc exp run` makes the experiment, whose references in Git are then pushed to the
repository that it was queued in.
"""

import os
import shutil
import signal
import subprocess
import sys
from configparser import ConfigParser
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TextIO

import psutil
from submitit.core.utils import DelayedSubmission

from stages.errors import InputError
from stages.experiments.programs import FAILED, SUCCESS, environment_of_programs, run_git
from stages.files import CHECKPOINTS, replacing

STATE, CLONE = "state", "clone"  # in the folder of an experiment
SAVE_SECONDS = 60  # for a training to save a checkpoint; SLURM ends the job 90 after its signal


class Experiment:
    """A queued experiment, run by submitit in a job of the cluster.

    Args:
        root: the repository that it was queued in, on a disk that all machines see.
        cache: DVC's.
        revision: the commit of its files and parameters that DVC has queued.
        name: of the experiment.
        folder: for its clone and its output.
    """

    def __init__(self, root: Path, cache: str, revision: str, name: str, folder: Path) -> None:
        self.root, self.cache, self.revision, self.name, self.folder = root, cache, revision, name, folder
        self._told_to_end = False

    def __call__(self) -> None:
        """Run the experiment, note how it ended, and send what it made to the repository."""
        # scancel tells all processes of the job to end; then this is no result.
        signal.signal(signal.SIGTERM, self._note)
        with (self.folder / "log").open("a") as log:
            try:
                self._run(log)
            except InputError as error:
                print(f"error: {error}", file=log)
                raise

    def _run(self, log: TextIO) -> None:
        clone = self._clone()
        # SLURM may send its signal to all processes of the job; it is for `checkpoint`, and would end DVC.
        checkpoints = self.root / (os.environ.get("CHECKPOINT_DIR") or CHECKPOINTS)
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "dvc", "exp", "run", "--name", self.name],
            cwd=clone, stdout=log, stderr=log, start_new_session=True,
            preexec_fn=partial(signal.signal, signal.SIGUSR2, signal.SIG_IGN),
            env=environment_of_programs() | {"CHECKPOINT_DIR": str(checkpoints)},
        )  # fmt: skip
        failed = process.wait()
        if self._told_to_end:
            sys.exit(143)
        if not failed:
            # As `dvc exp push` does, which packs objects in Python.
            repository = run_git("rev-parse", "--show-toplevel", cwd=self.root)
            reference = run_git("for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{self.name}", cwd=clone)
            run_git("push", "--quiet", "--force", repository, reference, cwd=clone)
        note_end(self.folder, FAILED if failed else SUCCESS, self.name)

    def checkpoint(self) -> DelayedSubmission:
        """Before the time limit or a preemption: have the training save a checkpoint; the job is queued again."""
        self._told_to_end = True
        stages = [child for dvc in psutil.Process().children() for child in dvc.children(recursive=True)]
        for stage in stages:
            stage.terminate()
        psutil.wait_procs(stages, timeout=SAVE_SECONDS)
        return DelayedSubmission(Experiment(self.root, self.cache, self.revision, self.name, self.folder))

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._told_to_end = True

    def _clone(self) -> Path:
        """DVC's root in a clone in which files are changed as DVC has queued them, but not committed."""
        clone = self.folder / CLONE
        shutil.rmtree(clone, ignore_errors=True)
        repository, _, below = run_git("rev-parse", "--show-toplevel", "--show-prefix", cwd=self.root).partition("\n")
        run_git("clone", "--quiet", "--shared", "--no-checkout", repository, str(clone))
        run_git("checkout", "--quiet", "--detach", f"{self.revision}^1", cwd=clone)
        root = clone / below
        ours = ("--", ".", ":!.dvc/tmp")
        run_git("restore", f"--source={self.revision}", "--worktree", "--staged", *ours, cwd=root)
        # Written here: `dvc config` takes a second of each job.
        config, local = ConfigParser(delimiters="=", interpolation=None), Path(".dvc/config.local")
        config.read(self.root / local, encoding="utf-8")  # if there is one
        config.read_dict({"cache": {"dir": repr(self.cache)}})  # in quotes, for it may have a comma or a quote
        with (root / local).open("w", encoding="utf-8") as file:
            config.write(file)
        return root


def note_end(folder: Path, state: str, name: str) -> None:
    """Note how an experiment has ended, and delete its clone."""
    with replacing(folder / STATE) as incomplete:
        incomplete.write_text(f"{state} {name}", encoding="utf-8")
    shutil.rmtree(folder / CLONE, ignore_errors=True)
