"""A search for better parameters with Optuna, in which every trial is an experiment of DVC.

The objective is taken from the validation images; nothing here can read a number of the test fold.
"""

import json
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import OptunaError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from ruamel.yaml import YAML, YAMLError
from sqlalchemy.exc import SQLAlchemyError

from stages.errors import InputError
from stages.experiments.queue import FAILED, SUCCESS, ExperimentQueue
from stages.experiments.revision import Revision
from stages.files import DETAILS, MODEL_DESCRIPTION

LOSS = "loss"  # `training.monitor` of the epoch that was kept; others are those of `val` in metrics/details.json
METRICS = (
    LOSS,
    *("auroc", "auprc", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "precision", "f1"),
    *("malignant_auroc", "macro_auroc", "macro_auprc", "macro_sensitivity", "macro_specificity"),
    *("macro_precision", "macro_f1"),
)
PLACE, SETTINGS = "place", "settings"  # attributes of trials and of the study
RANGE = re.compile(r"(uniform|loguniform|range|choice)\((.*)\)")


def parse_space(overrides: list[str]) -> tuple[dict[str, BaseDistribution], list[str]]:
    """Part the options of a search.

    Args:
        overrides: as `training.learning_rate=loguniform(1e-5,1e-3)`. `uniform(low,high)` and `loguniform(low,high)`
            draw numbers, `range(start,stop[,step])` whole ones below stop, `choice(a,b,…)` one of a list.

    Returns:
        Optuna's distributions by parameter, and the overrides that name one value.

    Raises:
        InputError: a range is wrong, or there is none.
    """
    space, fixed = {}, []
    for override in overrides:
        key, _, value = override.partition("=")
        match = RANGE.fullmatch(value.strip())
        if not match:
            if re.search(r",(?![^\[{]*[\]}])", value):
                raise InputError(f"-S {override}: a search draws from a list that is written {key}=choice({value})")
            fixed.append(override)
            continue
        try:
            space[key] = _distribution(match[1], _values(match[2]))
        except (TypeError, ValueError, YAMLError) as error:
            raise InputError(
                f"-S {override} is no range ({' '.join(str(error).split())}); ranges are uniform(low,high), "
                "loguniform(low,high), range(start,stop[,step]) and choice(a,b,…)"
            ) from None
    if not space:
        raise InputError(
            "there is nothing to search; give a range, as -S 'training.learning_rate=loguniform(1e-5,1e-3)'"
        )
    return space, fixed


def _values(text: str) -> list[Any]:
    return list(YAML(typ="safe", pure=True).load(f"[{text}]"))


def _distribution(kind: str, values: list[Any]) -> BaseDistribution:
    if kind == "choice":
        if len(values) < 2:
            raise ValueError("one value is no choice")
        return CategoricalDistribution(values)
    if kind == "range":
        bounds = range(*values)
        if not bounds:
            raise ValueError("it is empty")
        return IntDistribution(bounds[0], bounds[-1], step=bounds.step)
    low, high = map(float, values)
    return FloatDistribution(low, high, log=kind == "loguniform")


def open_study(name: str, storage: str, metric: str, settings: dict[str, Any]) -> optuna.Study:
    """Create a study, or open it to go on with it.

    Args:
        name: of the study.
        storage: the URL of a database, or a file for Optuna's journal.
        metric: one of `METRICS`.
        settings: what trials must have in common to be compared: metric, ranges, fixed parameters, commit.

    Raises:
        InputError: the storage cannot be used, or the study was started with other settings.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            study_name=name,
            storage=backend_of(storage),
            direction="minimize" if metric == LOSS else "maximize",
            load_if_exists=True,
        )
        started = study.user_attrs.get(SETTINGS)
        begun = any(trial.state != TrialState.FAIL for trial in study.get_trials(deepcopy=False))
        if started is None or (not begun and started["metric"] == settings["metric"]):
            study.set_user_attr(SETTINGS, settings)
            started = settings
    # ValueError: a file that is no journal, or another study's direction; ImportError: a database's driver.
    except (OSError, ImportError, ValueError, OptunaError, SQLAlchemyError) as error:
        raise InputError(f"--storage {storage} cannot be used ({' '.join(str(error).split())})") from None
    changed = [
        f"{key} ({started.get(key)}, now {value})" for key, value in settings.items() if started.get(key) != value
    ]
    if changed:
        raise InputError(
            f"the study {name!r} in {storage} was started with other settings, and its trials could not be compared: "
            f"{'; '.join(changed)}; give the same again, or another --study"
        )
    return study


def backend_of(storage: str) -> str | JournalStorage:
    """What Optuna takes as storage: the URL of a database as it is, a file as a journal."""
    return storage if "://" in storage else JournalStorage(JournalFileBackend(storage))


def search(
    study: optuna.Study,
    space: dict[str, BaseDistribution],
    fixed: list[str],
    metric: str,
    trials: int,
    seed: int,
    queue: ExperimentQueue,
    report: Callable[[FrozenTrial], None],
) -> None:
    """Run trials until the study has `trials` of them, those of other machines included.

    Args:
        study: where trials are recorded.
        space: the distributions by parameter.
        fixed: overrides of all trials.
        metric: the objective.
        trials: how many the study is to have.
        seed: of the sampler.
        queue: runs them.
        report: is called with each trial that ends.

    Raises:
        InputError: an experiment cannot be queued.
    """
    place = f"{platform.node()}:{queue.repo.root_dir}"
    while True:
        queue.tend()
        running = 0
        states = {task.name: task.state for task in queue.tasks()}
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.user_attrs.get(PLACE) != place:
                continue
            name = experiment_name(study, trial)
            if states.get(name) in (SUCCESS, FAILED):
                value = objective(name, metric) if states[name] == SUCCESS else None
                study.tell(trial.number, value, TrialState.COMPLETE if value is not None else TrialState.FAIL)
                report(study.trials[trial.number])
            else:
                if name not in states:  # this sweep was killed between drawing and queueing it
                    queue.add(fixed + _overrides(trial.params), name)
                running += 1
        started = len(study.get_trials(deepcopy=False))
        if running < queue.workers and started < trials:
            trial = ask(study, space, seed)
            trial.set_user_attr(PLACE, place)
            try:
                queue.add(fixed + _overrides(trial.params), experiment_name(study, trial))
            except InputError:
                study.tell(trial, state=TrialState.FAIL)
                raise
        elif running:
            time.sleep(1)
        else:
            return


def ask(study: optuna.Study, space: dict[str, BaseDistribution], seed: int) -> optuna.Trial:
    """Draw the parameters of the next trial; what is drawn depends on the seed, its number and the trials before it."""
    # One seed for all would draw the same again after each restart.
    number = len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=(seed + 1000003 * number) % 2**32)
    return study.ask(space)


def experiment_name(study: optuna.Study, trial: Any) -> str:
    """The name of a trial's experiment, as `study-0007`."""
    return f"{study.study_name}-{trial.number:04d}"


def _overrides(parameters: dict[str, Any]) -> list[str]:
    def text(value: Any) -> str:
        return value if isinstance(value, str) else json.dumps(value)

    return [f"{key}={text(value)}" for key, value in parameters.items()]


def objective(name: str, metric: str) -> float | None:
    """The value of a validation metric in an experiment; None if it has none, as an AUROC of one class.

    Raises:
        InputError: the experiment has no such metric, or its file is in neither cache nor remote.
    """
    path = MODEL_DESCRIPTION if metric == LOSS else DETAILS
    content = Revision(name).read(path)
    if content is None:
        raise InputError(f"{name} has no {path.as_posix()}")
    values = json.loads(content)
    metrics = {LOSS: mean(values["val_losses"])} if metric == LOSS else values["val"]["metrics"]
    if metric not in metrics:
        raise InputError(f"--metric {metric}: {name} has {LOSS}, {', '.join(metrics)}")
    return metrics[metric]


def ensure_folder(storage: str) -> None:
    """Raises InputError if the folder of a storage file is missing."""
    if "://" not in storage and not Path(storage).absolute().parent.is_dir():
        raise InputError(f"--storage {storage}: there is no folder {Path(storage).parent}")
