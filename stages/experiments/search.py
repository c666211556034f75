"""A search for better parameters with Optuna, in which every trial is an experiment of DVC.

The objective is taken from the validation images; nothing here can read a number of the test fold.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import OptunaError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from ruamel.yaml import YAML, YAMLError
from sqlalchemy.exc import SQLAlchemyError

from stages.errors import InputError
from stages.evaluation.details import BinaryMetrics, DiagnosisMetrics
from stages.experiments.programs import RUNNING, SUCCESS, run_git
from stages.experiments.queue import ExperimentQueue, Task, as_overrides
from stages.experiments.revision import Revision
from stages.files import DETAILS, MODEL_DESCRIPTION, PUBLISHED, TRAINING_METRICS

LOSS = "loss"  # `training.monitor` of the epoch that was kept; others are those of `val` in metrics/details.json
METRICS = (LOSS, *dict.fromkeys([*BinaryMetrics.model_fields, *DiagnosisMetrics.model_fields]))
CURVE = Path("plots/metrics/val/loss.tsv")
RANGE = re.compile(r"(uniform|loguniform|range|choice)\((.*)\)")


def parse_space(overrides: list[str]) -> tuple[dict[str, BaseDistribution], list[str]]:
    """Separate ranges, as `training.learning_rate=loguniform(1e-5,1e-3)`, from overrides that hold for all trials.

    Returns:
        Optuna's distributions by parameter, and the other overrides.

    Raises:
        InputError: a range is wrong, or there is none.
    """
    space, fixed = {}, []
    for override in overrides:
        key, _, value = override.partition("=")
        if match := RANGE.fullmatch(value.strip()):
            try:
                space[key] = _distribution(match[1], YAML(typ="safe", pure=True).load(f"[{match[2]}]"))
            except (TypeError, ValueError, YAMLError) as error:
                raise InputError(
                    f"-S {override} is not a range ({' '.join(str(error).split())}); ranges are uniform(low,high), "
                    "loguniform(low,high), range(start,stop[,step]) and choice(a,b,…)"
                ) from None
        elif re.search(r",(?![^\[{]*[\]}])", value):
            raise InputError(f"-S {override}: a search draws from a list that is written {key}=choice({value})")
        else:
            fixed.append(override)
    if not space:
        raise InputError("there is nothing to search; give a range, such as -S 'model.dropout_rate=uniform(0,0.5)'")
    return space, fixed


def _distribution(kind: str, values: list[Any]) -> BaseDistribution:
    if kind == "choice":
        if len(values) < 2:
            raise ValueError("one value is not a choice")
        return CategoricalDistribution(values)
    if kind == "range":
        bounds = range(*values)
        if not bounds:
            raise ValueError("it is empty")
        return IntDistribution(bounds[0], bounds[-1], step=bounds.step)
    low, high = map(float, values)
    return FloatDistribution(low, high, log=kind == "loguniform")


def open_study(
    name: str, storage: str, metric: str, space: dict[str, BaseDistribution], fixed: list[str]
) -> optuna.Study:
    """Create a study in a file or database, or open it to continue it.

    Raises:
        InputError: there is no such metric, the storage cannot be used, or the study was started with another metric,
            ranges, fixed parameters or commit, so that its trials could not be compared.
    """
    if metric not in METRICS:
        raise InputError(f"--metric {metric} is not a metric of the validation images; known are {', '.join(METRICS)}")
    ranges = {key: str(distribution) for key, distribution in space.items()}
    settings = {"metric": metric, "ranges": ranges, "fixed": fixed, "commit": run_git("rev-parse", "HEAD")}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            study_name=name,
            storage=storage if "://" in storage else JournalStorage(JournalFileBackend(storage)),
            direction="minimize" if metric == LOSS else "maximize",
            load_if_exists=True,
        )
        started = study.user_attrs.get("settings")
        begun = any(trial.state != TrialState.FAIL for trial in study.get_trials(deepcopy=False))
        if started is None or (not begun and started["metric"] == metric):
            study.set_user_attr("settings", started := settings)
    # ValueError: a file that is not a journal, or another study's direction; ImportError: a database's driver.
    except (OSError, ImportError, ValueError, OptunaError, SQLAlchemyError) as error:
        raise InputError(f"--storage {storage} cannot be used ({' '.join(str(error).split())})") from None
    changed = [f"{key} ({started[key]}, now {value})" for key, value in settings.items() if started[key] != value]
    if changed:
        raise InputError(
            f"the study {name!r} in {storage} was started with other settings, and its trials could not be compared: "
            f"{'; '.join(changed)}; give the same again, or another --study"
        )
    return study


def search(
    study: optuna.Study,
    space: dict[str, BaseDistribution],
    fixed: list[str],
    metric: str,
    trials: int,
    seed: int,
    queue: ExperimentQueue,
) -> Iterator[tuple[FrozenTrial, Task]]:
    """Run trials until the study has `trials` of them, those of other machines included.

    One whose validation curve is worse than the median of the others at the same epoch is ended.

    Yields:
        Each trial that ends, without a value if it failed or was pruned, and its experiment.

    Raises:
        InputError: an experiment cannot be queued.
    """
    asked: dict[int, optuna.Trial] = {}  # only these can report: of those of an earlier sweep the result counts alone
    while True:
        tasks, running = {task.name: task for task in queue.poll()}, []
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            task = tasks.get(experiment_name(study, trial))
            if trial.user_attrs.get("place") != queue.place:
                continue
            if task is not None and task.state == RUNNING and trial.number in asked:
                folder = queue.folder(task)
                curve = folder / TRAINING_METRICS / CURVE if folder else None
                _report(asked[trial.number], curve.read_bytes() if curve and curve.is_file() else None, study.direction)
                if asked[trial.number].should_prune():
                    queue.end(task)
                    study.tell(trial.number, state=TrialState.PRUNED)
                    yield study.trials[trial.number], task
                    continue
            if task is None or task.unfinished:
                running.append(trial)
                continue
            value = objective(task.name, metric) if task.state == SUCCESS else None
            if value is not None and trial.number in asked:
                _report(
                    asked[trial.number], Revision(task.name).read(PUBLISHED[TRAINING_METRICS] / CURVE), study.direction
                )
            study.tell(trial.number, value, TrialState.FAIL if value is None else TrialState.COMPLETE)
            yield study.trials[trial.number], task
        while len(running) < queue.jobs and len(study.get_trials(deepcopy=False)) < trials:
            running.append(ask(study, space, seed))
            running[-1].set_user_attr("place", queue.place)
            asked[running[-1].number] = running[-1]
        for trial in running:
            # Also what was drawn before the search was killed.
            if (name := experiment_name(study, trial)) not in tasks:
                try:
                    queue.add(fixed + as_overrides(trial.params), name)
                except InputError:
                    study.tell(trial.number, state=TrialState.FAIL)
                    raise
        if not running:
            return


def ask(study: optuna.Study, space: dict[str, BaseDistribution], seed: int) -> optuna.Trial:
    """Draw the parameters of the next trial; what is drawn depends on the seed, its number and the trials before it."""
    # One seed for all would draw the same again after each restart.
    number = len(study.get_trials(deepcopy=False))
    # Of those that other workers have drawn and that still run, it keeps away.
    study.sampler = optuna.samplers.TPESampler(seed=(seed + 1000003 * number) % 2**32, constant_liar=True)
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2, n_min_trials=5)
    return study.ask(space)


def _report(trial: optuna.Trial, curve: bytes | None, direction: StudyDirection) -> None:
    """Tell a trial the validation losses of its experiment, as DVCLive has logged them so far."""
    # A study that is after the largest metric is told what is the larger the better. The last line may be half written.
    sign = 1 if direction == StudyDirection.MINIMIZE else -1
    lines = (curve or b"").decode().rpartition("\n")[0].splitlines()[1:]
    known = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
    for number in range(len(known), len(lines)):
        trial.report(sign * float(lines[number].split("\t")[-1]), number)


def experiment_name(study: optuna.Study, trial: Any) -> str:
    """The name of a trial's experiment, as `study-0007`."""
    return f"{study.study_name}-{trial.number:04d}"


def objective(name: str, metric: str) -> float | None:
    """The value of a validation metric in an experiment; None if it has none, as an AUROC of one class.

    Raises:
        InputError: the experiment has no such metric, or its file is in neither cache nor remote.
    """
    path = MODEL_DESCRIPTION if metric == LOSS else PUBLISHED[DETAILS]
    content = Revision(name).read(path)
    if content is None:
        raise InputError(f"{name} has no {path.as_posix()}")
    values = json.loads(content)
    metrics = {LOSS: mean(values["val_losses"])} if metric == LOSS else values["val"]["metrics"]
    if metric not in metrics:
        raise InputError(f"--metric {metric}: {name} has {LOSS}, {', '.join(metrics)}")
    return metrics[metric]
