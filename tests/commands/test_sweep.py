"""Sweeps and searches on a pipeline of one stage that takes no time; DVC, its queue and its workers are real."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import optuna
import psutil
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from stages.commands import sweep
from stages.errors import InputError
from stages.experiments import cluster, job, search
from stages.experiments import queue as queues
from stages.experiments.programs import FAILED, QUEUED, RUNNING, SUCCESS
from stages.experiments.queue import ExperimentQueue, Task
from stages.experiments.revision import Revision
from stages.files import PUBLISHED, TRAINING_METRICS
from tests.slurm import Slurm, wait_for

ROOT = Path(__file__).parents[2]
PIPELINE = """\
stages:
  train:
    cmd: python stage.py
    deps: ["${data.data_dir}", stage.py]
    params: [model, split, training]
    outs:
      - models/model.json
      - metrics/details.json: {cache: false}
    metrics:
      - metrics/evaluation.json: {cache: false}
"""
STAGE = """\
import json, os, pathlib, sys, time
from ruamel.yaml import YAML

params = YAML(typ="safe", pure=True).load(pathlib.Path("params.yaml").read_text())
rate, fold = params["training"]["learning_rate"], params["split"]["test_fold"]
if rate > 1:
    sys.exit("error: training.learning_rate is too high;\\n  lower it")
curve = pathlib.Path("data/training/plots/metrics/val/loss.tsv")
curve.parent.mkdir(parents=True, exist_ok=True)
curve.write_text("step\\tloss\\n" + "".join(f"{step}\\t{rate}\\n" for step in range(4)))
gate = pathlib.Path(os.environ["GATE"])
while gate.exists() or rate == 0.9:  # held until the gate is gone; or without end
    if gate.exists():
        (gate / str(fold)).touch()
    time.sleep(0.1)
for folder in ("models", "metrics"):
    pathlib.Path(folder).mkdir(exist_ok=True)
pathlib.Path("metrics/evaluation.json").write_text(json.dumps({"auroc": 0.8 + fold / 100}))
pathlib.Path("metrics/details.json").write_text(json.dumps({"val": {"metrics": {"auroc": 1 - abs(rate - 0.01)}}}))
pathlib.Path("models/model.json").write_text(json.dumps({"val_losses": [abs(rate - 0.01)]}))
"""

# One group, for each test has workers of its own, and the machine few cores; that of all tests of SLURM, which is one.
pytestmark = pytest.mark.xdist_group("slurm")


def shell(*command: str) -> str:
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A repository with that pipeline, but no parameter file."""
    folder = tmp_path_factory.mktemp("template")
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / "stage.py").write_text(STAGE)
    (folder / "data").mkdir()
    (folder / "data/table.csv").write_text("image_id\n")
    (folder / ".gitignore").write_text("/models\n/data/training\n/optuna.journal*\n/*.db\n/sweep.log\n")
    for command in ("git init --quiet --initial-branch=main", "dvc init --quiet", "dvc config core.analytics false"):
        subprocess.run([*command.split()], cwd=folder, check=True)
    return folder


@pytest.fixture
def project(template, params, tmp_path, monkeypatch):
    """A copy of it with a parameter file of this project's, as the working directory."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    params({"data.data_dir": "data"})
    monkeypatch.chdir(tmp_path)
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "test")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "test@example.org")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("GATE", str(tmp_path / ".dvc/tmp/gate"))
    for name in ("queue.POLL_SECONDS", "queue.SOON_SECONDS", "cluster.LOST_SECONDS"):
        monkeypatch.setattr(f"stages.experiments.{name}", 1)
    shell("git", "add", "--all")
    shell("git", "commit", "--quiet", "--message", "pipeline")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield tmp_path
    for number, handler in handlers.items():  # a sweep in this process has set its own
        signal.signal(number, handler)
    for process in psutil.process_iter(["cmdline"]):
        if "queue-worker" in (process.info["cmdline"] or []) and Path(process.cwd()) == tmp_path:
            process.terminate()


def swept(*options: str) -> object:
    """Run the command, and return its exit status."""
    with pytest.raises(SystemExit) as ended:
        sweep.main(list(options))
    return ended.value.code


def listed() -> list[Task]:
    """What `dvc queue status` lists."""
    return [Task(*row) for row in queues.TASK.findall(shell("dvc", "queue", "status"))]


def test_every_combination_runs_and_a_failure_stops_none_of_them(project, capfd):
    options = ("-S", "training.learning_rate=2,0.1", "-S", "split.test_fold=range(2)", "--name", "grid", "--jobs", "2")
    assert swept(*options) == 1
    states = {task.name: task.state for task in listed()}
    assert states == {"grid-1": FAILED, "grid-2": FAILED, "grid-3": SUCCESS, "grid-4": SUCCESS}
    printed = capfd.readouterr().out
    table = [line.split() for line in printed.splitlines()]
    assert ["experiment", "test_fold", "learning_rate", "val.", "loss", "AUROC"] in table
    assert sorted(row for row in table if row[:1] in (["grid-3"], ["grid-4"])) == [
        ["grid-3", "0", "0.1", "–", "0.800"],
        ["grid-4", "1", "0.1", "–", "0.810"],
    ]
    # An error is told when its experiment ends.
    error = "error: training.learning_rate is too high;\n  lower it"
    assert printed.count(error) == 2
    assert printed.index(error) < printed.index("grid-4: success")
    assert "success; 0 left" in printed
    # Nothing is left to do, and old failures are not reported again.
    assert swept() == 0
    assert "the queue is empty" in capfd.readouterr().out


def start(project: Path, *options: str) -> subprocess.Popen:
    """Start a sweep in a process of its own that writes to sweep.log."""
    with (project / "sweep.log").open("w") as log:
        command = [sys.executable, "-m", "stages", "sweep", *options]
        return subprocess.Popen(command, stdout=log, stderr=log)


def processes(project: Path, word: str) -> list[psutil.Process]:
    """Those below a repository with a word in their command line."""
    found = [process for process in psutil.process_iter(["cmdline"]) if word in (process.info["cmdline"] or [])]
    return [process for process in found if Path(process.cwd()).is_relative_to(project)]


@pytest.mark.slow
def test_what_is_killed_or_stopped_is_run_again(project, capfd):
    gate, log = project / ".dvc/tmp/gate", project / "sweep.log"
    gate.mkdir()
    options = ["-S", "split.test_fold=0,3", "--name", "left", "--jobs", "1"]
    first = start(project, *options)
    wait_for((gate / "0").exists)
    [task] = [task for task in listed() if task.name == "left-1"]
    # What is private to DVC: if it has moved, mend the place that is named.
    assert task.process, "processes_of"
    assert list(queues.RUN_INFO.glob(f"{task.revision}*")), "queue.RUN_INFO"
    assert (ExperimentQueue.folder(None, task) / "stage.py").is_file()
    # The worker and all that it runs, as when a machine is restarted.
    [worker] = processes(project, "queue-worker")
    for process in [worker, *worker.children(recursive=True)]:
        process.kill()
    wait_for(lambda: "left-1: killed; queued again" in log.read_text())
    # The other's turn: when the sweep is told to stop, the stage is interrupted in order.
    wait_for((gate / "3").exists)
    [stage] = processes(project, "stage.py")
    first.send_signal(signal.SIGINT)
    assert first.wait(300) == 130
    assert not stage.is_running()
    assert {task.name: task.state for task in listed()} == {"left-1": QUEUED, "left-2": QUEUED}
    shutil.rmtree(gate)
    assert swept(*options) == 0
    assert "still queued: left-" in capfd.readouterr().out
    assert {task.name: task.state for task in listed()} == {"left-1": SUCCESS, "left-2": SUCCESS}
    assert Revision("left-2").parameters["split.test_fold"] == 3


def beside(action: Callable[[], None], *options: str) -> object:
    """Run the command while a thread does something, which must succeed; its exit status, 130 if it was interrupted."""

    def act() -> None:
        try:
            action()
        except BaseException:
            os.kill(os.getpid(), signal.SIGINT)  # the sweep would wait for ever
            raise

    with ThreadPoolExecutor() as pool:
        acting = pool.submit(act)
        try:
            return swept(*options)
        except KeyboardInterrupt:
            return 130
        finally:
            acting.result()


def use(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have commands in this process talk to a SLURM."""
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm.environment[name])


def test_a_sweep_on_a_cluster_ends_complete_whatever_happens_to_its_jobs(project, slurm, monkeypatch, capfd):
    gate = project / ".dvc/tmp/gate"
    gate.mkdir()
    use(slurm, monkeypatch)
    options = ["-S", "split.test_fold=range(6)", "-S", "training.learning_rate=0.1", "--name", "wide"]
    options += ["--slurm", "gpus=0,cpus-per-task=1,time=10", "--jobs", "6"]

    def jobs() -> list[str]:
        return [(path.read_text().split() or [""])[-1] for path in sorted(cluster.JOBS.glob("*/jobs"))]

    def stop() -> None:
        slurm.wait_for(lambda: len(list(gate.iterdir())) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    def disturb() -> None:
        slurm.wait_for(lambda: len(list(gate.iterdir())) == 4)  # as many as there are processors
        running = slurm.run("squeue", "--noheader", "--states=RUNNING", "--sort=i", "--format=%A").split()
        slurm.run("scancel", running[0])
        slurm.run("scancel", "--full", "--signal=KILL", running[1])
        slurm.run("scancel", "--signal=USR2", running[2])  # as before the time limit, or a preemption
        slurm.start_soon(running[2])
        slurm.wait_for(lambda: not {*running[:2]} & {*jobs()})  # both are submitted again
        shutil.rmtree(gate)
        slurm.wait_for(lambda: len(list(cluster.JOBS.glob("*/state"))) == 7)

    with pytest.raises(InputError, match=r"SLURM does not take wide-\d \(.*invalid partition"):
        sweep.main([*options[:-3], "partition=nowhere"])
    assert "sbatch" not in capfd.readouterr().err  # the message is enough
    assert beside(stop, *options[:-1], "2") == 130
    assert slurm.run("squeue", "--noheader") == ""
    assert not list(cluster.JOBS.glob("*/clone"))
    assert {task.state for task in listed()} == {QUEUED}
    for file in gate.iterdir():
        file.unlink()
    # A failure is told, and stops nothing.
    shell("dvc", "exp", "run", "--queue", "--name", "high", "-S", "training.learning_rate=2")
    assert beside(disturb, *options) == 1
    printed = capfd.readouterr().out
    assert "still queued: wide-1, wide-2, wide-3, wide-4, wide-5, wide-6" in printed
    assert printed.count("its job has ended; submitted again") == 2
    assert re.search(r"high: failed; \d left\nerror: training.learning_rate is too high;\n  lower it\n", printed)
    assert listed() == []
    folds = {
        name: Revision(name).parameters["split.test_fold"]
        for name in shell("dvc", "exp", "list", "--name-only").split()
    }
    assert folds == {f"wide-{number + 1}": number for number in range(6)}
    assert not list(cluster.JOBS.glob("*/clone"))


def test_an_experiment_is_queued_again_only_as_it_was(project, capfd):
    values = {"split.test_fold": 3, "model.name": "é, [b]=", "training.loggers": ["dvclive", "wandb"]}
    values |= {"training.learning_rate": 3e-5, "model.variant": None}
    with ExperimentQueue(1) as queue:
        queue.add(queues.as_overrides(values), "again")
        [first] = listed()
        queue.queue_again(first)
        [second] = listed()
        assert second.name == "again"
        before, after = (Revision(task.revision).parameters for task in (first, second))
        assert before == after
        assert values.items() <= after.items()
        (project / "stage.py").write_text(STAGE + "print()")
        queue.queue_again(second)
    assert listed() == [second]
    assert "again: killed, and not queued again (the code has changed since: stage.py)" in capfd.readouterr().out


def test_dvc_is_asked_only_when_something_may_have_happened(project, monkeypatch):
    """Each answer takes it a second of processor time."""
    asked, alive, references = [], [True], ["as it was"]
    process = SimpleNamespace(is_running=lambda: alive[0])

    def answer(*command: str) -> str:
        asked.append(command)
        return f"abc1234  one  12:00  {RUNNING if alive[0] else SUCCESS}\n\nWorker status: 1 active, 0 idle\n"

    monkeypatch.setattr(queues, "POLL_SECONDS", 0)
    monkeypatch.setattr(queues, "SOON_SECONDS", 999)
    monkeypatch.setattr(queues, "run_dvc", answer)
    monkeypatch.setattr(queues, "processes_of", lambda tasks: {"abc1234": process} if alive[0] else {})
    monkeypatch.setattr(queues, "references", lambda below: references[0])
    with ExperimentQueue(1) as queue:
        states = [queue.poll()[0].state for _ in range(3)]
        assert (states, len(asked)) == ([RUNNING] * 3, 1)
        alive[0] = False  # DVC collects what it has made
        assert (queue.poll()[0].state, len(asked)) == (RUNNING, 1)
        references[0] = "with its result"
        assert (queue.poll()[0].state, len(asked)) == (SUCCESS, 2)


def test_two_sweeps_at_once_are_refused(project):
    with ExperimentQueue(1), pytest.raises(InputError, match="another sweep runs"):
        ExperimentQueue(1)


def test_without_slurm_there_is_no_sweep_on_it(project, monkeypatch):
    monkeypatch.setattr(cluster.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="--slurm: there is no sbatch here"):
        sweep.main(["--slurm", "gpus=1"])
    with pytest.raises(InputError, match="--slurm nodes: an experiment is one task on one machine"):
        sweep.main(["--slurm", "gpus=1,nodes=2"])


def test_a_controller_that_does_not_answer_is_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "SQUEUE_SECONDS", 0)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    program, refuse = tmp_path / "squeue", "#!/bin/sh\necho 'Unable to contact slurm controller' >&2; "
    program.write_text(f"{refuse}rm {tmp_path}/seen && exit 1; echo 7 8\n")
    program.chmod(0o755)
    (tmp_path / "seen").touch()
    assert cluster.jobs_of_user() == {"7", "8"}
    program.write_text(f"{refuse}exit 1\n")
    with pytest.raises(InputError, match=r"squeue fails \(Unable to contact"):
        cluster.jobs_of_user()


@pytest.fixture
def three_queued(project, monkeypatch):
    """DVC's queue of three experiments, without DVC and without SLURM; a list of what was taken out of it."""
    tasks, removed = [Task(name, name, QUEUED) for name in ("n-1", "n-2", "n-3")], []

    def answer(queue: ExperimentQueue) -> tuple[list[Task], int, int]:
        queue._tasks = [task for task in tasks if task.revision not in removed]
        return queue._tasks, 0, 0

    monkeypatch.setattr(queues, "POLL_SECONDS", 0)
    monkeypatch.setattr(cluster.shutil, "which", lambda name: name)
    monkeypatch.setattr(cluster, "run_dvc", lambda *command: removed.extend(command[2:]))
    monkeypatch.setattr(ExperimentQueue, "status", answer)
    for task in tasks:
        (cluster.JOBS / task.revision).mkdir(parents=True)
    return removed


def test_what_has_ended_on_a_cluster_while_no_sweep_ran_is_told_and_not_run_again(three_queued, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "jobs_of_user", set)
    for name in ("n-1", "n-2", "n-3"):
        (cluster.JOBS / name / "log").write_text(f"error: of {name}\n")
        (cluster.JOBS / name / job.STATE).write_text(f"{FAILED} {name}")
    with cluster.ClusterQueue(3, {}) as queue:
        queue.status()
        assert sweep._run_queue(queue, SimpleNamespace(set_param=["a=1,2,3"], name="n")) == 3
    printed = capsys.readouterr().out
    assert "still queued: n-1, n-2, n-3\n" in printed
    assert "n-3: failed; 0 left\nerror: of n-3\n" in printed
    assert sorted(three_queued) == ["n-1", "n-2", "n-3"]


def test_a_job_that_slurm_does_not_take_yet_waits_for_the_end_of_others(three_queued, monkeypatch):
    alive, limit = set(), 0

    def submit(queue: cluster.ClusterQueue, task: Task) -> None:
        if len(alive) >= limit:
            raise InputError("sbatch: error: AssocMaxSubmitJobLimit")
        (cluster.JOBS / task.revision / "jobs").write_text(task.name)
        alive.add(task.name)

    monkeypatch.setattr(cluster, "jobs_of_user", lambda: alive)
    monkeypatch.setattr(cluster.ClusterQueue, "_submit", submit)
    with cluster.ClusterQueue(3, {}) as queue:
        with pytest.raises(InputError, match="AssocMaxSubmitJobLimit"):
            queue.poll()
        for limit in (2, 2, 3):
            queue.poll()
            assert len(alive) == limit


def test_a_job_that_cannot_begin_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(job.signal, "signal", lambda *_: None)
    with pytest.raises(InputError):
        job.Experiment(tmp_path, "", "abc", "name", tmp_path)()
    assert re.match(r"error: `git .*not a git repository", queues.error_of((tmp_path / "log").read_text()))


def test_queued_experiments_must_find_their_data(project):
    (project / "scan").mkdir()
    (project / "scan/table.csv").write_text("image_id\n")
    option = "data.data_dir=data,scan"
    with pytest.raises(InputError, match=r"nothing tracks.*dvc add scan && git add scan\.dvc"):
        sweep.main(["-S", option])
    assert listed() == []
    # What was queued without the sweep is stopped, too.
    shell("dvc", "exp", "run", "--queue", "-S", option, "--name", "early")
    with pytest.raises(InputError, match=r"early-2: data\.data_dir is 'scan'.*dvc queue remove early-2"):
        sweep.main([])
    shell("dvc", "add", "--quiet", "scan")
    with pytest.raises(InputError, match=r"would not have it: git add scan\.dvc$"):
        queues.check_data("scan", queues.workspace_revision())
    shell("git", "add", "scan.dvc")
    queues.check_data("scan", queues.workspace_revision())
    queues.check_data(str(project / "scan"), "HEAD")
    (project / "scan").rename("meine Bilder")
    with pytest.raises(InputError, match=r": dvc add 'meine Bilder' && git add 'meine Bilder\.dvc'$"):
        queues.check_data("meine Bilder", "HEAD")


def test_a_folder_in_which_dvc_queues_nothing_is_told(project, monkeypatch):
    elsewhere = project / "a#b"
    shutil.copytree(project / ".dvc", elsewhere / ".dvc")
    monkeypatch.chdir(elsewhere)
    with pytest.raises(InputError, match=r"cannot queue experiments here: .*/a#b has a '#'; move the repository"):
        ExperimentQueue(1)
    monkeypatch.chdir(project)
    (project / ".dvc/config.local").write_text("[cache]\n    dir = Läsion\n", encoding="utf-8")
    with pytest.raises(
        InputError, match=r"/\.dvc/Läsion has a 'ä'; .* `mv \.dvc/cache PATH && dvc cache dir --local PATH`"
    ):
        ExperimentQueue(1)


def test_a_repository_that_was_copied_has_no_changes(project):
    os.utime("stage.py", (0, 0))
    assert queues.workspace_revision() == shell("git", "rev-parse", "HEAD").strip()


def test_an_unfinished_merge_is_named(project):
    for branch in ("one", "other"):
        shell("git", "checkout", "--quiet", "-b", branch, "main")
        (project / "stage.py").write_text(branch)
        shell("git", "commit", "--quiet", "--all", "--message", branch)
    subprocess.run(["git", "merge", "--quiet", "one"], check=False, capture_output=True)
    with pytest.raises(InputError, match=r"fails \(stage\.py: needs merge\)"):
        queues.workspace_revision()


def test_who_changes_something_needs_a_name(project, tmp_path_factory, monkeypatch):
    """DVC keeps changes in a stash of Git, which is somebody's."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.delenv(f"GIT_{role}_NAME")
        monkeypatch.delenv(f"GIT_{role}_EMAIL")
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    with Path("stage.py").open("a") as file:
        file.write("# edited\n")
    with pytest.raises(InputError, match="Git user name and email must be configured"):
        ExperimentQueue(1).add(["split.test_fold=1"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-S", "training.learning_rat=1"], r"cannot queue training\.learning_rat=1 \(.*training\.learning_rat"),
        (["-S", "training.learning_rate=("], r"cannot queue training\.learning_rate=\("),
        (["-S", "data.data_dir=nowhere"], "which does not exist"),
        (["-S", "data.data_dir=../scan"], "outside of the repository"),
        (["--jobs", "0"], "--jobs is 0; it must be at least 1"),
        (["--optuna", "2", "-S", "training.learning_rat=choice(1,2)"], r"cannot queue training\.learning_rat"),
        (["--optuna", "2"], "nothing to search"),
        (["--optuna", "0", "-S", "a=choice(1,2)"], "at least 1"),
        (["--optuna", "2", "-S", "a=choice(1,2)", "--metric", "sensitivity_at_threshold"], "is not a metric of"),
        (["--optuna", "2", "-S", "a=1,2"], r"written a=choice\(1,2\)"),
        (["--optuna", "2", "-S", "a=choice(1,2)", "--storage", "no/where.journal"], "no/where.*cannot be used"),
        (["--optuna", "2", "-S", "a=choice(1,2)", "--storage", "nodb://x"], "--storage nodb://x cannot be used"),
    ],
)
def test_mistakes_get_a_clear_answer(project, options, message):
    with pytest.raises(InputError, match=message):
        sweep.main(options)


def test_ranges_are_optunas_distributions():
    options = ["a.b=uniform(0, 0.5)", "c=loguniform(1e-5,1e-3)", "d=range(2,9,3)", "e=choice(16,null,lite0)"]
    space, fixed = search.parse_space([*options, "f=[1,2]", "g=x"])
    assert space == {
        "a.b": FloatDistribution(0, 0.5),
        "c": FloatDistribution(1e-5, 1e-3, log=True),
        "d": IntDistribution(2, 8, step=3),
        "e": CategoricalDistribution([16, None, "lite0"]),
    }
    assert fixed == ["f=[1,2]", "g=x"]


@pytest.mark.parametrize(
    "wrong", ["uniform(1)", "loguniform(0,1)", "range()", "choice(1)", "uniform(a,b)", "range(3,3)"]
)
def test_a_wrong_range_is_named(wrong):
    with pytest.raises(InputError, match=r"is not a range"):
        search.parse_space([f"a={wrong}"])


def test_a_search_makes_an_experiment_of_each_trial_and_goes_on_where_it_was(project, capfd):
    options = ["-S", "training.learning_rate=choice(0.001,0.1,2)", "-S", "split.test_fold=5", "--study", "rates"]
    options += ["--jobs", "2", "--storage", "sqlite:///scan.db"]
    assert swept("--optuna", "2", *options) in (0, 1)
    # Trial 2 is another machine's: it counts, and is left alone.
    study = optuna.load_study(study_name="rates", storage="sqlite:///scan.db")
    study.ask().set_user_attr("place", "elsewhere:/repository")
    failed = swept("--optuna", "4", *options)
    drawn = {trial.number: trial.params["training.learning_rate"] for trial in study.get_trials() if trial.params}
    assert {task.name: task.state for task in listed()} == {
        f"rates-{number:04d}": FAILED if rate == 2 else SUCCESS for number, rate in drawn.items()
    }
    assert sorted(drawn) == [0, 1, 3]
    assert failed == (2 in drawn.values())
    printed = capfd.readouterr().out
    if failed:
        assert "error: training.learning_rate is too high" in printed
    best = min(drawn, key=lambda number: (abs(drawn[number] - 0.01), number))
    assert f"dvc exp apply rates-{best:04d}" in printed
    # Another objective cannot be compared with the first.
    with pytest.raises(InputError, match=r"started with other settings.*--study"):
        sweep.main(["--optuna", "5", *options, "--metric", "auroc"])


class LossesQueue:
    """Experiments that log the loss `x` at each poll, and end after six; in place of those that take time."""

    jobs, place = 2, "here"

    def __init__(self, root: Path) -> None:
        self.root, self.tasks, self.ended = root, {}, []

    def add(self, overrides: list[str], name: str) -> None:
        self.tasks[name] = Task(name, name, RUNNING)
        curve = self.root / name / TRAINING_METRICS / search.CURVE
        curve.parent.mkdir(parents=True)
        curve.write_text(f"step\t{overrides[0].removeprefix('x=')}\n")

    def poll(self) -> list[Task]:
        for task in self.tasks.values():
            curve = self.root / task.name / TRAINING_METRICS / search.CURVE
            header, *lines = curve.read_text().splitlines()
            curve.write_text("\n".join([header, *lines, f"{len(lines)}\t{header.split()[1]}", ""]))
            self.tasks[task.name] = task._replace(state=SUCCESS if len(lines) >= 6 else task.state)
        return list(self.tasks.values())

    def folder(self, task: Task) -> Path:
        return self.root / task.name

    def end(self, task: Task) -> None:
        self.ended.append(task.name)


@pytest.mark.parametrize("metric", [search.LOSS, "auroc"])
def test_a_trial_that_is_worse_than_the_median_is_ended(metric, project, tmp_path, monkeypatch):
    space, fixed = search.parse_space(["x=uniform(0,1)"])
    queue = LossesQueue(tmp_path / "running")
    committed = lambda name: SimpleNamespace(  # noqa: E731
        read=lambda path: (
            queue.root / name / TRAINING_METRICS / path.relative_to(PUBLISHED[TRAINING_METRICS])
        ).read_bytes()
    )
    monkeypatch.setattr(search, "Revision", committed)
    sign = 1 if metric == search.LOSS else -1
    monkeypatch.setattr(search, "objective", lambda name, _: sign * study.trials[int(name[-4:])].params["x"])
    study = search.open_study("losses", str(tmp_path / "journal"), metric, space, fixed)
    ended = [trial for trial, _ in search.search(study, space, fixed, metric, 16, 0, queue)]
    assert len(ended) == 16
    pruned = [trial for trial in ended if trial.state == TrialState.PRUNED]
    assert pruned
    assert queue.ended == [search.experiment_name(study, trial) for trial in pruned]
    complete = [trial for trial in ended if trial.state == TrialState.COMPLETE]
    assert len(complete) + len(pruned) == 16
    for trial in pruned:
        assert 3 <= len(trial.intermediate_values) < 6
        assert trial.params["x"] > min(other.params["x"] for other in complete)
        before = ended[: ended.index(trial)]
        assert sum(other.state == TrialState.COMPLETE for other in before) >= 5


def test_a_search_on_a_cluster_ends_what_its_curve_says_is_hopeless(
    project, slurm, monkeypatch, tmp_path_factory, capfd
):
    use(slurm, monkeypatch)
    # Five trials of another worker, which shares the journal.
    ranges, journal = ["training.learning_rate=choice(0.01,0.9)"], str(tmp_path_factory.mktemp("shared") / "journal")
    space, fixed = search.parse_space(ranges)
    study = search.open_study("shared", journal, search.LOSS, space, fixed)
    for _ in range(5):
        trial = search.ask(study, space, 0)
        for step in range(4):
            trial.report(0.1, step)
        study.tell(trial, 0.1)

    def drawn(seed: int) -> set[float]:
        """By the next two trials."""
        optuna.copy_study(
            from_study_name="shared",
            from_storage=JournalStorage(JournalFileBackend(journal)),
            to_storage=(copied := InMemoryStorage()),
        )
        copy = optuna.load_study(study_name="shared", storage=copied)
        return {search.ask(copy, space, seed).params["training.learning_rate"] for _ in range(2)}

    seed = next(seed for seed in range(99) if len(drawn(seed)) == 2)
    options = ["--optuna", "7", "--study", "shared", "--storage", journal, "--seed", str(seed), "-S", *ranges]
    assert swept(*options, "--slurm", "gpus=0,cpus-per-task=1,time=10", "--jobs", "2") == 0
    trials = {trial.params["training.learning_rate"]: trial for trial in study.get_trials()[5:]}
    assert {rate: trial.state for rate, trial in trials.items()} == {0.01: TrialState.COMPLETE, 0.9: TrialState.PRUNED}
    assert trials[0.9].user_attrs["place"] == str(project)
    assert slurm.run("squeue", "--noheader") == ""
    assert listed() == []
    assert f"best: shared-{trials[0.01].number:04d}" in capfd.readouterr().out


def test_the_same_seed_draws_the_same(project):
    space, fixed = search.parse_space(["x=uniform(0,1)"])
    drawn = []
    for name in ("b", "c"):
        study = search.open_study(name, "sqlite:///:memory:", "loss", space, fixed)
        drawn += [search.ask(study, space, seed=1).params["x"] for _ in range(3)]
    assert drawn[:3] == drawn[3:]
    assert len(set(drawn)) == 3


def test_an_objective_that_the_cache_lacks_is_told_with_what_to_do(project):
    shell("dvc", "repro", "--quiet")
    shell("git", "add", "--all")
    shell("git", "commit", "--quiet", "--message", "run")
    assert search.objective("HEAD", search.LOSS) == pytest.approx(0.0099)
    shutil.rmtree(".dvc/cache")
    with pytest.raises(InputError, match=r"HEAD:models/model\.json is neither in DVC's cache nor .*`dvc push` it"):
        search.objective("HEAD", search.LOSS)


def test_nothing_but_validation_metrics_can_be_searched_for():
    assert all("threshold" not in name and "test" not in name for name in search.METRICS)
    details = json.loads((ROOT / "metrics/details.json").read_text(encoding="utf-8"))
    assert set(details["val"]["metrics"]) < set(search.METRICS)
