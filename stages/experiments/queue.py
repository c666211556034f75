"""DVC's experiment queue, used through the `dvc` command line, so that whatever displays the queue is right.

Its workers are those of `dvc queue start`. This module does what DVC does not: it counts an experiment as running
forever once its worker was killed, and does not queue again what was interrupted.
"""

import json
import platform
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from stages.config import PARAMS
from stages.errors import InputError
from stages.experiments.programs import FAILED, QUEUED, RUNNING, SUCCESS, run_dvc, run_git
from stages.experiments.revision import Revision
from stages.experiments.staleness import open_repository
from stages.locks import hint, try_lock

# A line of `dvc queue status`: the first digits of the commit that holds the experiment's files and parameters, …
TASK = re.compile(rf"^([0-9a-f]{{7}}) +(\S+) .*({QUEUED}|{RUNNING}|{SUCCESS}|{FAILED}) *$", re.MULTILINE)
# An answer of DVC takes a second of processor time. It is asked when its references in Git change, or after so long;
# sooner while it starts or collects an experiment.
ASK_SECONDS, SOON_SECONDS = 60, 5
POLL_SECONDS = 15  # after which a search looks at its curves
LOST_ANSWERS = 3  # an experiment that so many answers call running, but has no process, is neither set up nor collected
START_SECONDS, MAX_STARTS = 20, 3  # until new workers surely answer; how often, if none does
LOCK = Path(".dvc/tmp/sweep.lock")
RUN_INFO = Path(".dvc/tmp/exps/run")  # private to DVC: where it notes the number of an experiment's process


class Task(NamedTuple):
    """An experiment of the queue, whose state is QUEUED, RUNNING, SUCCESS or FAILED."""

    revision: str
    name: str
    state: str

    @property
    def unfinished(self) -> bool:
        """Whether it is queued or running."""
        return self.state in (QUEUED, RUNNING)

    @property
    def process(self) -> psutil.Process | None:
        """The process that runs it."""
        return processes_of([self]).get(self.revision)


def processes_of(tasks: Iterable[Task]) -> dict[str, psutil.Process]:
    """The processes that run experiments, by revision: each has its experiment's in the command line."""
    tasks, found = list(tasks), {}
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or ())
        found = {task.revision: process for task in tasks if task.revision in command} | found
    return found


def references(below: str) -> str:
    """Git's references below a name, in which DVC keeps its queue and what it has made, and their commits."""
    return run_git("for-each-ref", below)


class ExperimentQueue:
    """The queue of the repository in the working directory, for one sweep at a time; use it as a context manager.

    Attributes:
        jobs: how many experiments are to run at once.
        cache: DVC's folder for the content of files.
        place: which of the queues that work on one search this is.
        stopping: set it, and the next poll raises KeyboardInterrupt.

    Raises:
        InputError: this is not a DVC repository, or another sweep runs in it.
    """

    watched = "refs/exps"  # the references of Git that tell of a change

    def __init__(self, jobs: int) -> None:
        self.jobs, self.stopping = jobs, False
        self.place = f"{platform.node()}:{Path.cwd()}"
        self._tasks: list[Task] = []  # as DVC has answered last
        self._asked, self._references = 0.0, ""  # when that was, and what Git had then
        self._has_changed = True  # since then
        self._processes: dict[str, psutil.Process] = {}
        self._missing: dict[str, int] = {}  # how many answers have called experiments running that had no process
        self._started, self._starts = -float(START_SECONDS), 0
        if not Path(".dvc").is_dir():
            raise InputError("this is not the root of a DVC repository; run from there")
        # DVC takes its own folder for a URL and a format, and writes the path of its cache as ASCII.
        self.cache = cache = open_repository().cache.local_cache_dir
        if unfit := re.search(r"[#%?{}]", str(Path.cwd())) or re.search(r"[^ -~]", cache):
            raise InputError(
                f"DVC cannot queue experiments here: {unfit.string} has a {unfit[0]!r}; move the repository, or, if it "
                "is the cache's path alone, the cache: `mv .dvc/cache PATH && dvc cache dir --local PATH`"
            )
        Path(".dvc/tmp").mkdir(exist_ok=True)
        if (lock := try_lock(LOCK)) is None:
            raise InputError(f"another sweep runs in this repository; wait for its end{hint(LOCK)}")
        self._lock = lock

    def __enter__(self) -> "ExperimentQueue":
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def add(self, overrides: list[str], name: str | None = None) -> list[str]:
        """Queue experiments with overrides as of `dvc exp run -S`, and return the names.

        Raises:
            InputError: an override is wrong; then nothing is queued.
        """
        options = [option for override in overrides for option in ("-S", override)]
        try:
            printed = run_dvc("exp", "run", "--queue", *(("--name", name) if name else ()), *options)
        except InputError as error:
            raise InputError(f"cannot queue {' '.join(overrides)} ({error})") from None
        self._has_changed = True
        return re.findall(r"^Queued experiment '(.+)'", printed, re.MULTILINE)

    def status(self) -> tuple[list[Task], int, int]:
        """All experiments, the unfinished ones last, and how many workers are active and idle."""
        self._asked, self._references = time.monotonic(), references(self.watched)
        unfinished = {task.revision for task in self.left}
        found, printed = {}, ""
        # DVC reads one list after the other; what a worker takes meanwhile may be in none of them: look twice.
        for _ in range(2):
            printed = run_dvc("queue", "status")
            found |= {match[1]: Task(*match.groups()) for match in TASK.finditer(printed)}
            if unfinished <= found.keys():
                break
        self._tasks = sorted(found.values(), key=lambda task: task.unfinished)
        active, idle = map(int, re.findall(r"(\d+) (?:active|idle)", printed))
        return self._tasks, active, idle

    @property
    def left(self) -> list[Task]:
        """What DVC's queue, as it has answered last, has not done; on a cluster it may have ended since."""
        return [task for task in self._tasks if task.unfinished]

    def run(self) -> Iterator[tuple[Task, int]]:
        """Run the queue to its end; yield each experiment that ends, and how many are left."""
        waiting = {task.revision for task in self.left}
        while True:
            tasks = self.poll()
            ended = [task for task in tasks if task.revision in waiting and not task.unfinished]
            waiting = {task.revision for task in tasks if task.unfinished}
            yield from ((task, len(waiting)) for task in ended)
            if not waiting:
                return

    def poll(self) -> list[Task]:
        """Wait, queue again what dead workers left, start workers for what is queued, and return all experiments.

        Raises:
            InputError: no worker can be started.
            KeyboardInterrupt: the sweep is to end; call `stop`.
        """
        if self._wait():
            tasks, active, idle = self.status()
            if lost := self._lost(tasks, active):
                for task in lost:
                    with suppress(InputError):  # a worker has it after all
                        self._end(task)
                        self.queue_again(task)
                tasks, active, idle = self.status()
            self._start_workers(tasks, active, idle)
            self._processes = processes_of(task for task in tasks if task.unfinished)
        return [task._replace(state=RUNNING) if task.revision in self._processes else task for task in self._tasks]

    def _start_workers(self, tasks: list[Task], active: int, idle: int) -> None:
        queued, running = ([task.state for task in tasks].count(state) for state in (QUEUED, RUNNING))
        waited = time.monotonic() - self._started >= START_SECONDS  # else there could be two of one worker
        if queued and max(active, running) + idle < self.jobs and waited:
            self._started, self._starts = time.monotonic(), 0 if active + idle else self._starts + 1
            if self._starts > MAX_STARTS:
                raise InputError("the queue's workers exit at once; .dvc/tmp/exps/celery/dvc-exp-worker-1.out says why")
            # The workers hold open what it writes to.
            run_dvc("queue", "start", "--jobs", str(self.jobs), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _wait(self) -> bool:
        """Until DVC has something to tell, or for POLL_SECONDS; whether it is to be asked."""
        end = time.monotonic() + POLL_SECONDS
        while not self.stopping:
            if self._has_changed or self._is_due():
                self._has_changed = False
                return True
            if time.monotonic() >= end:
                return False
            time.sleep(1)
        raise KeyboardInterrupt

    def _is_due(self) -> bool:
        unfinished = self.left
        ended = [revision for revision, process in self._processes.items() if not process.is_running()]
        for revision in ended:
            del self._processes[revision]
        if ended:
            self._asked = time.monotonic()  # DVC first collects what it has made
        since = time.monotonic() - self._asked
        if len(self._processes) >= min(self.jobs, len(unfinished)):
            return since >= ASK_SECONDS
        self._processes = processes_of(unfinished)
        return since >= SOON_SECONDS or references(self.watched) != self._references

    def _lost(self, tasks: list[Task], active: int) -> list[Task]:
        """The running experiments that have neither process nor worker."""
        running = [task for task in tasks if task.state == RUNNING]
        gone = [task for task in running if task.process is None] if len(running) > active else []
        self._missing = {task.revision: self._missing.get(task.revision, 0) + 1 for task in gone}
        return [task for task in gone if self._missing[task.revision] >= LOST_ANSWERS]

    def log(self, task: Task) -> str:
        """What an experiment has printed, or why there is nothing."""
        try:
            return run_dvc("queue", "logs", task.revision)
        except InputError as error:  # it has none
            return str(error)

    def folder(self, task: Task) -> Path | None:
        """Where an experiment runs; None: it does not."""
        with suppress(psutil.Error):
            if process := task.process:
                return next((Path(child.cwd()) for child in process.children(recursive=True)), None)
        return None

    def end(self, task: Task) -> None:
        """End an experiment that is not worth its time; it counts as failed."""
        with suppress(InputError):  # it has just ended
            self._end(task)

    def _end(self, task: Task) -> None:
        """Have DVC interrupt a running experiment, or count it as failed if it has no process."""
        if task.process is None:
            # DVC would interrupt whatever process has that number now, which after a restart may be any.
            for folder in RUN_INFO.glob(f"{task.revision}*"):
                shutil.rmtree(folder)
        run_dvc("queue", "kill", task.revision)

    def queue_again(self, task: Task) -> None:
        """Queue an experiment again that was killed, if it would be the same."""
        now, only_code = workspace_revision(), ("--", ".", f":!{PARAMS.as_posix()}", ":!.dvc/tmp")
        changed = run_git("diff", "--name-only", "-z", task.revision, now, *only_code).split("\0")[:-1]
        if run_git("rev-parse", f"{task.revision}^") != run_git("rev-parse", "HEAD"):
            changed = ["another commit"]
        before, after = (Revision(revision).parameters for revision in (task.revision, now))
        try:
            if changed:
                raise InputError(f"the code has changed since: {', '.join(changed)}")
            self.add(as_overrides({key: before[key] for key in before if before[key] != after.get(key)}), task.name)
            run_dvc("queue", "remove", task.revision)
            with suppress(InputError):  # of one that no worker has set up, DVC removes one half at a time
                run_dvc("queue", "remove", task.revision)
            print(f"{task.name}: killed; queued again", flush=True)
        except InputError as error:
            print(f"{task.name}: killed, and not queued again ({error})", flush=True)

    def stop(self) -> None:
        """End the workers and what they run, and queue that again."""
        ended, interrupted = set(), set()
        while True:
            tasks, active, _ = self.status()
            lost, running = self._lost(tasks, active), [task for task in tasks if task.state == RUNNING]
            for task in running:
                ended.add(task.revision)
                # One without a process is being set up, or its results are being collected.
                if task in lost or (task.process and task.revision not in interrupted):
                    with suppress(InputError):  # it has just ended
                        self._end(task)
                        interrupted.add(task.revision)
            if not running:
                break
            time.sleep(1)
        run_dvc("queue", "stop")
        for task in tasks:
            if task.revision in ended and task.state == FAILED:
                self.queue_again(task)


def error_of(log: str) -> str:
    """Why an experiment failed, of what it printed: the message of its stage, or the last lines."""
    # A stage of this pipeline says "error: …"; DVC follows with "ERROR: failed to reproduce 'train': …".
    errors = re.findall(r"^error: .*?(?=^ERROR:|\Z)", log, re.MULTILINE | re.DOTALL)
    return (errors[-1] if errors else "\n".join(log.rstrip().splitlines()[-4:])).rstrip()


def check_data(data_dir: str, revision: str) -> None:
    """Check that an experiment finds its data: DVC gives it what Git and DVC track at its revision, and nothing else.

    Raises:
        InputError: it would not; with the command that fixes it.
    """
    path, what = Path(data_dir), f"data.data_dir is {data_dir!r}"
    if path.is_absolute() and path.exists():
        return
    if not path.resolve().is_relative_to(Path.cwd()):
        raise InputError(f"{what}, which lies outside of the repository: queued experiments need its absolute path")
    if Revision(revision).has(path):
        return
    if not path.exists():
        raise InputError(f"{what}, which does not exist")
    dvc_file = Path(f"{path}.dvc")
    fix = shlex.join(["git", "add", str(dvc_file)])
    if not dvc_file.exists():
        fix = f"{shlex.join(['dvc', 'add', str(path)])} && {fix}"
    raise InputError(f"{what}, which nothing tracks, so queued experiments would not have it: {fix}")


def workspace_revision() -> str:
    """A commit of what DVC would queue now: HEAD, with the changes of files that Git tracks."""
    identity = ("-c", "user.name=sweep", "-c", "user.email=sweep@localhost")
    run_git("update-index", "-q", "--refresh")  # `stash create` fails without a word in a copied repository
    return run_git(*identity, "stash", "create") or run_git("rev-parse", "HEAD")


def as_overrides(parameters: dict[str, Any]) -> list[str]:
    """Parameters by dotted name as `dvc exp run -S` takes them."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in parameters.items()]
