import hashlib
import subprocess
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from dvc_data.hashfile.hash import file_md5
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from ruamel.yaml import YAML

from benchmarks.plain import HAM10000
from stages.figures.model_card import write_model_card
from stages.reporting import METRICS, estimate
from tests.figures.findings import decided_by_cost, details_of

DESCRIPTION = {
    "architecture": "tf_efficientnet_lite0",
    "classes": ["benign", "malignant"],
    "image_size": 64,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "networks": 1,
    "epochs": [4],
    "val_losses": [0.5],
    "validation_folds": [],
    "metadata": None,
    "taxonomy": {code: asdict(diagnosis) for code, diagnosis in HAM10000.items()},
}
IDS = {"synthetic": ("SYN_{:07d}", "SYN_L{:06d}"), "ham10000": ("ISIC_{:07d}", "HAM_{:07d}"), "own": ("I{}", "L{}")}


def images_of(source):
    """A manifest and its split: 30 images of 15 lesions, of which the first and the last 10 train and test."""
    number = np.arange(30)
    image_id, lesion_id = IDS[source]
    manifest = pd.DataFrame(
        {
            "image_id": [image_id.format(n) for n in number],
            "lesion_id": [lesion_id.format(n // 2) for n in number],
            "dx": np.where(number < 12, "mel", "nv"),
            "dx_type": np.where(number < 24, "histo", "follow_up"),
            "age": np.where(number < 2, np.nan, 20.0 + number),
            "sex": np.where(number % 2, "male", "female"),
            "localization": [f"place {n // 3}" for n in number],
            "dataset": "unknown",
        }
    )
    return manifest, manifest[["image_id"]].assign(split=np.repeat(["train", "val", "test"], 10))


@pytest.fixture
def card(quick, tmp_path):
    """A function that writes a model card and gives its path; of the synthetic sample and 2 classes by default."""

    def make(details=None, images=None, source="synthetic", name="README.md", description=(), **changes):
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(b"weights\r\nof a network\x00")
        manifest, split = images or images_of(source)
        write_model_card(
            tmp_path / name,
            details or details_of(2),
            DESCRIPTION | dict(description),
            weights,
            quick(**changes),
            manifest,
            split,
        )
        return tmp_path / name

    return make


def rows(text, heading):
    """The cells of the first table below a heading, row by row, and that it is a table."""
    lines = text.split(f"# {heading}\n")[1].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").replace(r"\|", "¦").split("|")])
    return table


@pytest.mark.parametrize("classes", [2, 7])
def test_the_hub_reads_the_metadata_and_finds_the_test_metrics(card, classes):
    details = details_of(classes)
    path = card(details, description={"classes": details["classes"]})
    data = ModelCard.load(path).data
    assert data.license == "apache-2.0"
    assert data.library_name == "timm"
    assert data.pipeline_tag == "image-classification"
    assert data.model_name == f"skin-lesion-tf_efficientnet_lite0-{classes}-classes"
    assert {result.task_type for result in data.eval_results} == {"image-classification"}
    assert {result.dataset_split for result in data.eval_results} == {"test"}
    expected = sorted(number["value"] for number in details["test"]["metrics"].values())
    assert sorted(result.metric_value for result in data.eval_results) == pytest.approx(expected, abs=5e-5)
    assert {result.metric_type for result in data.eval_results} == set(data.metrics)
    assert {"roc_auc", "accuracy"} <= set(data.metrics)
    again = ModelCard(f"---\n{data.to_yaml()}\n---\n").data.to_dict()
    assert again == data.to_dict() == metadata_load(path), "nothing in it that the Hub does not know"


def test_the_decision_for_a_diagnosis_is_named_and_stands_beside_the_most_probable_class(card):
    details, description = details_of(7), {"classes": details_of(7)["classes"]}
    text = card(details, description=description).read_text(encoding="utf-8")
    assert "- Diagnosis: the most probable class.\n" in text
    assert "lowest expected cost" not in text
    changes = {"evaluation.decision": "balanced"}
    text = card(decided_by_cost(details), description=description, **changes).read_text(encoding="utf-8")
    assert "- Diagnosis: the class of the lowest expected cost (`evaluation.decision` is `balanced`; the costs" in text
    accuracy = estimate(details["test"]["metrics"]["accuracy"])
    assert rows(text, "Decisions")[2] == ["Accuracy", accuracy, "0.111 (0.100 to 0.900)"]


def test_numbers_that_do_not_exist_or_are_tiny_do_not_break_the_metadata(card):
    details = details_of(2)
    details["test"]["metrics"]["auroc"] = {"value": None, "interval": None}
    details["test"]["metrics"]["nll"] = {"value": 0.00002, "interval": [0.00001, 0.1]}
    path = card(details)
    results = {result.metric_name: result.metric_value for result in ModelCard.load(path).data.eval_results}
    assert "AUROC" not in results
    assert results["Log loss"] == 0
    assert ["AUROC", "–"] in [row[:2] for row in rows(path.read_text(encoding="utf-8"), "Performance")]


@pytest.mark.parametrize(
    ("source", "licence", "said", "unsaid"),
    [
        ("synthetic", "apache-2.0", ["Trained on synthetic images", "No patient"], ["Vienna", "from two sites"]),
        ("ham10000", "cc-by-nc-4.0", ["Vienna", "no commercial use", "from two sites"], ["synthetic"]),
        ("own", "unknown", ["a dataset that its user brought", "not known to the pipeline"], ["Vienna", "synthetic"]),
    ],
)
def test_the_card_claims_no_other_data_than_the_ids_show(card, source, licence, said, unsaid):
    # The folder's name proves nothing: the parameters say data/ham10000 in every case.
    path = card(source=source)
    assert metadata_load(path)["license"] == licence
    text = path.read_text(encoding="utf-8")
    assert [words for words in said if words not in text] == []
    assert [words for words in unsaid if words in text] == []


@pytest.mark.parametrize(
    ("source", "column"), [("ham10000", "lesion_id"), ("ham10000", "image_id"), ("synthetic", "image_id")]
)
def test_one_image_from_elsewhere_makes_it_another_dataset(card, source, column):
    manifest, split = images_of(source)
    manifest.loc[29, column] = "CLINIC_1"
    split["image_id"] = manifest["image_id"]
    assert metadata_load(card(images=(manifest, split)))["license"] == "unknown"


def test_each_split_has_its_characteristics(card):
    table = {row[0]: row[1:] for row in rows(card().read_text(encoding="utf-8"), "Data")}
    space = "\N{NO-BREAK SPACE}"
    assert table["images (share)"] == ["train", "val", "test"]
    assert table["images"] == ["10", "10", "10"]
    assert table["lesions"] == ["5", "5", "5"]
    assert table["malignant"] == [f"10 (100{space}%)", f"2 (20{space}%)", f"0 (0{space}%)"]
    assert table["diagnosis: nv"] == [f"0 (0{space}%)", f"8 (80{space}%)", f"10 (100{space}%)"]
    assert table["age in years: median (quartiles)"][0] == "25.5 (23.75 to 27.25)"
    assert table["age: missing"] == [f"2 (20{space}%)", f"0 (0{space}%)", f"0 (0{space}%)"]
    assert table["sex: female"] == [f"5 (50{space}%)"] * 3
    assert table["reference standard: follow-up"][2] == f"6 (60{space}%)"
    assert sum(int(cells[0].split()[0]) for name, cells in table.items() if name.startswith("localization")) == 10
    assert "localization: 4 others" in table
    assert not any(name.startswith("source") for name in table), "nobody said where they come from"


def test_the_reference_standard_is_told_apart_for_malignant_and_benign_images(card):
    table = rows(card().read_text(encoding="utf-8"), "Reference standard")
    space = "\N{NO-BREAK SPACE}"
    assert table[2:] == [
        ["histopathology", f"12 (100{space}%)", f"12 (67{space}%)"],
        ["follow-up", f"0 (0{space}%)", f"6 (33{space}%)"],
    ]


@pytest.mark.parametrize("classes", [2, 7])
def test_performance_is_stated_with_intervals(card, classes):
    details = details_of(classes)
    text = card(details).read_text(encoding="utf-8")
    written = {row[1].replace("\N{NO-BREAK SPACE}", " ") for row in rows(text, "Performance")}
    for number in details["test"]["metrics"].values():
        low, high = number["interval"]
        assert f"{number['value']:.3f} ({low:.3f} to {high:.3f})" in written
    calibration = {row[0]: row[1:] for row in rows(text, "Calibration")}
    for column, when in enumerate(("before", "after")):
        ece = details["test"]["calibration"][when]["ece"]["value"]
        assert calibration["ECE"][column].startswith(f"{ece:.3f} (")
    thresholds = {row[0].replace("\xa0", " "): row[1:] for row in rows(text, "Decision thresholds")}
    for column, point in enumerate(("target_sensitivity", "youden")):
        found = details["test"]["operating_points"][point]
        assert thresholds["threshold"][column] == f"{found['threshold']:.3f}"
        rare = found["at_prevalence"][0]["ppv"]["value"]
        assert thresholds["PPV where 2 % are malignant"][column].startswith(f"{rare:.3f} (")


def test_seven_diagnoses_are_stated_as_benign_or_malignant_too(card):
    details = details_of(7)
    written = {row[0]: row[1] for row in rows(card(details).read_text(encoding="utf-8"), "Benign or malignant")}
    for name, number in details["test"]["malignancy"]["metrics"].items():
        assert written[METRICS[name].title].replace("\N{NO-BREAK SPACE}", " ") == estimate(number), name
    assert "# Benign or malignant" not in card(details_of(2)).read_text(encoding="utf-8")


@pytest.mark.parametrize("classes", [2, 7])
def test_every_table_has_as_many_cells_in_each_row(card, classes):
    details = details_of(classes)
    details["test"]["subgroups"]["sex"]["groups"][0]["name"] = "a|b <b> *c*"
    lines = card(details).read_text(encoding="utf-8").splitlines()
    counts = [line.replace(r"\|", "").count("|") if line.startswith("|") else 0 for line in lines]
    assert max(counts) >= 4
    for number, (before, after) in enumerate(pairwise(counts)):
        assert 0 in (before, after) or before == after, lines[number]
        assert not (before and not after and lines[number + 1]), "a table ends with an empty line"
    assert r"sex: a\|b \<b\> \*c\*" in "\n".join(lines)


def test_groups_of_few_lesions_have_no_number(card):
    details = details_of(2)
    groups = details["test"]["subgroups"]["sex"]["groups"]
    groups[0]["judged"] = {"sensitivity": True, "specificity": False, "auroc": False}
    groups[1]["judged"] = {"sensitivity": False, "specificity": False, "auroc": False}
    table = {row[0]: row[2:] for row in rows(card(details).read_text(encoding="utf-8"), "Subgroups")}
    assert table[f"sex: {groups[0]['name']}"][0].startswith(f"{groups[0]['sensitivity']['value']:.3f} (")
    assert table[f"sex: {groups[0]['name']}"][1:] == ["†", "†"]
    assert f"sex: {groups[1]['name']}" not in table


@pytest.mark.parametrize(
    ("monitor", "said"), [("val_loss", "validation loss"), ("val_calibrated_loss", "calibrated validation loss")]
)
def test_the_card_says_which_loss_chose_the_epochs(card, monitor, said):
    changes = {"training.monitor": monitor}
    assert f"epoch 5, which had the lowest {said}, " in card(**changes).read_text(encoding="utf-8")
    three = card(description={"epochs": [4, 2, 7]}, **changes).read_text(encoding="utf-8")
    assert f"epochs 5, 3, 8, which had the lowest {said} each, " in three


def test_the_parameters_are_all_there_as_yaml(card, quick):
    text = card().read_text(encoding="utf-8")
    written = YAML(typ="safe", pure=True).load(text.split("```yaml\n")[1].split("```")[0])
    expected = asdict(quick())
    del expected["runtime"]["num_workers"]  # changes nothing but the speed
    for section, name in (("evaluation", "prevalences"), ("training", "loggers")):
        expected[section][name] = list(expected[section][name])
    assert written == expected


def test_the_command_in_the_card_finds_the_commit_whose_lock_file_has_the_weights(card, tmp_path):
    text = card().read_text(encoding="utf-8")
    weights = tmp_path / "model.safetensors"
    assert f"`{hashlib.sha256(weights.read_bytes()).hexdigest()}`" in text
    command = next(line for line in text.splitlines() if line.startswith("git log"))
    repository = tmp_path / "repository"
    repository.mkdir()

    def git(*arguments):
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=repository, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "--quiet")
    mine, other = f"md5: {file_md5(str(weights))}\n", f"md5: {'0' * 32}\n"
    # Before, made, used by one more stage, replaced.
    for content in (other, mine, mine + mine, other):
        (repository / "dvc.lock").write_text(content)
        git("add", "dvc.lock")
        git("commit", "--quiet", "--message", "a run")
    assert git(*command.split()[1:]).splitlines()[0] == git("rev-parse", "HEAD~2")


@pytest.mark.parametrize("source", IDS)
def test_the_card_says_what_the_model_is_not_for_and_where_its_limits_are(card, source):
    text = card(source=source).read_text(encoding="utf-8")
    headings = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
    for heading in ("Intended use", "Data", "Reference standard", "Performance", "Calibration", "Subgroups", "Limits"):
        assert heading in headings
    uses, limits = (text.split(f"## {heading}\n")[1].split("\n## ")[0] for heading in ("Intended use", "Limits"))
    assert "diagnosis, triage" in uses
    for words in ("One source dataset", "No external validation", "where a dataset names no patients", "skin tone"):
        assert words in limits
    assert "not a medical device" in text


def test_a_network_that_timm_does_not_have_is_not_said_to_be_its(card):
    path = card(description={"architecture": "baseline_cnn"})
    assert "library_name" not in metadata_load(path)
    assert "timm's names" not in path.read_text(encoding="utf-8")


def test_the_card_of_a_network_that_takes_metadata_says_which_and_what_they_add(card):
    details, plain = details_of(2), card().read_text(encoding="utf-8")
    found = details["baselines"]["metadata"]
    alone = {"metrics": found["metrics"], "metadata_add": found["image_adds"]}
    taken = {"fusion": "late", "sex": ["female", "male"], "localization": ["back"]}
    text = card(
        details | {"baselines": details["baselines"] | {"image_alone": alone}}, description={"metadata": taken}
    ).read_text(encoding="utf-8")
    for said in (
        "Beside it age, sex (female, male) and localization (back), where they are known;",
        "python -m stages predict lesion.jpg --metadata table.csv",
    ):
        assert said in text
        assert said not in plain
    [_, _, *table] = rows(text, "What metadata add")
    assert [
        METRICS["auroc"].title,
        estimate(alone["metrics"]["auroc"]),
        estimate(alone["metadata_add"]["auroc"]),
    ] in table
    assert "under timm's names" not in text


def test_splits_without_ages_or_images_are_described_too(card):
    manifest, split = images_of("own")
    manifest["age"] = np.nan
    split["split"] = split["split"].replace("val", "train")
    table = {row[0]: row[1:] for row in rows(card(images=(manifest, split)).read_text(encoding="utf-8"), "Data")}
    assert table["images"] == ["20", "0", "10"]
    assert table["malignant"][1] == "–"
    assert table["age in years: median (quartiles)"] == ["–"] * 3


def test_a_card_without_baselines_and_audit_can_be_written(card):
    text = card(details_of(2) | {"baselines": None, "leakage": None}).read_text(encoding="utf-8")
    assert "What the image adds" not in text
    assert "None" not in text


def test_the_same_run_gives_the_same_bytes(card):
    one, again = card().read_bytes(), card(name="again.md").read_bytes()
    assert one == again
    assert b"\r" not in one
