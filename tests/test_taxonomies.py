"""Other diagnoses than HAM10000's, from the table to the report: each dataset goes through all stages and commands."""

import csv
import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from benchmarks.plain import ROOT
from stages import evaluate, plot, prepare, publish, split, train, validation
from stages.commands import compare, predict, report, validate
from stages.config import load_config
from stages.dataset.taxonomy import classes_of, read_taxonomy
from stages.evaluation.details import read_details
from stages.files import (
    DETAILS,
    MODEL_CARD,
    MODEL_DESCRIPTION,
    MODELS,
    PICTURES,
    PREDICTIONS,
    REPORT,
    read_csv,
    read_json,
)
from tests.conftest import QUICK, write_params
from tests.history import commit, start_repository

HOSPITAL = """
melanoma: {name: malignant melanoma, malignant: true}
basalioma: {name: basal cell carcinoma, malignant: true, aliases: [BCC]}
naevus: {name: melanocytic naevus, malignant: false, aliases: [naevus cell naevus]}
haemangioma: {name: haemangioma, malignant: false}
wart: {name: seborrhoeic wart, malignant: false}
"""
pytestmark = pytest.mark.xdist_group("taxonomies")
LESIONS = 4  # of each diagnosis, in three folds


class Hospital(NamedTuple):
    """A folder laid out as the repository after all stages."""

    folder: Path
    taxonomy: dict


@pytest.fixture(scope="module", params=["derm7pt", pytest.param("isic2019", marks=pytest.mark.slow), "hospital"])
def finished(request, quick_pictures, tmp_path_factory):
    """All stages have run here on images in which the diagnoses differ by their colour."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        path = ROOT / f"data/taxonomies/{request.param}.yaml"
        if request.param == "hospital":
            path = folder / "hospital.yaml"
            path.write_text(HOSPITAL)
        taxonomy = read_taxonomy(path)
        write_dataset(folder / "data/images", taxonomy)
        changes = {"data.data_dir": "data/images", "data.taxonomy": str(path), "data.columns": {"lesion_id": None}}
        changes |= {"model.num_classes": "diagnoses", "split.folds": 3, "training.max_epochs": 1}
        changes |= {"evaluation.bootstrap_replicates": 100, "evaluation.gradcam_cases": 1}
        write_params(folder, {key: json.dumps(value) for key, value in (QUICK | changes).items()})
        for stage in (prepare, split, train, evaluate, plot, publish):
            stage.main()
        yield Hospital(folder, taxonomy)


def write_dataset(folder, taxonomy):
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    with (folder / "table.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image_id", "dx", "age"])
        for number in range(LESIONS * len(taxonomy)):
            kind = number // LESIONS
            table.writerow(
                [f"P{number:03d}", list(taxonomy)[kind].upper(), "NA" if number % 7 == 0 else 20 + number % 60]
            )
            pixels = np.array([10 * kind, 250 - 10 * kind, 100]) + random.integers(-5, 5, (20, 20, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"P{number:03d}.png")


def test_the_model_carries_its_diagnoses(finished):
    description = read_json(MODEL_DESCRIPTION)
    assert description["classes"] == list(finished.taxonomy)
    described = {code: (it["name"], it["malignant"]) for code, it in description["taxonomy"].items()}
    assert described == {code: (it.name, it.malignant) for code, it in finished.taxonomy.items()}


def test_predictions_and_metrics_are_of_the_diagnoses(finished):
    columns = [name.removeprefix("probability_") for name in read_csv(PREDICTIONS, []).filter(like="probability_")]
    details = read_details(DETAILS)
    assert columns == details["classes"] == list(finished.taxonomy)
    assert set(details["test"]["classes"]) == set(finished.taxonomy)
    assert details["test"]["malignant_images"] == sum(
        read_csv(PREDICTIONS, []).query("split == 'test'")["label"].isin(malignant_of(finished))
    )
    assert details["test"]["metrics"]["malignant_auroc"]["value"] is not None


def malignant_of(finished):
    return classes_of(finished.taxonomy, "diagnoses").malignant


def test_the_report_and_the_card_name_them(finished):
    page, card = (path.read_text(encoding="utf-8") for path in (REPORT, MODEL_CARD))
    for code, diagnosis in finished.taxonomy.items():
        assert f'{code}<span class="meaning">{diagnosis.name}</span>' in page
        assert code in card.replace("\\", "")
    assert f"{len(finished.taxonomy)} diagnoses" in card
    assert f"sum of those of {', '.join(malignant_of(finished))}." in page
    assert len(list(PICTURES.glob("*.png"))) == 12


def test_predict_says_a_probability_of_each(finished, tmp_path):
    image = next(Path("data/images").glob("*.png"))
    predict.main([str(image), "--output", str(tmp_path / "out.csv"), "--gradcam", str(tmp_path / "maps")])
    (row,) = read_csv(tmp_path / "out.csv", []).to_dict("records")
    assert sum(row[f"probability_{code}"] for code in finished.taxonomy) == pytest.approx(1, abs=1e-6)
    malignant = sum(row[f"probability_{code}"] for code in malignant_of(finished))
    assert row["malignant_probability"] == pytest.approx(malignant, abs=1e-6)


def test_validate_judges_what_the_model_knows_and_counts_the_rest(finished, tmp_path, capsys):
    """Of another table's four diagnoses it knows one by its code, one by its name; two are unknown to it."""
    codes = list(finished.taxonomy)
    benign = next(code for code in codes if code not in malignant_of(finished))
    labels = [malignant_of(finished)[0], finished.taxonomy[benign].name, "scar", "tattoo"]
    folder = tmp_path / "other"
    folder.mkdir()
    lines = ["image_id,dx"]
    for number in range(20):
        lines.append(f"Q{number},{labels[number // 2 % 4]}")
        Image.new("RGB", (20, 20), (number * 12, 100, 100)).save(folder / f"Q{number}.png")
    (folder / "table.csv").write_text("\n".join(lines))
    validate.main([str(folder), "--output", str(tmp_path / "out"), "--columns", "lesion_id="])
    said = capsys.readouterr().out
    assert "table.csv: left out 8 images whose diagnosis is none of" in said
    assert "'scar' 4, 'tattoo' 4" in said
    details = read_details(tmp_path / "out/details.json")
    assert details["test"]["images"] == 12
    absent = [code for code in codes if code not in (malignant_of(finished)[0], benign)]
    assert f"No image is of {', '.join(absent)}: means over the diagnoses leave these out" in said
    known = [details["test"]["classes"][code]["sensitivity"] for code in codes if code not in absent]
    assert details["test"]["metrics"]["balanced_accuracy"]["value"] == pytest.approx(np.mean(known), abs=1e-6)
    page = " ".join((tmp_path / "out/plots/report.html").read_text(encoding="utf-8").split())
    assert f"No image is of {', '.join(absent)}: means over the diagnoses leave these out" in page
    assert "left out 8 images" in page


def test_a_dataset_with_codes_of_its_own_is_judged_by_what_they_share_with_the_model(finished, tmp_path):
    """One diagnosis has an alias in common, the other none; for malignancy both count."""
    first = malignant_of(finished)[0]
    theirs = tmp_path / "theirs.yaml"
    theirs.write_text(
        f"M1: {{name: one, malignant: true, aliases: [{first}]}}\nB1: {{name: other, malignant: false}}\n"
        "B2: {name: third, malignant: false}\n"
    )
    folder = tmp_path / "codes"
    folder.mkdir()
    rows = [f"R{number},{('m1', 'b1')[number // 2 % 2]}" for number in range(8)]
    (folder / "table.csv").write_text("\n".join(["image,dx", *rows]))
    for number in range(8):
        Image.new("RGB", (20, 20), (number * 12, 100, 100)).save(folder / f"R{number}.png")
    config, said = load_config(), []
    _, details, *_ = validation.validate_model(config, folder, tmp_path / "one", MODELS, {}, {}, theirs, said.append)
    assert "left out 4 images" in "".join(said)
    assert (details["test"]["images"], details["test"]["malignant_images"]) == (4, 4)
    theirs.write_text("M1: {name: one, malignant: true}\nB1: {name: other, malignant: false}\n")
    _, details, *_ = validation.validate_model(config, folder, tmp_path / "two", MODELS, {}, {}, theirs, said.append)
    assert details["classes"] == ["benign", "malignant"]
    assert (details["test"]["images"], details["test"]["malignant_images"]) == (8, 4)


def test_compare_and_report_take_them(finished, tmp_path, capsys):
    start_repository()
    commit("base")
    compare.main(["base", "workspace"])
    assert "identical predictions" in capsys.readouterr().out
    report.main(["base", "workspace", "--output", str(tmp_path / "report.md")])
    pictures = {path.stem for path in tmp_path.rglob("*.png")}
    assert "confusion_matrix" in pictures
    assert not re.search(r"not compared", (tmp_path / "report.md").read_text(encoding="utf-8"))
