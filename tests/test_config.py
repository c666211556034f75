import dataclasses
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides

from benchmarks.plain import PLAIN
from stages.config import Config, load_config, override
from stages.errors import InputError

PARAMS = Path(__file__).parents[1] / "params.yaml"
KEYS = {f"{section}.{key}" for section, values in dataclasses.asdict(PLAIN).items() for key in values}


def refusal(path):
    with pytest.raises(InputError) as caught:
        load_config(path)
    return str(caught.value)


def test_the_repository_s_parameters_load():
    assert isinstance(load_config(PARAMS), Config)


def test_each_parameter_stands_in_the_repository_s_file_with_a_comment_and_no_others_do():
    found, section = {}, ""
    for line in PARAMS.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"(\w+):", line):
            section = match[1]
        elif match := re.fullmatch(r"  (\w+): +[^#]*[^# ](?: +# (\S.*))?", line):
            found[f"{section}.{match[1]}"] = match[2]
        else:
            assert not line or line.startswith("#"), f"not understood: {line}"
    assert set(found) == KEYS
    assert [key for key, comment in found.items() if not comment] == []


@pytest.mark.parametrize("text", ["3e-05", "3e-5", "3.0e-5", "0.00003"])
def test_small_numbers_are_read_in_every_notation(params, text):
    assert load_config(params({"training.learning_rate": text})).training.learning_rate == 3e-5


def test_a_whole_number_is_taken_where_any_number_is(params):
    training = load_config(params({"training.weight_decay": "0", "training.gradient_clip_val": "2"})).training
    assert training == replace(PLAIN.training, weight_decay=0.0, gradient_clip_val=2.0)
    assert type(training.gradient_clip_val) is float


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[0.02, 0.1]", (0.02, 0.1)),
        ("[1e-3]", (0.001,)),
        ("[]", ()),
        ("\n  - 0.2\n  - 0.5", (0.2, 0.5)),  # as DVC writes a list that `-S` sets
    ],
)
def test_a_list_of_numbers_is_read_in_every_notation(params, text, expected):
    assert load_config(params({"evaluation.prevalences": text})).evaluation.prevalences == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", {}),
        (
            "{basal cell carcinoma: bcc, SCC: null, 0: nv, '1': mel}",
            {"basal cell carcinoma": "bcc", "SCC": None, "0": "nv", "1": "mel"},
        ),
        ("\n    head/neck: nv\n    UNK:", {"head/neck": "nv", "UNK": None}),  # as DVC writes what `-S` sets
    ],
)
def test_a_mapping_is_read_in_every_notation(params, text, expected):
    assert load_config(params({"data.classes": text})).data.classes == expected


def test_dvc_sets_a_mapping(tmp_path):
    """As `dvc exp run -S '+data.classes={…}'` does."""
    path = shutil.copy(PARAMS, tmp_path / "params.yaml")
    apply_overrides(path, ["+data.columns={image_id: file, lesion_id: null}"])
    apply_overrides(path, ["+data.classes={basal cell carcinoma: bcc, head/neck: null, 0: nv}"])
    data = load_config(path).data
    assert data.columns == {"image_id": "file", "lesion_id": None}
    assert data.classes == {"basal cell carcinoma": "bcc", "head/neck": None, "0": "nv"}


@pytest.mark.parametrize(
    "text", ["null", "[a]", "nv", "{a: 1}", "{a: ''}", "{1.5: nv}", "{true: nv}", "{null: nv}", "{a: [b]}"]
)
def test_a_mapping_of_anything_else_is_refused(params, text):
    message = refusal(params({"data.classes": text}))
    assert "; it must be a mapping of text to text or null, as {a: b}" in message
    assert message.count("data.classes") == 1


@pytest.mark.parametrize("variant", ["lite0", 18, None])
def test_a_variant_is_text_or_a_number_or_null(params, variant):
    assert load_config(params({"model.variant": json.dumps(variant)})).model.variant == variant


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("training.learning_rate", "fast", "'fast'; it must be a valid number"),
        ("training.learning_rate", '"0.1"', "'0.1'; it must be a valid number"),
        ("training.learning_rate", "0", "0; it must be greater than 0"),
        ("training.learning_rate", ".nan", "nan; it must be a finite number"),
        ("training.learning_rate", ".inf", "inf; it must be a finite number"),
        ("training.learning_rate", "null", "None; it must be a valid number"),
        ("training.weight_decay", "true", "True; it must be a valid number"),
        ("training.max_epochs", "true", "True; it must be a valid integer"),
        ("training.max_epochs", "0.5", "0.5; it must be a valid integer"),
        ("training.max_epochs", "0", "0; it must be greater than or equal to 1"),
        ("training.seed", "4294967296", "4294967296; it must be less than 4294967296"),
        (
            "training.lr_scheduler",
            "linear",
            "'linear'; it must be 'cosine', 'step', 'reduce_on_plateau' or 'exponential'",
        ),
        ("training.precision", "64", "64; it must be 'auto', 32, 16 or 'bf16'"),
        ("training.optimizer", '" "', "' '; it must be printable text"),
        ("training.deterministic", "1", "1; it must be true or false"),
        ("training.deterministic", "yes", "'yes'; it must be true or false"),
        (
            "training.val_check_interval",
            "2.5",
            "2.5; it must be a number of batches, as 2, or a fraction of an epoch, at most 1.0",
        ),
        ("data.data_dir", "5", "5; it must be printable text"),
        ("data.image_size", "4096", "4096; it must be less than or equal to 2048"),
        ("runtime.num_workers", "0", "0; it must be greater than or equal to 1"),
        ("model.num_classes", "1", "1; it must be 'diagnoses' or greater than or equal to 2"),
        ("model.variant", "1.5", "1.5; it must be printable text or a valid integer"),
        (
            "evaluation.decision",
            "balance",
            "'balance'; it must be most_probable, balanced or the path of a CSV file, as data/costs/ham10000.csv",
        ),
        ("evaluation.decision", "1", "1; it must be printable text"),
        ("evaluation.prevalences", "0.1", "0.1; it must be a list"),
        ("evaluation.prevalences", "null", "None; it must be a list"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_with_what_is(params, key, text, expected):
    path = params({key: text})
    assert refusal(path) == f"{path}: {key} is {expected}"


@pytest.mark.parametrize("entry", ["0", "1.0", ".nan", "true", "null", "[0.1]", "low"])
def test_an_entry_of_a_list_is_refused_by_its_place(params, entry):
    assert "evaluation.prevalences[1] is " in refusal(params({"evaluation.prevalences": f"[0.1, {entry}]"}))


def test_values_that_are_set_in_code_are_checked_as_those_of_the_file():
    assert override(PLAIN, {"training.seed": 3}) == replace(PLAIN, training=replace(PLAIN.training, seed=3))
    with pytest.raises(InputError) as caught:
        override(PLAIN, {"training.sed": 3, "data.cutout": 1.5})
    assert "training.sed is unknown; did you mean training.seed?" in str(caught.value)
    assert "data.cutout is 1.5; it must be less than 1" in str(caught.value)
    with pytest.raises(ValueError, match="image_size"):
        replace(PLAIN.data, image_size=8)


def test_all_mistakes_are_reported_together(params):
    changes = {"data.image_size": "big", "data.augment": "1", "model.num_classes": "all"}
    message = refusal(params(changes, without=["training.seed"], more="extra: 1"))
    for part in ("data.image_size", "data.augment", "model.num_classes", "training.seed is missing", "extra"):
        assert part in message


def test_an_unknown_key_is_refused_with_the_one_that_was_meant(params):
    message = refusal(params({"training.max_epochs": "1\n  learning_rat: 0.1"}))
    assert "training.learning_rat is unknown; did you mean training.learning_rate?" in message


def test_an_unknown_key_like_no_other_is_refused_with_those_there_are(params):
    message = refusal(params({"evaluation.batch_size": "1\n  zzz: 0.1"}))
    assert "evaluation.zzz is unknown; known are batch_size" in message


def test_an_unknown_section_is_refused(params):
    message = refusal(params(more="trainin:\n  seed: 1"))
    assert "trainin is unknown; did you mean training?" in message


def test_no_key_may_be_missing(params):
    missing = sorted(KEYS)[::2]
    message = refusal(params(without=missing))
    assert [key for key in missing if f"{key} is missing" not in message] == []


def test_no_section_may_be_missing(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("data: {}\n", encoding="utf-8")
    message = refusal(path)
    for name in ("split", "model", "training", "evaluation", "runtime"):
        assert f"{name} is missing" in message
    assert "data.image_size is missing" in message


@pytest.mark.parametrize("text", ["runtime: 5", "runtime: [cpu_threads]", "runtime:"])
def test_a_section_must_hold_keys(params, text):
    path = params()
    path.write_text(re.sub(r"(?s)runtime:\n.*", text, path.read_text()), encoding="utf-8")
    message = refusal(path)
    assert re.search(
        r"runtime is .*; it must be a mapping with the keys cpu_instructions, cpu_threads, num_workers", message
    )


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "just text", "- data\n- split"])
def test_a_file_without_sections_is_refused_with_those_it_needs(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    assert re.search(
        r"the content is .*; it must be a mapping with the keys data, split, model, training, evaluation, runtime",
        refusal(path),
    )


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"data: {image_size: 64, image_size: 32}", "image_size"),
        (b"data:\n  image_size: 64\n image_size: 32", "line 3"),
        (b"data: [", "line 1"),
        (b"data: \xff", "can't decode"),
    ],
    ids=["duplicate key", "indentation", "open bracket", "not UTF-8"],
)
def test_broken_yaml_is_refused(tmp_path, text, named):
    path = tmp_path / "params.yaml"
    path.write_bytes(text)
    message = refusal(path)
    assert message.startswith(f"{path}: ")
    assert named in message


def test_a_missing_file_is_refused_with_where_to_run(tmp_path):
    assert "run from the root of the repository" in refusal(tmp_path / "params.yaml")


@pytest.mark.parametrize("key", ["test_fold", "val_fold"])
def test_a_fold_must_be_one_of_the_folds(params, key):
    message = refusal(params({"split.folds": "5", f"split.{key}": "5"}))
    assert f"split.{key} is 5; it must be below split.folds, which is 5" in message


def test_validation_and_test_must_be_different_folds(params):
    message = refusal(params({"split.test_fold": "3", "split.val_fold": "3"}))
    assert "split.val_fold is 3, the same as split.test_fold" in message
    assert "null" in message


@pytest.mark.parametrize("changes", [{"split.by": "source"}, {"split.test_source": "clinic"}])
def test_a_source_is_held_out_by_its_name_alone(params, changes):
    message = refusal(params(changes))
    assert "with source it must name the source to hold out, with lesion be null" in message


def test_without_a_validation_fold_it_is_the_one_after_the_test_fold():
    chosen = [replace(PLAIN.split, folds=4, test_fold=fold).validation_fold for fold in range(4)]
    assert chosen == [1, 2, 3, 0]
    assert replace(PLAIN.split, folds=4, test_fold=1, val_fold=3).validation_fold == 3
