"""Sweep: run queued experiments to their end, or search for better parameters with Optuna."""

import argparse
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from stages.config import load_config
from stages.errors import InputError
from stages.experiments.queue import DEVICES, FAILED, QUEUED, RUNNING, SUCCESS, ExperimentQueue, Task, visible_gpus
from stages.experiments.revision import Revision, differing_parameters
from stages.reporting import MISSING, text_table

DESCRIPTION = """\
Run the experiments of DVC's queue to its end, one at a time on each GPU (on the CPU where there is none), and print
their parameters and headline metrics. What a killed sweep or worker left is run again: start it once more.
"""
EXAMPLES = """\
examples:
  dvc exp run -S 'split.test_fold=range(7)' --queue && python -m stages sweep
  python -m stages sweep -S 'training.learning_rate=1e-4,3e-4' -S 'training.seed=range(3)'
  python -m stages sweep --optuna 50 --study rates --metric loss \\
      -S 'training.learning_rate=loguniform(1e-5,1e-3)' -S 'model.dropout_rate=uniform(0,0.5)' \\
      -S 'training.batch_size=choice(16,32)' -S training.max_epochs=10

In a search, uniform(low,high) and loguniform(low,high) draw numbers, range(start,stop[,step]) whole numbers below stop,
choice(a,b,…) one of a list; what names one value holds for all trials. The experiment of trial 7 is STUDY-0007. The
same command again goes on with a study up to TRIALS, here or on other machines that share its storage. Each trial takes
the workspace as it is: leave the code alone while a search runs.

Exit status: 0; 1 if an experiment failed, or after a mistake (the message then starts with "error:"); 2 for a wrong
option.
"""


def run_queue(queue: ExperimentQueue, report: Callable[[str], None]) -> list[Task]:
    """Run the queue to its end.

    Args:
        queue: what to run.
        report: is called with each line of progress.

    Returns:
        The experiments that were in it, as they ended; without those that `dvc queue remove` took out meanwhile.

    Raises:
        InputError: workers die without an end.
    """
    waiting = {task.revision: task.name for task in queue.tasks() if task.state in (QUEUED, RUNNING)}
    total, begun, ended = len(waiting), {}, []
    while waiting:
        for name in queue.tend():
            report(f"{name}: its worker died; queued again")
        tasks = queue.tasks()
        for revision in waiting.keys() - {task.revision for task in tasks}:
            total -= 1
            report(f"{waiting.pop(revision)}: removed from the queue; not waited for")
        for task in tasks:
            if task.revision not in waiting:
                continue
            if task.state == RUNNING and task.revision not in begun:
                begun[task.revision] = time.monotonic()
                report(f"{task.name}: running")
            elif task.state in (SUCCESS, FAILED):
                del waiting[task.revision]
                ended.append(task)
                seconds = time.monotonic() - begun.get(task.revision, time.monotonic())
                report(f"[{len(ended)}/{total}] {task.name}: {task.state} after {seconds:.0f} s")
        time.sleep(0.5)
    return ended


def results_table(names: list[str]) -> str:
    """Experiments side by side: the parameters in which they differ from the commit or each other, and the metrics."""
    experiments = [Revision(name) for name in names]
    changed = differing_parameters([Revision("HEAD"), *experiments])
    metrics = list(dict.fromkeys(name for experiment in experiments for name in experiment.metrics))
    rows = [
        [experiment.name, *(_short(experiment.parameters.get(key)) for key in changed)]
        + [_number(experiment.metrics.get(key)) for key in metrics]
        for experiment in experiments
    ]
    return text_table([["experiment", *(key.split(".", 1)[-1] for key in changed), *metrics], *rows])


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "null" if value is None else str(value)


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stages sweep",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-S",
        "--set-param",
        action="append",
        default=[],
        metavar="KEY=VALUES",
        help="queue experiments first: each combination of comma lists, range() and choice(), as `dvc exp run --queue`",
    )
    parser.add_argument("--name", metavar="NAME", help="of these experiments: NAME-1, NAME-2 …")
    search = parser.add_argument_group("search")
    search.add_argument(
        "--optuna", type=int, metavar="TRIALS", help="search -S ranges until the study has so many trials"
    )
    search.add_argument("--study", default="search", metavar="NAME", help="of the study (default: %(default)s)")
    search.add_argument(
        "--metric",
        default="loss",
        metavar="METRIC",
        help="of the validation images: loss (default), that of training.monitor, or one of `val` in "
        "metrics/details.json, as auroc",
    )
    search.add_argument(
        "--storage",
        default="optuna.journal",
        metavar="FILE|URL",
        help="of the study: a file, or a database as postgresql://… (default: %(default)s)",
    )
    search.add_argument("--seed", type=int, default=0, help="of the search (default: %(default)s)")
    return parser.parse_args(argv)


def _queue(queue: ExperimentQueue, args: argparse.Namespace) -> int:
    queue.deal_gpus(args.set_param or None)
    if args.set_param:
        print(f"queued: {', '.join(queue.add(args.set_param, args.name))}", flush=True)
    ended = run_queue(queue, lambda line: print(line, flush=True))
    if not ended:
        print("the queue is empty; fill it with -S, or with `dvc exp run -S … --queue`")
        return 0
    names = [task.name for task in ended if task.state == SUCCESS]
    if names:
        print(f"\n{results_table(names)}")
    failed = [task for task in ended if task.state == FAILED]
    for task in failed:
        print(f"\n{task.name} failed; `dvc queue logs {task.name}` has all of it:\n{queue.error_of(task)}")
    return len(failed)


def _search(queue: ExperimentQueue, args: argparse.Namespace) -> int:
    from stages.experiments import search  # Optuna takes a second to import

    if args.optuna < 1:
        raise InputError(f"--optuna is {args.optuna}; it must be at least 1")
    if args.metric not in search.METRICS:
        raise InputError(
            f"--metric {args.metric} is none of the validation images; known are {', '.join(search.METRICS)}"
        )
    space, fixed = search.parse_space(args.set_param)
    if DEVICES in space:
        raise InputError(f"-S {DEVICES} is a range; all trials of a search get as many GPUs: give one number")
    queue.deal_gpus(fixed)
    search.ensure_folder(args.storage)
    settings = {
        "metric": args.metric,
        "ranges": {key: str(distribution) for key, distribution in space.items()},
        "fixed": fixed,
        "commit": queue.repo.scm.get_rev(),
    }
    study = search.open_study(args.study, args.storage, args.metric, settings)

    def report(trial: Any) -> None:
        value = _number(trial.value) if trial.value is not None else "failed"
        print(
            f"[{trial.number + 1}/{args.optuna}] {search.experiment_name(study, trial)}: {args.metric} {value}",
            flush=True,
        )

    search.search(study, space, fixed, args.metric, args.optuna, args.seed, queue, report)
    trials = study.get_trials(deepcopy=False)
    best_first = sorted(
        (trial for trial in trials if trial.value is not None),
        key=lambda trial: trial.value,
        reverse=study.direction.name == "MAXIMIZE",
    )
    rows = [
        [search.experiment_name(study, trial), *(_short(trial.params[key]) for key in space), _number(trial.value)]
        for trial in best_first
    ]
    print("\n" + text_table([["experiment", *space, f"{args.metric} (validation)"], *rows]))
    if rows:
        print(f"\nbest: {rows[0][0]}; take it over with `dvc exp apply {rows[0][0]}`")
    failed = {search.experiment_name(study, trial) for trial in trials if trial.state.name == "FAIL"}
    for task in queue.tasks():
        if task.name in failed:
            print(f"\n{task.name} failed; `dvc queue logs {task.name}` has all of it:\n{queue.error_of(task)}")
    return len(failed)


def main(argv: list[str] | None = None) -> None:
    """Run the command line.

    Raises:
        InputError: an option or the repository has a mistake.
    """
    args = _parse(argv)
    load_config()  # a mistake in params.yaml is told before anything is queued
    with ExperimentQueue(visible_gpus()) as queue:
        # Between two turns, not anywhere: an exception out of a signal may hit code that swallows it.
        signal.signal(signal.SIGTERM, lambda *_: setattr(queue, "terminated", True))
        try:
            queue.check_data()
            failed = _search(queue, args) if args.optuna is not None else _queue(queue, args)
        except KeyboardInterrupt:
            queue.stop(running=True)
            raise
        finally:
            queue.stop(running=False)
    sys.exit(1 if failed else 0)
