import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.plain import HAM10000
from stages.dataset.taxonomy import (
    BENIGN_OR_MALIGNANT,
    Diagnosis,
    classes_of,
    meanings_of,
    numbers_of,
    read_taxonomy,
    translated,
)
from stages.errors import InputError

ROOT = Path(__file__).parents[2]
SHIPPED = {path.stem: path for path in sorted((ROOT / "data/taxonomies").glob("*.yaml"))}
DIAGNOSES = {
    "ham10000": ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"),
    "isic2019": ("ak", "bcc", "bkl", "df", "mel", "nv", "scc", "vasc"),
    "pad_ufes_20": ("ack", "bcc", "mel", "nev", "scc", "sek"),
}


@pytest.mark.parametrize("name", DIAGNOSES)
def test_the_shipped_taxonomies_have_the_diagnoses_of_their_datasets(name):
    taxonomy = read_taxonomy(SHIPPED[name])
    assert classes_of(taxonomy, "diagnoses").names == DIAGNOSES[name]
    assert classes_of(taxonomy, len(taxonomy)) == classes_of(taxonomy, "diagnoses")
    assert classes_of(taxonomy, 2) == BENIGN_OR_MALIGNANT


def test_derm7pt_has_twenty_diagnoses_of_which_the_melanomas_and_the_carcinoma_are_malignant():
    taxonomy = read_taxonomy(SHIPPED["derm7pt"])
    assert len(taxonomy) == 20
    names = {diagnosis.name for diagnosis in taxonomy.values() if diagnosis.malignant}
    assert names == {"basal cell carcinoma"} | {d.name for d in taxonomy.values() if d.name.startswith("melanoma")}


def test_malignant_are_actinic_keratoses_carcinomas_and_melanomas():
    assert classes_of(HAM10000, 7).malignant == ("akiec", "bcc", "mel")
    assert list(classes_of(HAM10000, 7).is_malignant) == [True, True, False, False, True, False, False]
    assert list(numbers_of(["nv", "bcc", "mel"], HAM10000, classes_of(HAM10000, 7))) == [5, 1, 4]
    numbers = numbers_of(HAM10000, HAM10000, BENIGN_OR_MALIGNANT)
    assert list(numbers) == [1, 1, 0, 0, 1, 0, 0]
    assert numbers.dtype == np.int64


def test_of_two_diagnoses_the_classes_are_benign_and_malignant():
    taxonomy = read_taxonomy(SHIPPED["malignancy"])
    assert classes_of(taxonomy, "diagnoses") == classes_of(taxonomy, 2) == BENIGN_OR_MALIGNANT


@pytest.mark.parametrize("count", [3, 6, 8])
def test_another_number_of_classes_is_refused_with_what_there_is(count):
    with pytest.raises(InputError) as caught:
        classes_of(HAM10000, count)
    assert str(caught.value) == (
        f"model.num_classes is {count}; it must be 2, for benign and malignant, or 7 or 'diagnoses', for those of "
        "data.taxonomy: akiec, bcc, bkl, df, mel, nv, vasc"
    )


def test_labels_mean_a_diagnosis_in_any_case_with_spaces_or_underscores():
    meanings = meanings_of(HAM10000)
    assert meanings["seborrheic keratosis"] == meanings["benign keratosis"] == meanings["bkl"] == "bkl"
    assert "scc" not in meanings


def test_the_order_of_the_file_does_not_matter(tmp_path):
    backwards = "\n".join(
        f"{code}: {{name: {diagnosis.name!r}, malignant: {json.dumps(diagnosis.malignant)}}}"
        for code, diagnosis in reversed(HAM10000.items())
        if "'" not in diagnosis.name
    )
    (tmp_path / "own.yaml").write_text(backwards)
    assert list(read_taxonomy(tmp_path / "own.yaml")) == ["bcc", "bkl", "df", "mel", "nv", "vasc"]


GOOD = "nv: {name: nevus, malignant: false}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD + "mel: {name: melanoma, malignant: yes}", "mel.malignant is 'yes'; it must be true or false"),
        (GOOD + "mel: {name: melanoma}", "mel.malignant is missing"),
        (GOOD + "mel: {malignant: true}", "mel.name is missing"),
        (GOOD + "mel: {name: 7, malignant: true}", "mel.name is 7; it must be printable text"),
        (GOOD + "mel: {name: m, malignant: true, aliases: MM}", "mel.aliases is 'MM'; it must be a list"),
        (GOOD + "mel: {name: m, malignant: true, colour: brown}", "mel.colour is unknown"),
        (GOOD + "mel: {name: m, malignant: true, aliases: [NV]}", "mel and nv are both called 'NV'"),
        (GOOD + "NV_: {name: m, malignant: true}", "NV_ and nv are both called 'NV_'"),
        (GOOD + "bkl: {name: keratosis, malignant: false}", "all diagnoses are benign; one at least must be malignant"),
        (GOOD, "it must be a mapping of 2 to 100 codes"),
        ("[nv, mel]", "it must be a mapping of 2 to 100 codes"),
        ("", "it must be a mapping of 2 to 100 codes"),
        (GOOD + "1: {name: m, malignant: true}", "1 is no code of a diagnosis; it must be at most 16 letters"),
        (GOOD + "'a b': {name: m, malignant: true}", "'a b' is no code of a diagnosis"),
        (GOOD + "a_very_long_code_of_it: {name: m, malignant: true}", "'a_very_long_code_of_it' is no code"),
        (GOOD + "mel: [", "while parsing"),
        (GOOD + GOOD, "found duplicate key"),
    ],
)
def test_a_file_that_is_no_taxonomy_is_refused_with_what_is_wrong(tmp_path, text, expected):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_taxonomy(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value)


def test_a_taxonomy_that_is_not_there_is_refused_with_its_name(tmp_path):
    with pytest.raises(InputError, match=r"none.yaml cannot be read \(No such file.*\); data.taxonomy must name"):
        read_taxonomy(tmp_path / "none.yaml")


def test_diagnoses_of_another_taxonomy_are_those_that_share_a_label():
    theirs = {
        "ack": Diagnosis("actinic keratosis", False, ["solar keratosis"]),
        "scc": Diagnosis("squamous cell carcinoma", True),
        "naevus": Diagnosis("nevus", False, ["mel"]),
    }
    ours = translated(HAM10000, theirs)
    meanings = meanings_of(ours)
    assert list(ours) == list(HAM10000)
    assert {label: meanings[label] for label in ("ack", "solar keratosis", "naevus", "mel")} == {
        "ack": "akiec", "solar keratosis": "akiec", "naevus": "mel", "mel": "mel",
    }  # fmt: skip
    assert "scc" not in meanings


def test_no_module_names_a_diagnosis():
    """Nor a template: what a model knows comes with its taxonomy. Words of English that are also codes are none."""
    codes = {code for path in SHIPPED.values() for code in read_taxonomy(path)} - {"misc", "benign", "malignant"}
    named = re.compile(rf"(?<![A-Za-z0-9_])({'|'.join(sorted(codes))})(?![A-Za-z0-9_])")
    found = {}
    for path in [*(ROOT / "stages").rglob("*.py"), *(ROOT / "stages").rglob("*.j2")]:
        text = path.read_text(encoding="utf-8")
        # In code only what is a text in it: a variable may be called df, and docstrings give examples.
        texts = [text] if path.suffix == ".j2" else _texts(text)
        if names := {match[0] for each in texts for match in named.finditer(each)}:
            found[path.relative_to(ROOT).as_posix()] = names
    assert found == {}


def _texts(code: str) -> list[str]:
    tree = ast.parse(code)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]
