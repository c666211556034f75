"""How many of planted wrong labels `audit` finds.

    python -m benchmarks.labels --data-dir data/ham10000 --gpus 4

Some lesions of the dataset get another diagnosis, drawn at random. A cross-validation runs on that, and the lesions
that `doubtful_labels` lists are compared with those planted: how many of the first N are, N being as many as were
planted, and how many of all that are listed. The dataset's own wrong labels count as false alarms.

Writes benchmarks/results/labels.json.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.models import RECIPE
from benchmarks.recipe import parse_value
from benchmarks.release import NETWORKS, cross_validate, read_table, slots_of, with_table
from stages.evaluation.labels import doubtful_labels
from stages.experiments.pooling import by_two_networks, mean_of_two_networks
from stages.files import write_json
from stages.launch import run

RESULT = Path("benchmarks/results/labels.json")


def plant(table: pd.DataFrame, share: float, seed: int = 0) -> tuple[pd.DataFrame, set[str]]:
    """The table with another diagnosis for a share of the lesions, and these."""
    random, diagnoses = np.random.default_rng(seed), sorted(set(table["dx"]))
    of_lesion = table.groupby("lesion_id")["dx"].first()
    planted = random.choice(of_lesion.index, round(share * len(of_lesion)), replace=False)
    wrong = {
        lesion: str(random.choice([dx for dx in diagnoses if dx != of_lesion[lesion]])) for lesion in planted.tolist()
    }
    return table.assign(dx=table["lesion_id"].map(wrong).fillna(table["dx"])), set(wrong)


def judge(found: pd.DataFrame, planted: set[str]) -> dict:
    """How many of the lesions that were listed, and of the first of them, are planted ones."""
    hits = found["lesion_id"].isin(planted).to_numpy()
    counts = {"planted": len(planted), "listed": len(hits), "found": int(hits.sum())}
    return counts | {
        f"first_{count}": {
            "precision": float(hits[:count].mean()),
            "recall": float(hits[:count].sum() / len(planted)),
        }
        for count in (len(planted) // 2, len(planted), 2 * len(planted))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Plant wrong labels, and count how many an audit finds.")
    parser.add_argument("--data-dir", type=Path, default=Path("data/ham10000"), help="the dataset")
    parser.add_argument("--share", type=float, default=0.02, help="of the lesions (default: %(default)s)")
    parser.add_argument("--gpus", type=int, default=0, metavar="N", help="how many; 0: none")
    parser.add_argument("--per-gpu", type=int, default=1, metavar="N", help="networks that share one")
    parser.add_argument("--folds", type=int, default=NETWORKS)
    parser.add_argument("--set", type=parse_value, nargs="+", default=[], metavar="NAME=VALUE", help="of params.yaml")
    args = parser.parse_args()
    overrides = RECIPE | {"model.num_classes": 7} | dict(args.set)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        table, planted = plant(read_table(args.data_dir), args.share)
        (root / "runs").mkdir()
        data = with_table(args.data_dir, root / "data", table)
        folds = cross_validate(data, root / "runs", overrides, args.folds, slots_of(args.gpus, args.per_gpu))
        found = judge(doubtful_labels(mean_of_two_networks(*by_two_networks(folds))), planted)
    write_json(RESULT, {"share": args.share, "overrides": overrides} | found)
    print(found)


if __name__ == "__main__":
    run(main)
