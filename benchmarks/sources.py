"""What a second source does to a classifier, and what helps: judged on held-out lesions and on sources left out.

    python -m benchmarks.sources --data-dir data/collections --gpus 4 --jobs 3
    python -m benchmarks.sources --data-dir data/collections --gpus 4 --jobs 3 --options all
    python -m benchmarks.sources --table

The folder holds three datasets: `ham10000`, `ham10000-224`, of which each image shows a lesion of the first in another
geometry and sharpness, and `isic2017`, which has three diagnoses only. Networks are trained on one of the first two,
alone or with ISIC 2017 added, and judged on the test fold's lesions in both geometries: the one that was not trained on
is a source left out. Without ISIC 2017 they are judged on that, too. Others are trained on HAM10000 without one of its
own sources, another country's, and judged on that. An image of ISIC 2017 that looks like one of HAM10000's is not used.

Each run is `RECIPE` of benchmarks/recipe.py with the parameters of one of `OPTIONS`, trained and judged in a process
that does one run after another, `--jobs` of them on each GPU, which share the prepared pixels. What a run finds lies in
a file of its own in `--work`: a run that has one is not done again. The intervals are of a bootstrap over lesions and
seeds, in pairs for the difference to the same training images without ISIC 2017 and without options.

Writes benchmarks/results/sources.json whenever a run has ended.
"""

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout

from benchmarks.plain import PLAIN
from benchmarks.recipe import RECIPE, configure, parse_value, release_memory
from stages.classifier.hardware import describe_environment, set_up_device
from stages.classifier.inference import predict_probabilities
from stages.classifier.weights import load_model
from stages.dataset.duplicates import near_duplicates
from stages.dataset.folds import NO_FOLD
from stages.dataset.metadata import read_metadata
from stages.dataset.pixels import PixelStore
from stages.dataset.sources import read_settings
from stages.dataset.taxonomy import classes_of, numbers_of
from stages.errors import InputError
from stages.evaluation.uncertainty import replicate
from stages.evaluation.weighted import is_mean_over_classes, mean_over_classes, unit_weights, weighted_metrics
from stages.files import JSON_DECIMALS, read_json, replacing, write_csv, write_json
from stages.launch import run
from stages.prepare import prepare_dataset
from stages.split import split_dataset
from stages.training.fit import train_model

RESULT = Path("benchmarks/results/sources.json")
FULL, SMALL, ADDED = "ham10000", "ham10000-224", "isic2017"
LEFT_OUT = "rosendahl"  # of the four sources that HAM10000's own table names
OTHERS = f"{FULL} without {LEFT_OUT}"
ALONE = {FULL: (FULL,), OTHERS: (FULL,), SMALL: (SMALL,)}
TRAINED = ALONE | {f"{name}+{ADDED}": (*sources, ADDED) for name, sources in ALONE.items()}
_ACQUISITION = {"data.acquisition_strength": 1.0}
_DETAIL = {"data.detail": 112}
_WITHIN = {"training.class_balance_within": "source"}
OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "acquisition": _ACQUISITION,
    "within": _WITHIN,
    "acquisition, within": _ACQUISITION | _WITHIN,
    "detail": _DETAIL,
    "masked": _WITHIN | {"training.class_balance": "none"},
    "within, strength 1": _WITHIN | {"training.class_balance_strength": 1.0},
    "acquisition 0.5, within": {"data.acquisition_strength": 0.5} | _WITHIN,
    "acquisition, detail, within": _ACQUISITION | _DETAIL | _WITHIN,
}
ESSENTIAL = list(OPTIONS)[:4]
METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_auroc": "macro AUROC",
    "malignant_auroc": "malignant AUROC",
}
REPLICATES, CONFIDENCE = 1000, 0.95


class Run(NamedTuple):
    """One training: on what, of `TRAINED`; how, of `OPTIONS`; and its seed."""

    trained: str
    option: str
    seed: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.trained} {self.option} {self.seed}"


def plan(trained_on: list[str], options: list[str], seeds: int) -> list[Run]:
    """The runs: all of a seed before those of the next. Of one source there is nothing to balance within.

    Raises:
        InputError: there are no such training images, or no such option.
    """
    for names, known in ((trained_on, TRAINED), (options, OPTIONS)):
        if unknown := [name for name in names if name not in known]:
            raise InputError(f"{', '.join(unknown)}: not known; there are {'; '.join(known)}")
    return [
        Run(trained, option, seed)
        for seed, option, trained in product(range(seeds), options, trained_on)
        if ADDED in trained or not _WITHIN.items() <= OPTIONS[option].items()
    ]


def overrides_of(option: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The parameters of an option, by their dotted names."""
    plain = {"model.num_classes": "diagnoses", "training.class_balance_within": "all"}
    return RECIPE | plain | OPTIONS[option] | settings


def store_folder(work: Path, overrides: dict[str, Any]) -> Path:
    """Where the pixels that a run needs lie."""
    return work / f"prepared-{overrides['data.image_size']}-{overrides.get('data.detail')}"


def split_file(work: Path, trained: str) -> Path:
    """Where the split of a set of training images lies."""
    return work / f"split-{trained}.csv"


def prepare(data_dir: Path, work: Path, overrides: dict[str, Any]) -> None:
    """Prepare the pixels for some parameters, and the splits, where they are not there.

    Raises:
        InputError: the folder is not of the three datasets, or one of them has a mistake.
    """
    folder = store_folder(work, overrides)
    if not folder.exists():
        size, detail = (overrides.get(f"data.{name}") for name in ("image_size", "detail"))
        data = replace(PLAIN.data, data_dir=str(data_dir), image_size=size, detail=detail)
        prepare_dataset(data, folder)
    store = PixelStore(folder)
    if set(store.sources) != {FULL, SMALL, ADDED}:
        raise InputError(f"{data_dir} must hold the datasets {FULL}, {SMALL} and {ADDED}; it has {list(store.sources)}")
    if not all(split_file(work, trained).exists() for trained in TRAINED):
        splits, source = split_sources(store), store.manifest["dataset"]
        rows = read_metadata(data_dir / FULL, store.taxonomy, read_settings(data_dir / FULL).columns)[0]
        is_left_out = splits["lesion_id"].isin(rows["lesion_id"][rows["dataset"] == LEFT_OUT])
        # Of fold 0 is then what is judged.
        others = splits.assign(fold=splits["fold"].mask(splits["fold"] == 0, NO_FOLD).mask(is_left_out, 0))
        others["split"] = splits["split"].mask(is_left_out, "test")
        for trained, names in TRAINED.items():
            # A split names every prepared image: what is not trained on stands under test, and is not judged as such.
            split = others if trained.startswith(OTHERS) else splits
            write_csv(split_file(work, trained), split.assign(split=split["split"].where(source.isin(names), "test")))


def split_sources(store: PixelStore) -> pd.DataFrame:
    """HAM10000's folds, in both geometries by its lesions, and ISIC 2017's, without what is HAM10000's, too."""
    manifest = store.manifest
    of = {name: manifest[manifest["dataset"] == name] for name in store.sources}
    full, added = (split_dataset(of[name], PLAIN.split) for name in (FULL, ADDED))
    known = full.drop_duplicates("lesion_id").set_index("lesion_id")
    small = of[SMALL][["image_id", "lesion_id"]]
    lesion = small["lesion_id"].str.removeprefix(f"{SMALL}.")
    small = small.assign(**{name: known[name].reindex(lesion).to_numpy() for name in ("fold", "split")})
    alike = near_duplicates(store, manifest["dataset"], names=(FULL, ADDED))
    is_alike = added["image_id"].isin(alike[["image_id_1", "image_id_2"]].to_numpy().ravel())
    added = added.assign(split=added["split"].mask(is_alike, "test"), fold=added["fold"].mask(is_alike, NO_FOLD))
    # A lesion that only the other geometry shows is in no split of the first: it is left out.
    splits = pd.concat([full, small.fillna({"fold": NO_FOLD, "split": "test"}), added]).astype({"fold": int})
    return splits.loc[manifest.index]


def targets(store: PixelStore, split: pd.DataFrame, trained: str) -> dict[str, np.ndarray]:
    """What a network is judged on: rows of the store by the names of the sources."""
    source, is_tested = store.manifest["dataset"], (split["fold"] == PLAIN.split.test_fold).to_numpy()
    if trained.startswith(OTHERS):
        return {LEFT_OUT: np.flatnonzero((source == FULL) & is_tested)}
    judged = {name: np.flatnonzero((source == name) & is_tested) for name in (FULL, SMALL)}
    if ADDED not in trained:
        judged[ADDED] = np.flatnonzero((source == ADDED) & (split["fold"] >= 0).to_numpy())
    return judged


def measure(planned: Run, work: Path, settings: dict[str, Any]) -> dict[str, np.ndarray]:
    """Train and judge: by target and metric the value and its replicates, shape (1 + `REPLICATES`,)."""
    overrides = overrides_of(planned.option, settings)
    config = configure(overrides | {"training.seed": planned.seed, "training.resume": False})
    folder, split_path = store_folder(work, overrides), split_file(work, planned.trained)
    store, split = PixelStore(folder), pd.read_csv(split_path)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        outputs = [Path(temporary) / name for name in ("models", "metrics", "checkpoints")]
        with contextlib.redirect_stdout(io.StringIO()):  # one line per epoch
            train_model(config, folder, split_path, *outputs)
        network, _ = load_model(outputs[0])
    seconds = time.perf_counter() - start
    device, classes = set_up_device(config.runtime.cpu_threads), classes_of(store.taxonomy, "diagnoses")
    found = {"seconds": np.array([seconds])}
    for target, rows in targets(store, split, planned.trained).items():
        parts = np.array_split(rows, -(-len(rows) // config.evaluation.batch_size))
        images = (torch.from_numpy(store.read(part)) for part in parts)
        probabilities = predict_probabilities(network, images, device, config.evaluation.test_time_augmentation)
        table = store.manifest.iloc[rows]
        labels = numbers_of(table["dx"], store.taxonomy, classes)

        def statistic(weights: np.ndarray, probabilities=probabilities, labels=labels) -> dict[str, np.ndarray]:
            drawn = weighted_metrics(probabilities, labels, weights, classes)
            return {
                name: mean_over_classes(drawn[name]) if is_mean_over_classes(name) else drawn[name] for name in METRICS
            }

        once = statistic(unit_weights(rows))
        drawn = replicate(statistic, table["lesion_id"].to_numpy(), REPLICATES)
        found |= {f"{target}.{name}": np.concatenate([once[name], drawn[name]]) for name in METRICS}
    return found


def result_file(work: Path, planned: Run) -> Path:
    """Where what a run found lies."""
    return work / "runs" / f"{planned.name}.npz"


def do_runs(runs: list[Run], work: Path, settings: dict[str, Any]) -> None:
    """Do the runs that no other process has done or is doing, one after another."""
    for planned in runs:
        path = result_file(work, planned)
        with contextlib.suppress(Timeout), FileLock(f"{path}.lock", timeout=0):
            if not path.exists():
                found: Any = measure(planned, work, settings)
                with replacing(path) as partial, partial.open("wb") as file:
                    np.savez(file, **found)
                release_memory()


def summarise(runs: list[Run], work: Path) -> list[dict]:
    """A row for each training set, option and target of which runs have ended, with its seeds' mean metrics."""
    found: dict[tuple[str, str], dict[int, dict[str, np.ndarray]]] = {}
    for planned in runs:
        if (path := result_file(work, planned)).exists():
            with np.load(path) as stored:
                found.setdefault((planned.trained, planned.option), {})[planned.seed] = dict(stored)
    rows = []
    for (trained, option), seeds in found.items():
        base = found.get((trained.removesuffix(f"+{ADDED}"), "none"), {})
        for target in dict.fromkeys(name.rpartition(".")[0] for name in next(iter(seeds.values())) if "." in name):
            row = {"trained": trained, "option": option, "target": target, "seeds": sorted(seeds)}
            row["training_seconds"] = [round(float(of["seconds"][0]), 1) for _, of in sorted(seeds.items())]
            for metric in METRICS:
                key = f"{target}.{metric}"
                row[metric] = _estimate([of[key] for _, of in sorted(seeds.items())])
                pairs = [seeds[seed][key] - base[seed][key] for seed in sorted(seeds) if seed in base]
                if pairs and seeds is not base:
                    row[metric] |= {f"difference_{name}": value for name, value in _estimate(pairs).items()}
            rows.append(row)
    return sorted(rows, key=lambda row: (row["target"], list(TRAINED).index(row["trained"])))


def _estimate(seeds: list[np.ndarray]) -> dict[str, Any]:
    """The mean over seeds with an interval over lesions and seeds, and each seed's own number."""
    values = np.stack(seeds).astype(float)
    random = np.random.default_rng(0)
    chosen = random.integers(len(values), size=(REPLICATES, len(values)))
    drawn = values[chosen, 1 + np.arange(REPLICATES)[:, None]].mean(axis=1)
    low, high = np.nanquantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    number = values[:, 0].mean()
    rounded = [round(float(each), JSON_DECIMALS) for each in (number, low, high, *values[:, 0])]
    return {"value": rounded[0], "interval": rounded[1:3], "by_seed": rounded[3:]}


def table(rows: list[dict]) -> str:
    """Rows of `summarise` as Markdown, a table for each target; differences are to no addition and no option."""
    sections = []
    for target in dict.fromkeys(row["target"] for row in rows):
        lines = [
            f"| judged on {target} | " + " | ".join(METRICS.values()) + " | seeds |",
            "| --- " + "| ---: " * (len(METRICS) + 1) + "|",
        ]
        for row in (row for row in rows if row["target"] == target):
            cells = [_cell(row[metric]) for metric in METRICS]
            lines.append(f"| {row['trained']}, {row['option']} | {' | '.join(cells)} | {len(row['seeds'])} |")
        sections.append("\n".join(lines))
    return "\n\n".join(sections)


def _cell(found: dict) -> str:
    low, high = found["interval"]
    text = f"{found['value']:.3f} ({low:.3f}–{high:.3f})"
    if "difference_value" in found:
        low, high = found["difference_interval"]
        text += f", {found['difference_value']:+.3f} ({low:+.3f} to {high:+.3f})"
    return text


def start_workers(argv: list[str], gpus: int, jobs: int) -> list[subprocess.Popen]:
    """Processes that share the runs, `jobs` on each GPU; without a GPU as many on the CPU."""
    workers = []
    for number in range(max(1, gpus) * jobs):
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": str(number % gpus) if gpus else ""}
        command = [sys.executable, "-m", "benchmarks.sources", *argv, "--worker"]
        workers.append(subprocess.Popen(command, env=environment))  # noqa: S603
    return workers


def main() -> None:
    parser = argparse.ArgumentParser(description="Train with and without a second source, and judge on others.")
    parser.add_argument("--data-dir", type=Path, default=Path("data/collections"), help="folder of the three datasets")
    parser.add_argument("--trained", nargs="+", default=list(TRAINED), metavar="NAME", help="default: all six")
    parser.add_argument("--options", nargs="+", default=ESSENTIAL, metavar="NAME", help="or all; default: four")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--gpus", type=int, default=torch.cuda.device_count())
    parser.add_argument("--jobs", type=int, default=3, help="runs at a time on each GPU")
    parser.add_argument("--set", type=parse_value, nargs="+", default=[], metavar="NAME=VALUE", help="of all runs")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/results/sources"), help="folder of the runs")
    parser.add_argument("--commit", help="where Git does not tell it")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--table", action="store_true", help="print the tables, train nothing")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.table:
        print(table(read_json(args.output)["rows"]))
        return
    settings = dict(args.set)
    runs = plan(args.trained, list(OPTIONS) if args.options == ["all"] else args.options, args.seeds)
    if args.worker:
        do_runs(runs, args.work, settings)
        return
    for option in dict.fromkeys(planned.option for planned in runs):
        configure(overrides_of(option, settings))
        prepare(args.data_dir, args.work, overrides_of(option, settings))
    (args.work / "runs").mkdir(exist_ok=True)
    environment = describe_environment()
    about = {
        "environment": environment | {"commit": args.commit or environment["commit"]},
        "recipe": overrides_of("none", settings),
        "options": {option: OPTIONS[option] for option in dict.fromkeys(planned.option for planned in runs)},
    }
    workers, ended = start_workers(sys.argv[1:], args.gpus, args.jobs), set()
    while True:
        is_over = all(worker.poll() is not None for worker in workers)
        now = {planned for planned in runs if result_file(args.work, planned).exists()}
        if now - ended:
            write_json(args.output, about | {"rows": summarise(runs, args.work)})
            print(*(f"{planned.name} has ended" for planned in sorted(now - ended)), sep="\n", flush=True)
            ended = now
        if is_over:
            break
        time.sleep(1)
    print(table(read_json(args.output)["rows"]))
    if left := [planned.name for planned in runs if planned not in ended]:
        raise InputError(f"{len(left)} of {len(runs)} runs have not ended: {'; '.join(left)}")


if __name__ == "__main__":
    run(main)
