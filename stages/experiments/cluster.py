"""DVC's experiment queue, whose experiments run as jobs of SLURM, each in a clone of its own.

DVC's queue lists an experiment as queued until its job has sent what it made, whether or not the sweep still runs.
"""

import getpass
import os
import shutil
import subprocess
import time
from contextlib import redirect_stderr, suppress
from io import StringIO
from pathlib import Path

import submitit
from submitit.core.utils import FailedJobError

from stages.errors import InputError, one_line
from stages.experiments.job import CLONE, STATE, Experiment, note_end
from stages.experiments.programs import FAILED, QUEUED, RUNNING, run_dvc, run_git
from stages.experiments.queue import ASK_SECONDS, ExperimentQueue, Task, references

JOBS = Path(".dvc/tmp/jobs")  # a folder of each experiment: its jobs, its clone, their output, and how it ended
SQUEUE_SECONDS = 15  # until a controller that does not answer is asked again
LOST_SECONDS = 30  # a job that has just ended may have a result that this machine does not see yet
MAX_SUBMISSIONS = 5  # of an experiment whose jobs end without a result
CANCEL_SECONDS = 300  # until a job that was told to end is no longer waited for: its machine may not answer
ASKED = 30  # times in a row, before a controller that does not answer ends the sweep
SEVERAL = ("nodes", "ntasks", "ntasks-per-node", "array")


class ClusterQueue(ExperimentQueue):
    """The queue of the repository in the working directory, which lies on a disk that all machines see.

    Args:
        jobs: how many are to be submitted at once.
        options: of `sbatch`, as {"partition": "a", "time": "4:00:00"}; `gpus` are those of each experiment.

    Raises:
        InputError: there is no SLURM here, or an option is wrong.
    """

    watched = "refs/exps/celery"

    def __init__(self, jobs: int, options: dict[str, str | bool]) -> None:
        if several := [name for name in options if name.replace("_", "-") in SEVERAL]:
            raise InputError(
                f"--slurm {several[0]}: an experiment is one task on one machine; gpus, cpus-per-task and mem say how "
                "much of it"
            )
        if missing := [name for name in ("sbatch", "srun", "squeue", "scancel") if shutil.which(name) is None]:
            raise InputError(f"--slurm: there is no {missing[0]} here; start the sweep on a machine of the cluster")
        super().__init__(jobs)
        self.place = str(Path.cwd())  # the same for all machines, on any of which the sweep may go on
        flags = {"gpus-per-node" if name == "gpus" else name: value for name, value in options.items()}
        # Those of the user last; submitit would choose 5 minutes.
        flags = {"requeue": True, "time": 60, **flags}
        # Else the task, which starts all that computes, would be bound to one core.
        self._parameters = {
            "stderr_to_stdout": True,
            "srun_args": ["--cpu-bind=none"],
            "additional_parameters": flags,
        }
        self._gone: dict[str, float] = {}  # since when the jobs of experiments have been gone
        self._ended: list[Path] = []

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
            InputError: SLURM does not take a job, and none runs whose end could change that.
            KeyboardInterrupt: the sweep is to end; call `stop`.
        """
        self._wait()
        alive, self._ended = jobs_of_user(), sorted(JOBS.glob(f"*/{STATE}"))
        if time.monotonic() - self._asked >= ASK_SECONDS or references(self.watched) != self._references:
            super().status()
        tasks = self._with_jobs(self._tasks)
        ended = {task.revision for task in tasks if not task.unfinished} & {task.revision for task in self._tasks}
        self._take_out(ended)
        running = [task for task in tasks if task.state == RUNNING]
        now, gone = time.monotonic(), [task for task in running if self._jobs(task)[-1] not in alive]
        self._gone = {task.revision: self._gone.get(task.revision, now) for task in gone}
        lost = [task for task in gone if now - self._gone[task.revision] >= LOST_SECONDS]
        places, working = self.jobs - len(running), len(running) - len(gone)
        for task in [*lost, *[task for task in tasks if task.state == QUEUED][: max(places, 0)]]:
            if len(self._jobs(task)) >= MAX_SUBMISSIONS:
                note_end(JOBS / task.revision, FAILED, task.name)
                continue
            try:
                self._submit(task)
            except InputError:
                if not working:
                    raise
                break  # that it takes no more, as a user may have so many jobs at once: later again
            working += 1
            if task in lost:
                print(f"{task.name}: its job has ended; submitted again", flush=True)
        return tasks

    def end(self, task: Task) -> None:
        """End an experiment that is not worth its time; it counts as failed."""
        self._cancel([task])
        note_end(JOBS / task.revision, FAILED, task.name)
        self._take_out({task.revision})

    def _take_out(self, revisions: set[str]) -> None:
        """Take experiments that have ended from DVC's queue."""
        if revisions:
            run_dvc("queue", "remove", *revisions)
            self._tasks = [task for task in self._tasks if task.revision not in revisions]
            self._references = references(self.watched)

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

    def _is_due(self) -> bool:
        return sorted(JOBS.glob(f"*/{STATE}")) != self._ended

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
            with redirect_stderr(StringIO()):  # where submitit prints what its error says
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


def jobs_of_user() -> set[str]:
    """The numbers of all jobs of this user that wait, run, or are ending.

    Raises:
        InputError: SLURM's controller does not answer for minutes.
    """
    command = ("squeue", "--noheader", f"--user={getpass.getuser()}", "--format=%A")
    for _ in range(ASKED - 1):
        with suppress(InputError):
            return set(_slurm(*command).split())
        time.sleep(SQUEUE_SECONDS)
    return set(_slurm(*command).split())


def _slurm(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode and command[0] != "scancel":  # which complains of a job that has just ended
        raise InputError(f"{command[0]} fails ({one_line(done.stderr)})")
    return done.stdout
