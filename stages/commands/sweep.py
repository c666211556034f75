"""Sweep: run queued experiments to their end, or search for better parameters with Optuna.

Run the experiments of DVC's queue to its end, as many at once as there are GPUs for, and print their parameters and
headline metrics. Ctrl-C ends those that run, and queues them again for the next sweep. What killed workers left
unfinished is run again, too.

  python -m stages sweep -S 'split.test_fold=range(7)' --name folds
  dvc exp run -S 'training.learning_rate=1e-4,3e-4' --queue && python -m stages sweep
  python -m stages sweep --slurm partition=gpu,gpus=1,time=4:00:00 --jobs 20
  python -m stages sweep --optuna 50 --study rates --metric loss \\
      -S 'training.learning_rate=loguniform(1e-5,1e-3)' -S 'model.dropout_rate=uniform(0,0.5)' \\
      -S 'training.batch_size=choice(16,32)' -S training.max_epochs=10

In a search, uniform(low,high) and loguniform(low,high) draw numbers, range(start,stop[,step]) whole numbers below stop,
choice(a,b,…) one of a list; what names one value holds for all trials. The experiment of trial 7 is STUDY-0007. The
same command again continues a study up to TRIALS, here or on other machines that share its storage. Each trial takes
the workspace as it is: leave the code alone while a search runs.

Exit status: 0; 1 if an experiment failed, or after a mistake (the message then starts with "error:"); 2 for a wrong
option.
"""

import argparse
import re
import signal
import sys
from typing import Any

from stages.command_line import new_parser
from stages.errors import InputError

LONGEST = 20  # letters of a name or value in a table
SHOWN = {
    "auroc": "AUROC",
    "malignant_auroc": "AUROC",
    "sensitivity_at_threshold": "sens.",
    "specificity_at_threshold": "spec.",
    "balanced_accuracy": "bal. acc.",
    "ece": "ECE",
}


def results_table(names: list[str]) -> str:
    """Experiments side by side, in a hundred columns: the parameters in which they differ, and the main metrics.

    The best is that with the lowest validation loss: the test fold is not there to choose by.
    """
    from stages.experiments.revision import Revision, differing_parameters
    from stages.reporting import TERMINAL, number, shortened, text_table

    experiments = [Revision(name) for name in names]
    changed = differing_parameters([Revision("HEAD"), *experiments])
    metrics = [name for name in SHOWN if any(name in experiment.metrics for experiment in experiments)]
    losses = [experiment.val_loss for experiment in experiments]
    best = min((loss for loss in losses if loss is not None), default=None)

    def rows(keys: list[str]) -> list[list[str]]:
        head = ["experiment", *(key.split(".", 1)[-1] for key in keys), "val. loss", *(SHOWN[name] for name in metrics)]
        cells = [
            [
                *(shortened(str(cell), LONGEST) for cell in (each.name, *(each.parameters.get(key) for key in keys))),
                number(loss) + "*" * (loss is not None and loss == best),
                *(number(each.metrics.get(name)) for name in metrics),
            ]
            for each, loss in zip(experiments, losses)
        ]
        return [head, *cells]

    shown = list(changed)
    while shown and max(map(len, text_table(rows(shown)).splitlines())) > TERMINAL:
        shown.pop()
    left = [key for key in changed if key not in shown]
    notes = ["*: the lowest validation loss, which is what to choose by; the other numbers are of the test fold"]
    notes += [f"they also differ in {', '.join(left)}"] * bool(left)
    return "\n".join([text_table(rows(shown)), *notes])


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = new_parser("sweep", __doc__)
    add = parser.add_argument
    override = "queue experiments first: each combination of comma lists, range() and choice()"
    add("-S", "--set-param", action="append", default=[], metavar="KEY=VALUES", help=override)
    add("--name", help="name of these experiments: NAME-1, NAME-2 …; if some are queued already, continues with them")
    jobs = "experiments at once (default: GPUs / training.devices, at least 1; with --slurm, 8)"
    add("-j", "--jobs", type=int, metavar="N", help=jobs)
    slurm = "run each experiment as a job of SLURM, with these options of sbatch: partition=a,gpus=1,time=4:00:00 …"
    add("--slurm", type=_options, metavar="KEY=VALUE,…", help=slurm)
    add = parser.add_argument_group("search").add_argument
    add("--optuna", type=int, metavar="TRIALS", help="search -S ranges until the study has this many trials")
    add("--study", default="search", metavar="NAME", help="name of the study (default: %(default)s)")
    metric = "metric of the validation images: loss (default), that of training.monitor, or one of `val` in"
    add("--metric", default="loss", help=f"{metric} metrics/details.json, such as auroc")
    storage = "where the study is: a file, or a database such as postgresql://… (default: %(default)s)"
    add("--storage", default="optuna.journal", metavar="FILE|URL", help=storage)
    add("--seed", type=int, default=0, help="seed of the search (default: %(default)s)")
    args = parser.parse_args(argv)
    for option, value in (("--optuna", args.optuna), ("--jobs", args.jobs)):
        if value is not None and value < 1:
            raise InputError(f"{option} is {value}; it must be at least 1")
    return args


def _options(text: str) -> dict[str, str | bool]:
    """Options of sbatch by name, without their dashes; one without a value is a switch."""
    pairs = [option.partition("=") for option in text.split(",") if option]
    return {name.strip().lstrip("-"): value.strip() if equals else True for name, equals, value in pairs}


def _values(overrides: list[str], key: str, default: Any) -> list[str]:
    """The values that overrides as `key=a`, `key=a,b` or `key=choice(a,b)` give a parameter."""
    given = [override.removeprefix(f"{key}=") for override in overrides if override.startswith(f"{key}=")]
    return re.sub(r"choice\((.*)\)", r"\1", given[-1]).split(",") if given else [str(default)]


def _run_queue(queue: Any, args: argparse.Namespace) -> int:
    from stages.experiments.programs import SUCCESS
    from stages.experiments.queue import error_of

    if args.set_param:
        named = re.compile(rf"{re.escape(args.name or '/')}(-\d+)?")
        left = [task.name for task in queue.left if named.fullmatch(task.name)]
        names = left or queue.add(args.set_param, args.name)
        print(f"{'still queued' if left else 'queued'}: {', '.join(names)}", flush=True)
    names, failed = [], 0
    for task, left in queue.run():
        print(f"{task.name}: {task.state.lower()}; {left} left", flush=True)
        if task.state == SUCCESS:
            names.append(task.name)
        else:
            failed += 1
            print(error_of(queue.log(task)), flush=True)
    if names:
        print(f"\n{results_table(names)}")
    elif not failed:
        print("the queue is empty; fill it with -S, or with `dvc exp run -S … --queue`")
    return failed


def _search(queue: Any, args: argparse.Namespace) -> int:
    from optuna.trial import TrialState

    from stages.experiments import search
    from stages.experiments.queue import error_of

    space, fixed = search.parse_space(args.set_param)
    study = search.open_study(args.study, args.storage, args.metric, space, fixed)
    for trial, task in search.search(study, space, fixed, args.metric, args.optuna, args.seed, queue):
        value = {TrialState.FAIL: "failed", TrialState.PRUNED: "pruned"}.get(trial.state) or f"{trial.value:.4f}"
        print(f"[{trial.number + 1}/{args.optuna}] {task.name}: {args.metric} {value}", flush=True)
        if trial.state == TrialState.FAIL:
            print(error_of(queue.log(task)), flush=True)
    table = study.trials_dataframe(attrs=("number", "value", "params", "state"))
    table = table.sort_values("value", ascending=args.metric == search.LOSS).rename(columns={"value": args.metric})
    print(f"\nTrials on the validation images:\n{table.to_string(index=False, na_rep='–')}")
    if any(table["state"] == "COMPLETE"):
        best = search.experiment_name(study, study.best_trial)
        print(f"\nbest: {best}; apply it with `dvc exp apply {best}`")
    return sum(table["state"] == "FAIL")


def main(argv: list[str] | None = None) -> None:
    """Run the command line.

    Raises:
        InputError: an option or the repository has a mistake.
    """
    args = _parse(argv)
    from stages.config import load_config
    from stages.experiments.programs import QUEUED, run_dvc
    from stages.experiments.queue import ExperimentQueue, check_data, workspace_revision
    from stages.experiments.revision import Revision
    from stages.gpus import visible_gpus

    config = load_config()  # a mistake in params.yaml is reported before anything is queued
    devices = _values(args.set_param, "training.devices", config.training.devices)
    each = max([1, *(int(value) for value in devices if value.isdecimal())])
    if args.slurm is None:
        queues = ExperimentQueue(args.jobs or max(1, len(visible_gpus()) // each))
    else:
        from stages.experiments.cluster import ClusterQueue

        queues = ClusterQueue(args.jobs or 8, args.slurm)
    with queues as queue:
        for task in queue.status()[0]:
            if task.state == QUEUED:
                try:
                    check_data(Revision(task.revision).parameters["data.data_dir"], task.revision)
                except InputError as error:
                    fix = f"then dvc queue remove {task.name}, and queue it again"
                    raise InputError(f"{task.name}: {error}; {fix}") from None
        for data_dir in _values(args.set_param, "data.data_dir", config.data.data_dir) if args.set_param else []:
            check_data(data_dir, workspace_revision())
        # Between two polls, not anywhere: an exception out of a signal could end `dvc` halfway.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: setattr(queue, "stopping", True))
        try:
            failed = _search(queue, args) if args.optuna else _run_queue(queue, args)
        except KeyboardInterrupt:
            print(
                "stopping what runs; finished experiments are kept, the others stay queued with their checkpoints: "
                "`python -m stages sweep` goes on with them",
                flush=True,
            )
            queue.stop()
            raise
        finally:
            if args.slurm is None:
                run_dvc("queue", "stop")  # when the workers have finished what they run
    sys.exit(1 if failed else 0)
