"""A folder of two datasets, from their tables to the report; then the one held out, which lacks a diagnosis."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages import evaluate, plot, prepare, publish, split, train
from stages.commands import predict, validate
from stages.evaluation.details import read_details
from stages.files import (
    DETAILS,
    MODEL_CARD,
    MODEL_DESCRIPTION,
    PUBLISHED,
    REPORT,
    SPLIT,
    SPLIT_METRICS,
    read_csv,
    read_json,
)
from tests.conftest import QUICK, write_params

DIAGNOSES = {"clinic": ["nv", "mel", "bcc"], "practice": ["nv", "mel"]}
pytestmark = pytest.mark.xdist_group("sources")
LESIONS = 36  # of a dataset


@pytest.fixture(scope="module")
def finished(quick_pictures, tmp_path_factory):
    """All stages have run here: images of the practice are darker and wider."""
    folder = tmp_path_factory.mktemp("sources")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        random = np.random.default_rng(0)
        for name, diagnoses in DIAGNOSES.items():
            path = folder / "data/both" / name
            path.mkdir(parents=True)
            (path / "dataset.yaml").write_text("columns: {lesion_id: null}\n")
            with (path / "table.csv").open("w", newline="") as file:
                table = csv.writer(file)
                table.writerow(["image_id", "dx"])
                for number in range(LESIONS):
                    table.writerow([f"I{number}", diagnoses[number % len(diagnoses)]])
                    width, brightness = (20, 100) if name == "clinic" else (24, 0)
                    pixels = random.integers(0, 120, (20, width, 3)) + brightness
                    Image.fromarray(pixels.astype(np.uint8)).save(path / f"I{number}.png")
        run()
        yield folder


def run(*stages, **changes):
    settings = {"data.data_dir": "data/both", "data.taxonomy": str(TAXONOMY), "model.num_classes": "diagnoses"}
    settings |= {"split.folds": 3, "training.max_epochs": 1, "evaluation.bootstrap_replicates": 100}
    write_params(Path(), {key: json.dumps(value) for key, value in (QUICK | settings | changes).items()})
    for stage in stages or (prepare, split, train, evaluate, plot, publish):
        stage.main()


TAXONOMY = Path(__file__).parents[1] / "data/taxonomies/ham10000.yaml"


def test_the_audit_is_in_the_split_and_the_details_and_the_report_shows_it(finished):
    found, details = read_json(PUBLISHED[SPLIT_METRICS])["sources"], read_details(DETAILS)
    assert found["lesions"]["practice"] == {"bcc": 0, "mel": 18, "nv": 18}
    assert found["lacks"] == {"practice": ["bcc"]}
    assert {name: found[name] for name in ("lesions", "cramers_v", "lacks")} | {
        "told": details["sources"]["told"]
    } == details["sources"]
    assert details["sources"]["told"]["properties"] == 1, "the practice is darker"
    assert details["sources"]["told"]["files"] == 1, "and its files are wider"
    assert [group["name"] for group in details["test"]["subgroups"]["dataset"]["groups"]] == ["clinic", "practice"]
    page = REPORT.read_text(encoding="utf-8")
    assert '<h2 id="sources">Sources</h2>' in page
    assert "How well clinic, practice can be told apart" in page


def test_a_source_that_is_held_out_is_all_that_is_tested(finished, capsys):
    run(split, evaluate, plot, **{"split.by": "source", "split.test_source": "practice"})
    table, manifest = read_csv(SPLIT, []), read_csv(Path("data/prepared/manifest.csv"), [])
    assert set(manifest["dataset"][table["split"] == "test"]) == {"practice"}
    assert "warning: practice has next to none of bcc" in capsys.readouterr().out
    test = read_details(DETAILS)["test"]
    assert test["images"] == LESIONS
    assert test["classes"]["bcc"]["sensitivity"] is None
    known = [test["classes"][code]["sensitivity"] for code in ("mel", "nv")]
    assert test["metrics"]["balanced_accuracy"]["value"] == pytest.approx(np.mean(known), abs=1e-6)
    assert "All images of the source practice test." in MODEL_CARD.read_text(encoding="utf-8")


def test_what_helps_goes_from_the_parameters_to_the_model(finished):
    training = {"training.class_balance_within": "source", "training.class_balance": "sampling"}
    images = {"data.image_size": 32, "data.acquisition_strength": 1.0, "data.detail": 16}
    run(prepare, split, train, evaluate, **training, **images)
    assert read_json(MODEL_DESCRIPTION)["detail"] == 16
    predict.main(["data/both/clinic/I0.png", "--output", "predictions.csv"])
    validate.main(["data/both/clinic", "--output", "validation"])
    alone, table = (read_csv(Path(name), []) for name in ("predictions.csv", "validation/predictions.csv"))
    probabilities = [f"probability_{name}" for name in read_json(MODEL_DESCRIPTION)["classes"]]
    validated = table.loc[table["image_id"] == "I0", probabilities]
    np.testing.assert_allclose(alone[probabilities], validated, atol=1e-6)
