"""Sweeps and searches on a pipeline of one stage that takes a second; DVC, its queue and its workers are real."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import psutil
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from stages.commands import sweep
from stages.errors import InputError
from stages.experiments import search
from stages.experiments.queue import QUEUED, RUNNING, SUCCESS, ExperimentQueue
from stages.experiments.revision import Revision

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
    "OMP_WAIT_POLICY": "passive",
}
PIPELINE = """\
stages:
  train:
    cmd: python stage.py
    deps: ["${data.data_dir}", stage.py]
    params: [model, split, training]
    outs:
      - models/model.json
      - gpu.txt: {cache: false}
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
gate = pathlib.Path(os.environ["DVC_ROOT"] if "DVC_ROOT" in os.environ else ".", ".dvc/tmp/gate")
while gate.exists() and len(os.listdir(gate)) < 2:  # held until two have come, or the gate is gone
    (gate / str(fold)).touch()
    time.sleep(0.1)
for folder in ("models", "metrics"):
    pathlib.Path(folder).mkdir(exist_ok=True)
pathlib.Path("gpu.txt").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
pathlib.Path("metrics/evaluation.json").write_text(json.dumps({"auroc": 0.8 + fold / 100}))
pathlib.Path("metrics/details.json").write_text(json.dumps({"val": {"metrics": {"auroc": 1 - abs(rate - 0.01)}}}))
pathlib.Path("models/model.json").write_text(json.dumps({"val_losses": [abs(rate - 0.01)]}))
"""

# One group: each test has workers of its own, and the machine few cores.
pytestmark = pytest.mark.xdist_group("sweep")


def shell(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def project(params, tmp_path, monkeypatch):
    """A repository with that pipeline and a parameter file of this project's, as the working directory."""
    params({"data.data_dir": "data"})
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "stage.py").write_text(STAGE)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/table.csv").write_text("image_id\n")
    (tmp_path / ".gitignore").write_text("/models\n/optuna.journal*\n/scan\n")
    monkeypatch.chdir(tmp_path)
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "test")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "test@example.org")
    shell("git", "init", "--quiet", "--initial-branch=main")
    shell("dvc", "init", "--quiet")
    shell("dvc", "config", "core.analytics", "false")
    shell("git", "add", "--all")
    shell("git", "-c", "user.name=t", "-c", "user.email=t@e.org", "commit", "--quiet", "--message", "pipeline")
    monkeypatch.setattr(sweep, "visible_gpus", list)
    yield tmp_path
    with ExperimentQueue([]) as queue:
        queue.stop(running=True)


def swept(*options: str) -> int:
    """Run the command, and return its exit status."""
    with pytest.raises(SystemExit) as ended:
        sweep.main(list(options))
    return ended.value.code


def states(gpus: tuple[str, ...] = ()) -> dict[str, str]:
    with ExperimentQueue(list(gpus)) as queue:
        return {task.name: task.state for task in queue.tasks()}


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)


def test_every_combination_runs_and_a_failure_stops_none_of_them(project, capfd):
    options = ("-S", "training.learning_rate=0.1,2", "-S", "split.test_fold=range(2)", "--name", "grid")
    assert swept(*options) == 1
    outcome = states()
    assert sorted(outcome) == ["grid-1", "grid-2", "grid-3", "grid-4"]
    assert sorted(outcome.values()) == ["failed", "failed", "success", "success"]
    printed = capfd.readouterr().out
    assert "[4/4]" in printed
    table = [line.split() for line in printed.splitlines() if line.startswith(("experiment", "grid-"))]
    assert ["experiment", "test_fold", "learning_rate", "auroc"] in table
    assert [row[1:] for row in table if row[-1] in ("0.800", "0.810")] == [["0", "0.1", "0.800"], ["1", "0.1", "0.810"]]
    assert printed.count("error: training.learning_rate is too high;\n  lower it") == 2
    # Nothing is left to do, and old failures are not reported again.
    assert swept() == 0
    assert "the queue is empty" in capfd.readouterr().out


def test_each_worker_has_a_gpu_of_its_own(project):
    (project / ".dvc/tmp/gate").mkdir()  # lets go of both when both run
    with ExperimentQueue(["3", "7", "8"]) as queue:
        names = queue.add(["split.test_fold=range(2)"])
        ended = sweep.run_queue(queue, print)
        queue.stop(running=False)
    assert [task.state for task in ended] == [SUCCESS, SUCCESS]
    assert {Revision(name).read(Path("gpu.txt")) for name in names} == {b"3", b"7"}


def test_gpus_are_dealt_by_the_devices_of_an_experiment(project):
    override = ["training.devices=1,2"]
    with ExperimentQueue(["0", "1", "2", "3", "4"]) as queue:
        assert queue.workers == 5
        queue.deal_gpus(override)
        assert queue.workers == 2
        queue.deal_gpus()
        assert queue.workers == 5
        queue.add(override, "pair")
        queue.deal_gpus()
        assert queue.workers == 2
    with ExperimentQueue(["0"]) as queue, pytest.raises(InputError, match=r"pair-2: .*dvc queue remove pair-2"):
        queue.deal_gpus()


@pytest.mark.parametrize("search_options", [[], ["--optuna", "1", "-S", "split.test_fold=choice(1,2)"]])
def test_an_experiment_sees_the_gpus_that_its_own_parameters_ask_for(project, monkeypatch, search_options):
    monkeypatch.setattr(sweep, "visible_gpus", lambda: ["3", "7", "8"])
    options = ["-S", "training.devices=2", *search_options]
    assert swept(*options) == 0
    [name] = states()
    assert Revision(name).read(Path("gpu.txt")) == b"3,7"
    monkeypatch.setattr(sweep, "visible_gpus", lambda: ["3"])
    with pytest.raises(InputError, match=r"training\.devices is 2; there are 1 GPUs here"):
        sweep.main([*options, "--study", "other"])
    assert list(states()) == [name]


def test_an_experiment_that_is_removed_from_the_queue_is_not_waited_for(project):
    gate = project / ".dvc/tmp/gate"
    gate.mkdir()
    lines = []

    def report(line: str) -> None:
        lines.append(line)
        if line == "pair-1: running":
            shell("dvc", "queue", "remove", "pair-2")
            gate.rename(gate.with_name("open"))

    with ExperimentQueue([]) as queue:
        queue.add(["split.test_fold=range(2)"], "pair")
        [ended] = sweep.run_queue(queue, report)
        queue.stop(running=False)
    assert (ended.name, ended.state) == ("pair-1", SUCCESS)
    assert "pair-2: removed from the queue; not waited for" in lines
    assert lines[-1].startswith("[1/1] pair-1: success")


def test_what_a_killed_worker_and_a_killed_sweep_left_is_run_again(project):
    gate = project / ".dvc/tmp/gate"
    gate.mkdir()
    command = [sys.executable, "-m", "stages", "sweep", "-S", "split.test_fold=0,3", "--name", "left"]
    with (project / ".dvc/tmp/sweep.log").open("w") as log:
        first = subprocess.Popen(command, env={**ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""}, stdout=log, stderr=log)
        wait_for(lambda: (gate / "0").exists())
        # The worker alone: the stage goes on as an orphan, which must not get in the way of the second run.
        [worker] = [
            process
            for process in psutil.process_iter(["cmdline"])
            if "queue-worker" in (process.info["cmdline"] or []) and process.ppid() == first.pid
        ]
        worker.kill()
        text = project / ".dvc/tmp/sweep.log"
        wait_for(lambda: "left-1: its worker died; queued again" in text.read_text())
        wait_for(lambda: text.read_text().count("left-1: running") == 1)
        first.kill()
        first.wait()
    for process in psutil.process_iter(["cmdline"]):
        if "queue-worker" in (process.info["cmdline"] or []) and Path(process.cwd()) == project:
            process.kill()
    assert set(states().values()) <= {QUEUED, RUNNING}
    for entry in gate.iterdir():
        entry.unlink()
    gate.rmdir()
    assert swept() == 0
    assert states() == {"left-1": SUCCESS, "left-2": SUCCESS}
    assert Revision("left-2").parameters["split.test_fold"] == 3
    # Their names and the commit they are of have survived: DVC lists them below it.
    assert {"left-1", "left-2"} <= set(shell("dvc", "exp", "list", "--name-only").split())


def test_two_sweeps_at_once_are_refused(project):
    with ExperimentQueue([]), pytest.raises(InputError, match="another sweep runs"):
        ExperimentQueue([])


def test_an_interrupted_sweep_ends_its_workers(project):
    gate = project / ".dvc/tmp/gate"
    gate.mkdir()
    command = [sys.executable, "-m", "stages", "sweep", "-S", "split.test_fold=4", "--name", "held"]
    first = subprocess.Popen(command, env={**ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""}, stdout=subprocess.DEVNULL)
    wait_for(lambda: (gate / "4").exists())
    children = psutil.Process(first.pid).children(recursive=True)
    assert any("stage.py" in child.cmdline() for child in children)
    first.send_signal(signal.SIGTERM)
    assert first.wait(30) == 130
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    assert states() == {"held": RUNNING}  # which the next sweep runs again


@pytest.mark.parametrize("tracked", ["not", "by DVC alone", "in Git"])
def test_untracked_data_stops_before_the_queue_starts(project, tracked):
    (project / "scan").mkdir()
    (project / "scan/table.csv").write_text("image_id\n")
    option = "data.data_dir=scan"
    if tracked == "not":
        with pytest.raises(InputError, match=r"nothing tracks.*dvc add scan && git add scan\.dvc"):
            sweep.main(["-S", option])
        assert states() == {}
        # What was queued without the sweep is stopped, too.
        shell("dvc", "exp", "run", "--queue", "-S", option, "--name", "early")
        with pytest.raises(InputError, match=r"early: data\.data_dir is 'scan'.*dvc queue remove early"):
            sweep.main([])
        assert states() == {"early": QUEUED}
        return
    shell("dvc", "add", "--quiet", "scan")
    if tracked == "by DVC alone":
        with pytest.raises(InputError, match=r"Git does not know scan\.dvc.*git add scan\.dvc"):
            sweep.main(["-S", option])
        return
    shell("git", "add", "scan.dvc")
    assert swept("-S", option, "--name", "tracked") == 0
    assert Revision("tracked").parameters["data.data_dir"] == "scan"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-S", "training.learning_rat=1"], r"cannot queue training\.learning_rat=1 \(.*training\.learning_rat"),
        (["-S", "training.learning_rate=("], r"cannot queue training\.learning_rate=\("),
        (["-S", "training.learning_rate"], r"cannot queue training\.learning_rate \("),
        (["-S", "data.data_dir=nowhere"], "there is no such folder"),
        (["-S", "data.data_dir=../scan"], "outside of the repository"),
        (["--optuna", "2", "-S", "training.learning_rat=choice(1,2)"], r"cannot queue training\.learning_rat"),
        (["--optuna", "2"], "nothing to search"),
        (["--optuna", "2", "-S", "training.devices=choice(1,2)"], r"training\.devices is a range.*give one number"),
        (["--optuna", "0", "-S", "a=choice(1,2)"], "at least 1"),
        (["--optuna", "2", "-S", "a=choice(1,2)", "--metric", "sensitivity_at_threshold"], "none of the validation"),
        (["--optuna", "2", "-S", "a=1,2"], r"written a=choice\(1,2\)"),
        (["--optuna", "2", "-S", "a=choice(1,2)", "--storage", "no/where.journal"], "no folder no"),
        (["--optuna", "2", "-S", "a=choice(1,2)", "--storage", "nodb://x"], "--storage nodb://x cannot be used"),
    ],
)
def test_mistakes_get_a_clear_answer_and_queue_nothing(project, options, message):
    with pytest.raises(InputError, match=message):
        sweep.main(options)
    assert states() == {}


def test_ranges_are_optunas_distributions():
    space, fixed = search.parse_space(
        [
            "a.b=uniform(0, 0.5)",
            "c=loguniform(1e-5,1e-3)",
            "d=range(2,9,3)",
            "e=choice(16,null,lite0)",
            "f=[1,2]",
            "g=x",
        ]
    )
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
    with pytest.raises(InputError, match=r"is no range"):
        search.parse_space([f"a={wrong}"])


@pytest.mark.parametrize("storage", ["optuna.journal", "sqlite:///scan/study.db"])
def test_a_search_makes_an_experiment_of_each_trial_and_goes_on_where_it_was(project, storage, capfd):
    (project / "scan").mkdir()
    options = ["-S", "training.learning_rate=loguniform(1e-4,1)", "-S", "split.test_fold=5", "--study", "rates"]
    options += ["--storage", storage]
    assert swept("--optuna", "2", *options) == 0
    # Trial 2 is another machine's: it counts, and is left alone.
    study = optuna.load_study(study_name="rates", storage=search.backend_of(storage))
    study.ask().set_user_attr(search.PLACE, "elsewhere:/repository")
    assert swept("--optuna", "4", *options) == 0
    names = ["rates-0000", "rates-0001", "rates-0003"]
    assert states() == dict.fromkeys(names, SUCCESS)
    rates = {name: Revision(name).parameters["training.learning_rate"] for name in names}
    assert len(set(rates.values())) == 3
    best = min(names, key=lambda name: abs(rates[name] - 0.01))
    assert f"dvc exp apply {best}" in capfd.readouterr().out
    # Another objective cannot be compared with the first.
    with pytest.raises(InputError, match=r"started with other settings.*--study"):
        sweep.main(["--optuna", "5", *options, "--metric", "auroc"])
    assert len(states()) == 3


def test_a_failed_trial_is_reported_and_the_same_seed_draws_the_same(project, capfd):
    options = ["-S", "training.learning_rate=choice(2,3)", "--storage", "sqlite:///:memory:"]
    assert swept("--optuna", "2", *options, "--study", "a") == 1
    assert "a-0000 failed" in capfd.readouterr().out
    drawn = []
    for name in ("b", "c"):
        study = search.open_study(name, "sqlite:///:memory:", "loss", {"metric": "loss"})
        space, _ = search.parse_space(["x=uniform(0,1)"])
        for _ in range(3):
            drawn.append(search.ask(study, space, seed=1).params["x"])
    assert drawn[:3] == drawn[3:]
    assert len(set(drawn)) == 3


def test_an_objective_that_the_cache_lacks_is_told_with_what_to_do(project):
    shell("dvc", "repro", "--quiet")
    shell("git", "add", "--all")
    shell("git", "commit", "--quiet", "--message", "run")
    assert search.objective("HEAD", search.LOSS) >= 0
    shutil.rmtree(".dvc/cache")
    with pytest.raises(InputError, match=r"HEAD:models/model\.json is neither in DVC's cache nor .*`dvc push` it"):
        search.objective("HEAD", search.LOSS)


def test_nothing_but_validation_metrics_can_be_searched_for():
    assert all("threshold" not in name and "test" not in name for name in search.METRICS)
    details = json.loads((ROOT / "metrics/details.json").read_text(encoding="utf-8"))
    assert set(details["val"]["metrics"]) < set(search.METRICS)
