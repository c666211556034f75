"""DVC's experiment queue, run to its end by workers that each have GPUs of their own.

The queue and its workers are DVC's, so that `dvc queue status`, `dvc queue logs`, `dvc exp show` and the VS Code
extension see all of it. `dvc queue start` alone does not do: its workers share one CUDA_VISIBLE_DEVICES, it does not
wait, and what a killed worker ran counts as running forever. `dvc exp run --temp` side by side does not do either: they
share a stash of one entry, and may take each other's. DVC has no public interface to its queue; its version is pinned.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from ruamel.yaml import YAML

from stages.config import PARAMS
from stages.errors import InputError

QUEUED, RUNNING, SUCCESS, FAILED = "queued", "running", "success", "failed"
DATA_DIR, DEVICES = "data.data_dir", "training.devices"
STARTS = 3  # of workers beyond one each, without one experiment that ends: then something kills them
LOG_LINES = 4  # of an error that is no message of this pipeline


class Task(NamedTuple):
    """An experiment of the queue.

    Attributes:
        name: of the experiment.
        revision: the commit of DVC's stash that holds its files and parameters.
        state: QUEUED, RUNNING, SUCCESS or FAILED.
        entry: DVC's description of it.
        message: Celery's, by which workers learn of it.
    """

    name: str
    revision: str
    state: str
    entry: Any
    message: Any


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch  # takes a second

    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


class ExperimentQueue:
    """The queue of the repository in the working directory; close it, or use it as a context manager.

    Args:
        gpus: the GPUs to use, as CUDA_VISIBLE_DEVICES names them; none: one worker, on the CPU.

    Attributes:
        workers: how many experiments run at once.
        terminated: set it, and the next turn ends with KeyboardInterrupt.

    Raises:
        InputError: this is no DVC repository in Git, or another sweep runs in it.
    """

    def __init__(self, gpus: list[str]) -> None:
        from dvc.exceptions import DvcException
        from dvc.lock import LockError, make_lock
        from dvc.repo import Repo

        try:
            self.repo = Repo()
            self._queue = self.repo.experiments.celery_queue
        except DvcException as error:
            raise InputError(f"{error}; run from the root of the repository") from None
        # Two sweeps would restart the same experiment twice.
        self._lock = make_lock(str(Path(self.repo.tmp_dir) / "sweep.lock"), tmp_dir=self.repo.tmp_dir)
        try:
            self._lock.lock()
        except LockError:
            self.repo.close()
            raise InputError("another sweep runs in this repository; wait for its end") from None
        self._gpus = gpus
        self._deal(1)
        self._started: list[subprocess.Popen] = []
        self._starts, self._ended = 0, 0
        self.terminated = False

    def __enter__(self) -> "ExperimentQueue":
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.unlock()
        self.repo.close()

    def deal_gpus(self, overrides: list[str] | None = None) -> None:
        """Give each worker as many GPUs as the largest `training.devices` asks for; before the first worker starts.

        Args:
            overrides: of experiments that will be added, as of `dvc exp run -S`; None: none will be.

        Raises:
            InputError: there are too few GPUs.
        """
        advice = f"set {DEVICES} to at most that"
        added = [] if overrides is None else self._values_of(overrides, DEVICES)
        needs = [(_count(value), "", advice) for value in added]
        for task in self.tasks():
            if task.state in (QUEUED, RUNNING):
                each = _count(_parameter(self._params_of(task), DEVICES, "1"))
                needs.append((each, f"{task.name}: ", f"dvc queue remove {task.name}, {advice} and queue it again"))
        each, place, advice = max(needs, default=(1, "", advice))
        if self._gpus and len(self._gpus) < each:
            raise InputError(f"{place}{DEVICES} is {each}; there are {len(self._gpus)} GPUs here: {advice}")
        self._deal(each)

    def _deal(self, each: int) -> None:
        starts = range(0, len(self._gpus) - each + 1, each)
        self._devices = [",".join(self._gpus[start : start + each]) for start in starts] or [None]
        self.workers = len(self._devices)
        # As `dvc queue start` names its workers, so that `dvc queue status` counts them and none is started twice.
        digest = hashlib.sha256(self._queue.wdir.encode()).hexdigest()[:6]
        self._names = [f"dvc-exp-{digest}-{number}@localhost" for number in range(1, self.workers + 1)]

    def add(self, overrides: list[str], name: str | None = None) -> list[str]:
        """Queue one experiment, or each of a sweep.

        Args:
            overrides: as of `dvc exp run -S`.
            name: of the experiment; of a sweep, DVC appends numbers. None: DVC finds names.

        Returns:
            The names.

        Raises:
            InputError: an override is wrong, or an experiment's data is not tracked; then nothing is queued.
        """
        before = {task.revision for task in self.tasks()}
        for data_dir in self._values_of(overrides, DATA_DIR):
            if problem := self._data_problem(data_dir):
                raise InputError(problem)
        with _refusing(overrides):
            self.repo.experiments.run(queue=True, params=overrides, name=name)
        return [task.name for task in self.tasks() if task.revision not in before]

    def _values_of(self, overrides: list[str], key: str) -> set[str]:
        """Every value of a parameter in the experiments that these overrides make."""
        from dvc.utils.cli_parse import to_path_overrides
        from dvc.utils.hydra import get_hydra_sweeps

        default = _parameter(PARAMS.read_text(encoding="utf-8"), key)
        with _refusing(overrides):
            sweeps = get_hydra_sweeps(to_path_overrides(overrides)) if overrides else [{}]
        found = set()
        for sweep in sweeps:
            given = {
                name: value for name, _, value in (text.partition("=") for text in sweep.get(PARAMS.as_posix(), []))
            }
            found.add(given.get(key, default).strip("'\""))
        return found

    def _data_problem(self, data_dir: str, revision: str | None = None) -> str | None:
        """Why an experiment in a folder of its own would not find its data, and the command that mends it.

        DVC gives such an experiment what Git and DVC track, and nothing else.

        Args:
            data_dir: its `data.data_dir`.
            revision: the commit that was queued; None: what Git's index has now.
        """
        path = Path(data_dir)
        what = f"data.data_dir is {data_dir!r}"
        if path.is_absolute() and path.exists():
            return None
        if not path.resolve().is_relative_to(self.repo.root_dir):
            return f"{what}, which lies outside of the repository: queued experiments need its absolute path"
        if self._in_git(path, revision):
            return None
        folder = path.resolve()
        for out in self.repo.index.outs:
            if folder.is_relative_to(out.fs_path):
                dvc_file = Path(out.stage.path).relative_to(self.repo.root_dir)
                if self._in_git(dvc_file, revision):
                    return None
                return f"{what}; Git does not know {dvc_file}, so queued experiments would not: git add {dvc_file}"
        if not path.exists():
            return f"{what}, and there is no such folder"
        fix = f"dvc add {path} && git add {path}.dvc"
        return f"{what}, which nothing tracks, so queued experiments would not have it: {fix}"

    def _in_git(self, path: Path, revision: str | None) -> bool:
        listing = ["ls-tree", "-r", "--name-only", revision] if revision else ["ls-files"]
        command = ["git", *listing, "--", path.as_posix()]
        listed = subprocess.run(command, cwd=self.repo.root_dir, check=True, capture_output=True)  # noqa: S603
        return bool(listed.stdout)

    def check_data(self) -> None:
        """Stop before anything runs if a queued experiment would not find its data.

        Raises:
            InputError: names the experiments, and the commands that mend it.
        """
        problems = []
        for task in self.tasks():
            if task.state == QUEUED:
                data_dir = _parameter(self._params_of(task), DATA_DIR)
                if problem := self._data_problem(data_dir, task.revision):
                    problems.append(f"{task.name}: {problem}; then dvc queue remove {task.name}, and queue it again")
        if problems:
            raise InputError("\n  ".join(problems))

    def _params_of(self, task: Task) -> str:
        with self.repo.scm.get_fs(task.revision).open(PARAMS.as_posix(), encoding="utf-8") as file:
            return file.read()

    def tasks(self) -> list[Task]:
        """All experiments that are or were in the queue, oldest first."""
        celery = self._queue.celery
        # In this order: one that a worker takes meanwhile is seen twice, and the later sight counts.
        found = {task.revision: task for task in self._read(celery.iter_queued(), queued=True)}
        found |= {task.revision: task for task in self._read(celery.iter_processed(), queued=False)}
        return list(found.values())

    def _read(self, messages: Iterator[Any], queued: bool) -> Iterator[Task]:
        from dvc.repo.experiments.queue.base import QueueEntry
        from dvc.repo.experiments.queue.tasks import run_exp

        for message in messages:
            if message.headers.get("task") == run_exp.name:
                arguments, keywords, _ = message.decode()
                entry = QueueEntry.from_dict(keywords.get("entry_dict") or arguments[0])
                ready = not queued and self._queue.celery.AsyncResult(message.headers["id"]).ready()
                state = QUEUED if queued else self._outcome(entry.stash_rev) if ready else RUNNING
                yield Task(entry.name or entry.stash_rev[:7], entry.stash_rev, state, entry, message)

    def _outcome(self, revision: str) -> str:
        result = getattr(self._info(revision), "result", None)
        return SUCCESS if result and result.exp_hash and result.ref_info else FAILED

    def _info(self, revision: str) -> Any:
        """DVC's ExecutorInfo of an experiment's run; None if it was never set up."""
        from dvc.repo.experiments.executor.base import ExecutorInfo

        try:
            return ExecutorInfo.load_json(self._queue.get_infofile_path(revision))
        except (OSError, ValueError):
            return None

    def tend(self) -> list[str]:
        """Queue again what dead workers left, and start workers for what is queued. To be called again and again.

        Returns:
            The names of the experiments that were queued again.

        Raises:
            InputError: workers die without an end.
        """
        if self.terminated:
            raise KeyboardInterrupt
        for process in self._started:
            process.poll()  # buries the dead
        workers, running = self._processes()
        tasks = self.tasks()
        busy = {revision for revision, process in running.items() if process.ppid() in workers.values()}
        left = [task for task in tasks if task.state == RUNNING and task.revision not in busy]
        # A worker that runs nothing visible may be setting up or collecting one of them. It ends that, takes the next
        # or leaves: certainty comes by waiting until each worker is seen with another experiment, before and after.
        if left and len(busy) == len(workers) and self._processes() == (workers, running):
            for task in left:
                self._queue_again(task, running.get(task.revision))
            tasks = self.tasks()
        else:
            left = []
        self._start_workers(workers, len(workers) - len(busy), tasks)
        return [task.name for task in left]

    def _start_workers(self, workers: dict[str, int], idle: int, tasks: list[Task]) -> None:
        states = [task.state for task in tasks]
        ended = states.count(SUCCESS) + states.count(FAILED)
        if ended != self._ended:
            self._starts, self._ended = 0, ended
        vacant = [number for number, name in enumerate(self._names) if name not in workers]
        for number in vacant[: max(0, states.count(QUEUED) - idle)]:
            self._starts += 1
            log = Path(self._queue.wdir) / f"dvc-exp-worker-{number + 1}.out"
            if self._starts > self.workers + STARTS:
                raise InputError(f"workers end without finishing an experiment; {log} says why:\n{_tail(log)}")
            self._started.append(self._start(number, log))

    def _start(self, number: int, log: Path) -> subprocess.Popen:
        # Workers run `dvc`, and stages `python`: both must be those of this interpreter.
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
        if self._devices[number] is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self._devices[number]
        command = [sys.executable, "-m", "dvc", "exp", "queue-worker", self._names[number]]
        if number == 0:
            command.append("--clean")  # away with Celery's old letters, as DVC has its first worker do
        with log.open("ab") as file:
            # A session of its own: Ctrl-C is for the sweep, which then ends its workers in order.
            return subprocess.Popen(  # noqa: S603
                command,
                cwd=self.repo.root_dir,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _processes(self) -> tuple[dict[str, int], dict[str, psutil.Process]]:
        """The workers' process ids by name, and the processes that run an experiment by its revision."""
        workers, running = {}, {}
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"] or []
            if "queue-worker" in command:
                workers |= {name: process.pid for name in self._names if name in command}
            elif "--infofile" in command[:-1]:
                info = Path(command[command.index("--infofile") + 1])
                if info.parent.parent == Path(self._queue.pid_dir):
                    running[info.stem] = process
        return workers, running

    def _queue_again(self, task: Task, orphan: psutil.Process | None) -> None:
        from dvc.repo.experiments.queue.tasks import run_exp

        if orphan is not None:
            _kill_tree(orphan)
        if info := self._info(task.revision):
            shutil.rmtree(info.root_dir, ignore_errors=True)
        entry, stash = task.entry, self._queue.stash
        # The worker took it off the stash, which alone remembers its name and baseline.
        if task.revision not in stash.stash_revs:
            text = stash.format_message(entry.head_rev, entry.baseline_rev, entry.name, entry.branch)
            self.repo.scm.set_ref(stash.ref, task.revision, message=f"commit: {text}")
        arguments, keywords, _ = task.message.decode()
        self._queue.celery.signature(run_exp.s(*arguments, **keywords)).delay()
        self._queue.celery.purge(task.message.delivery_tag)

    def stop(self, running: bool) -> None:
        """End the workers.

        Args:
            running: end what they run, too; the next sweep runs it again. Otherwise they finish it first.
        """
        workers, experiments = self._processes()
        for pid in workers.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                worker = psutil.Process(pid)
                # Killed: else it would count its experiment as failed.
                worker.kill() if running else worker.terminate()
        if running:
            for process in experiments.values():
                _kill_tree(process)
        for process in self._started:
            process.wait()

    def error_of(self, task: Task) -> str:
        """Why an experiment failed: the message of its stage, or the last lines of its log."""
        process = self._queue.proc.get(task.revision)
        if process is None or not Path(process.stdout).exists():
            return f"it could not be set up; {self._queue.wdir}/dvc-exp-worker-*.out says why"
        return _tail(Path(process.stdout))


@contextlib.contextmanager
def _refusing(overrides: list[str]) -> Iterator[None]:
    """Turns what DVC has against overrides into an InputError."""
    from dvc.exceptions import DvcException
    from hydra.errors import HydraException

    try:
        yield
    except (DvcException, HydraException) as error:
        causes = ": ".join(dict.fromkeys(str(part) for part in (error, error.__cause__) if part))
        raise InputError(f"cannot queue {' '.join(overrides)} ({' '.join(causes.split())})") from None


def _parameter(params: str, name: str, default: str | None = None) -> str:
    """An entry of the text of a params.yaml.

    Raises:
        InputError: there is none, and no default.
    """
    section, key = name.split(".")
    content = YAML(typ="safe", pure=True).load(params)
    try:
        return str(content[section][key])
    except (TypeError, KeyError):
        if default is None:
            raise InputError(f"{PARAMS} has no {name}") from None
        return default


def _count(value: str) -> int:
    """A number of GPUs; 1 where it is none, which the experiment itself refuses."""
    return max(1, int(value)) if value.isdecimal() else 1


def _tail(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    # A stage of this pipeline says "error: …"; DVC follows with "ERROR: failed to reproduce 'train': …".
    end = next((number for number, line in enumerate(lines) if line.startswith("ERROR:")), len(lines))
    starts = [number for number, line in enumerate(lines[:end]) if line.startswith("error:")]
    return "\n".join(lines[starts[-1] : end] if starts else lines[-LOG_LINES:])


def _kill_tree(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [process, *process.children(recursive=True)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=10)
