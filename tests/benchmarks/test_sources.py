"""The runs of benchmarks/sources.py on three datasets of a few images, of which two show the same lesions."""

import csv

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from benchmarks import sources
from benchmarks.sources import ADDED, FULL, LEFT_OUT, OTHERS, SMALL, TRAINED, Run
from stages.dataset.pixels import PixelStore
from stages.errors import InputError
from stages.files import read_csv

DIAGNOSES = {FULL: ["nv", "mel", "bkl", "bcc"], SMALL: ["nv", "mel", "bkl", "bcc"], ADDED: ["nv", "mel", "bkl"]}
LESIONS = {FULL: 84, SMALL: 60, ADDED: 42}
SETTINGS = {
    "data.image_size": 32, "model.name": "baseline_cnn", "model.variant": None, "model.pretrained": False,
    "training.max_epochs": 1, "split.folds": 7,
}  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Prepared pixels and splits; the first image of the added dataset is one of the full one."""
    folder, random = tmp_path_factory.mktemp("sources"), np.random.default_rng(0)
    for name, count in LESIONS.items():
        path = folder / "data" / name
        path.mkdir(parents=True)
        (path / "dataset.yaml").write_text("columns: {dx_type: null}")
        with (path / "table.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["image_id", "lesion_id", "dx", "dataset"])
            for number in range(count):
                lesion = f"A{number}" if name == ADDED else f"L{number}"
                source = LEFT_OUT if number > 60 else "vidir"
                table.writerow([f"I{number}", lesion, DIAGNOSES[name][number % len(DIAGNOSES[name])], source])
                pixels = random.integers(0, 256, (5, 5, 3)).astype(np.uint8)
                Image.fromarray(pixels).resize((40, 40)).save(path / f"I{number}.png")
    (folder / "data" / ADDED / "I0.png").write_bytes((folder / "data" / FULL / "I0.png").read_bytes())
    (folder / "work/runs").mkdir(parents=True)
    sources.prepare(folder / "data", folder / "work", sources.overrides_of("none", SETTINGS))
    return folder / "work"


def test_a_lesion_is_on_one_side_in_both_geometries_and_copies_are_left_out(work):
    store = PixelStore(work / "prepared-32-None")
    split = read_csv(sources.split_file(work, f"{FULL}+{ADDED}"), [])
    manifest = store.manifest.assign(fold=split["fold"], split=split["split"])
    assert set(manifest["split"][manifest["dataset"] == SMALL]) == {"test"}, "it is not trained on"
    fold = {
        name: rows.assign(lesion=rows["lesion_id"].str.removeprefix(f"{SMALL}.")).set_index("lesion")["fold"]
        for name, rows in manifest.groupby("dataset")
    }
    assert (fold[SMALL] == fold[FULL].loc[fold[SMALL].index]).all()
    assert fold[ADDED]["A0"] == -1
    for trained in TRAINED:
        of_split = read_csv(sources.split_file(work, trained), [])
        judged = sources.targets(store, of_split, trained)
        rows = np.concatenate(list(judged.values()))
        if trained.startswith(OTHERS):
            assert list(store.manifest["image_id"].iloc[judged[LEFT_OUT]]) == [f"I{number}" for number in range(61, 84)]
        else:
            assert all(set(store.manifest["dataset"].iloc[rows]) == {name} for name, rows in judged.items())
            assert list(judged) == [FULL, SMALL, *([] if ADDED in trained else [ADDED])]
        assert set(of_split["split"].iloc[rows]) == {"test"}


def test_runs_are_done_once_and_give_differences_with_intervals(work, monkeypatch):
    runs = [Run(trained, "none", seed) for seed in range(2) for trained in (FULL, f"{FULL}+{ADDED}")]
    runs.append(Run(f"{FULL}+{ADDED}", "acquisition, within", 0))
    sources.do_runs(runs, work, SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr(sources, "measure", lambda *_: pytest.fail("it has been done"))
        sources.do_runs(runs, work, SETTINGS)
    rows = pd.DataFrame(sources.summarise(runs, work)).set_index(["target", "trained", "option"])
    assert len(rows) == 3 + 2 + 2
    alone, added = (rows.loc[(SMALL, trained, "none"), "accuracy"] for trained in (FULL, f"{FULL}+{ADDED}"))
    assert "difference_value" not in alone
    assert added["difference_value"] == pytest.approx(added["value"] - alone["value"], abs=2e-6)
    low, high = added["difference_interval"]
    assert low <= added["difference_value"] <= high
    assert rows.loc[(SMALL, f"{FULL}+{ADDED}", "acquisition, within"), "seeds"] == [0]
    assert f"| {FULL}+{ADDED}, acquisition, within |" in sources.table(sources.summarise(runs, work))


def test_an_unknown_option_is_refused_and_one_source_is_not_balanced_within():
    with pytest.raises(InputError, match="blur: not known; there are none; acquisition; within"):
        sources.plan(list(TRAINED), ["blur"], 1)
    assert {run.trained for run in sources.plan([FULL, SMALL, f"{FULL}+{ADDED}"], ["within"], 1)} == {f"{FULL}+{ADDED}"}
