"""DVC's experiment queue, whose experiments run as jobs of SLURM, each in a clone of its own.

Of DVC only its commands are used: in a job `dvc exp run` makes the experiment, and `dvc exp push` sends it to the
repository that it was queued in, whether or not the sweep still runs. Until then DVC's queue lists it as queued.
"""

import getpass
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TextIO

import psutil
import submitit
from submitit.core.utils import DelayedSubmission, FailedJobError

from stages.errors import InputError, one_line
from stages.experiments.queue import FAILED, QUEUED, RUNNING, SUCCESS, ExperimentQueue, Task
from stages.experiments.revision import environment_of_programs, run_dvc, run_git
from stages.files import CHECKPOINTS, replacing

JOBS = Path(".dvc/tmp/jobs")  # a folder of each experiment: its jobs, its clone, their output, and how it ended
STATE, CLONE = "state", "clone"
POLL_SECONDS = 15  # each poll takes a second of processor time: it waits for the end of an experiment, or so long
LOST_SECONDS = 30  # a job that has just ended may have a result that this machine does not see yet
MAX_SUBMISSIONS = 5  # of an experiment whose jobs end without a result
SAVE_SECONDS = 60  # for a training to save a checkpoint; SLURM ends the job 90 after its signal
CANCEL_SECONDS = 300  # until a job that was told to end is no longer waited for: its machine may not answer
ASKED = 30  # times in a row, before a controller that does not answer ends the sweep
SEVERAL = ("nodes", "ntasks", "ntasks-per-node", "array")


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
            repository = run_git("rev-parse", "--show-toplevel", cwd=self.root)
            run_dvc("exp", "push", "--no-cache", "--force", repository, self.name, cwd=clone)
        _note_end(self.folder, FAILED if failed else SUCCESS, self.name)

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
        if (local := self.root / ".dvc/config.local").exists():
            shutil.copy(local, root / ".dvc")
        run_dvc("config", "--local", "cache.dir", self.cache, cwd=root)
        return root


class ClusterQueue(ExperimentQueue):
    """The queue of the repository in the working directory, which lies on a disk that all machines see.

    Args:
        jobs: how many are to be submitted at once.
        options: of `sbatch`, as {"partition": "a", "time": "4:00:00"}; `gpus` are those of each experiment.

    Raises:
        InputError: there is no SLURM here, or an option is wrong.
    """

    def __init__(self, jobs: int, options: dict[str, str | bool]) -> None:
        super().__init__(jobs)
        self.place = str(Path.cwd())  # the same for all machines, on any of which the sweep may go on
        if several := [name for name in options if name.replace("_", "-") in SEVERAL]:
            raise InputError(
                f"--slurm {several[0]}: an experiment is one task on one machine; gpus, cpus-per-task and mem say how "
                "much of it"
            )
        flags = {"gpus-per-node" if name == "gpus" else name: value for name, value in options.items()}
        # Those of the user last; submitit would choose 5 minutes.
        flags = {"requeue": True, "time": 60, **flags}
        # Else the task, which starts all that computes, would be bound to one core.
        self._parameters = {
            "stderr_to_stdout": True,
            "srun_args": ["--cpu-bind=none"],
            "additional_parameters": flags,
        }
        if missing := [name for name in ("sbatch", "srun", "squeue", "scancel") if shutil.which(name) is None]:
            raise InputError(f"--slurm: there is no {missing[0]} here; start the sweep on a machine of the cluster")
        self._gone: dict[str, float] = {}  # since when the jobs of experiments have been gone

    def status(self) -> tuple[list[Task], int, int]:
        """All experiments, the unfinished ones last; a job that waits for its turn counts as running."""
        return self._with_jobs(super().status()[0]), 0, 0

    def _with_jobs(self, listed: list[Task]) -> list[Task]:
        """All experiments, of those that DVC lists and those that have a job or had one."""
        tasks = {task.revision: task for task in listed}
        for folder in JOBS.glob("*"):
            revision = folder.name
            if (folder / STATE).exists():
                state, name = (folder / STATE).read_text(encoding="utf-8").split(" ", 1)
                tasks[revision] = Task(revision, name, state)
            elif revision in tasks and self._jobs(tasks[revision]):
                tasks[revision] = tasks[revision]._replace(state=RUNNING)
        return sorted(tasks.values(), key=lambda task: task.unfinished)

    def poll(self) -> list[Task]:
        """Wait, take from DVC's queue what has ended, submit what is queued or was lost, and return all experiments.

        Raises:
            InputError: SLURM does not take a job.
            KeyboardInterrupt: the sweep is to end; call `stop`.
        """
        self._wait()
        self._pause = POLL_SECONDS
        alive, (listed, _, _) = jobs_of_user(), super().status()
        tasks = self._with_jobs(listed)
        if ended := {task.revision for task in tasks if not task.unfinished} & {task.revision for task in listed}:
            run_dvc("queue", "remove", *ended)
            self._unfinished -= ended
        running = [task for task in tasks if task.state == RUNNING]
        now, gone = time.monotonic(), [task for task in running if self._jobs(task)[-1] not in alive]
        self._gone = {task.revision: self._gone.get(task.revision, now) for task in gone}
        lost = [task for task in gone if now - self._gone[task.revision] >= LOST_SECONDS]
        places = self.jobs - len(running)
        for task in [*lost, *[task for task in tasks if task.state == QUEUED][: max(places, 0)]]:
            if len(self._jobs(task)) < MAX_SUBMISSIONS:
                if task in lost:
                    print(f"{task.name}: its job has ended; submitted again", flush=True)
                self._submit(task)
            else:
                _note_end(JOBS / task.revision, FAILED, task.name)
        return tasks

    def end(self, task: Task) -> None:
        """End an experiment that is not worth its time; it counts as failed."""
        self._cancel([task])
        _note_end(JOBS / task.revision, FAILED, task.name)

    def stop(self) -> None:
        """End all jobs, whose trainings save checkpoints; their experiments stay queued."""
        running = [task for task in self.status()[0] if task.state == RUNNING]
        self._cancel(running)
        for task in running:
            (JOBS / task.revision / "jobs").unlink()
            shutil.rmtree(JOBS / task.revision / CLONE, ignore_errors=True)

    def log(self, task: Task) -> str:
        """What an experiment's job has printed."""
        files = sorted((JOBS / task.revision).glob("*_log.out"), key=lambda path: path.stat().st_mtime)
        own = JOBS / task.revision / "log"
        return (own if own.exists() else files[-1] if files else Path(os.devnull)).read_text(encoding="utf-8")

    def folder(self, task: Task) -> Path | None:
        """Where an experiment runs; None: it does not."""
        root = JOBS / task.revision / CLONE / run_git("rev-parse", "--show-prefix")
        return root if root.is_dir() else None

    def _signs(self) -> list[Path]:
        return sorted(JOBS.glob(f"*/{STATE}"))

    def _jobs(self, task: Task) -> list[str]:
        """The jobs that were submitted for an experiment, the present one last."""
        path = JOBS / task.revision / "jobs"
        return path.read_text(encoding="utf-8").split() if path.exists() else []

    def _submit(self, task: Task) -> None:
        folder = JOBS.absolute() / task.revision
        executor = submitit.SlurmExecutor(folder, max_num_timeout=10**6)  # it may reach its time limit as often
        executor.update_parameters(job_name=task.name, **self._parameters)
        experiment = Experiment(Path.cwd(), self.cache, run_git("rev-parse", task.revision), task.name, folder)
        try:
            job = executor.submit(experiment)
        except FailedJobError as error:
            raise InputError(f"SLURM does not take {task.name} ({one_line(error)})") from None
        with (folder / "jobs").open("a", encoding="utf-8") as file:
            file.write(f"{job.job_id}\n")

    def _cancel(self, tasks: list[Task]) -> None:
        """End jobs, and wait until they have ended."""
        if jobs := {self._jobs(task)[-1] for task in tasks}:
            _slurm("scancel", *jobs)
        end = time.monotonic() + CANCEL_SECONDS
        while jobs & jobs_of_user() and time.monotonic() < end:
            time.sleep(1)


def _note_end(folder: Path, state: str, name: str) -> None:
    with replacing(folder / STATE) as incomplete:
        incomplete.write_text(f"{state} {name}", encoding="utf-8")
    shutil.rmtree(folder / CLONE, ignore_errors=True)


def jobs_of_user() -> set[str]:
    """The numbers of all jobs of this user that wait, run, or are ending.

    Raises:
        InputError: SLURM's controller does not answer for minutes.
    """
    command = ("squeue", "--noheader", f"--user={getpass.getuser()}", "--format=%A")
    for _ in range(ASKED - 1):
        with suppress(InputError):
            return set(_slurm(*command).split())
        time.sleep(POLL_SECONDS)
    return set(_slurm(*command).split())


def _slurm(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode and command[0] != "scancel":  # which complains of a job that has just ended
        raise InputError(f"{command[0]} fails ({one_line(done.stderr)})")
    return done.stdout
