import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides

from stages.config import Config, DataConfig, ModelConfig, SplitConfig, TrainingConfig, load_config
from stages.errors import InputError

PARAMS = Path(__file__).parents[1] / "params.yaml"
SECTIONS = {field.name: field.default_factory for field in dataclasses.fields(Config)}
KEYS = {f"{name}.{field.name}" for name, section in SECTIONS.items() for field in dataclasses.fields(section)}


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


def test_defaults_are_those_that_are_promised():
    training = TrainingConfig()
    assert training.max_epochs == 25
    assert training.learning_rate == 1e-4
    assert training.batch_size == 32
    assert training.weight_decay == 0.01
    assert training.optimizer == "adamw"
    assert training.lr_scheduler == "cosine"
    assert training.early_stopping_patience == 10
    assert training.gradient_clip_val == 1.0
    assert training.accumulate_grad_batches == 1
    assert DataConfig() == DataConfig(
        data_dir="data/ham10000", image_size=224, subsample_percentage=1.0, num_workers=None, augment=True
    )
    assert ModelConfig() == ModelConfig(
        name="efficientnet", variant="lite0", num_classes=2, pretrained=True, weights=None, dropout_rate=0.2
    )


def test_weights_of_networks_that_validate_on_each_others_images_are_not_averaged(params):
    path = params({"model.ensemble": "2", "model.ensemble_over": "folds", "model.ensemble_average": "weights"})
    with pytest.raises(InputError, match=r"model\.ensemble_average is 'weights' and model\.ensemble_over 'folds'"):
        load_config(path)


def test_a_file_of_the_defaults_gives_the_defaults(params):
    assert load_config(params()) == Config()


@pytest.mark.parametrize("text", ["3e-05", "3e-5", "3.0e-5", "0.00003"])
def test_small_numbers_are_read_in_every_notation(params, text):
    assert load_config(params({"training.learning_rate": text})).training.learning_rate == 3e-5


def test_a_whole_number_is_taken_where_any_number_is(params):
    training = load_config(params({"training.weight_decay": "0", "training.gradient_clip_val": "2"})).training
    assert training == TrainingConfig(weight_decay=0.0, gradient_clip_val=2.0)
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


def test_whole_numbers_in_a_list_are_refused_where_they_lie_outside_the_bounds(params):
    assert "evaluation.prevalences is [1]" in refusal(params({"evaluation.prevalences": "[1]"}))


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
        ("training.learning_rate", "fast", "'fast'; it must be a number, above 0"),
        ("training.learning_rate", '"0.1"', "'0.1'; it must be a number, above 0"),
        ("training.learning_rate", "0", "0; it must be a number, above 0"),
        ("training.learning_rate", "-1e-4", "-0.0001; it must be a number, above 0"),
        ("training.learning_rate", ".nan", "nan; it must be a number, above 0"),
        ("training.learning_rate", ".inf", "inf; it must be a number, above 0"),
        ("training.learning_rate", "null", "None; it must be a number, above 0"),
        ("training.learning_rate", "[0.1]", "[0.1]; it must be a number, above 0"),
        ("training.weight_decay", "true", "True; it must be a number, at least 0"),
        ("training.max_epochs", "true", "True; it must be a whole number, at least 1"),
        ("training.max_epochs", "0.5", "0.5; it must be a whole number, at least 1"),
        ("training.max_epochs", "0", "0; it must be a whole number, at least 1"),
        ("training.seed", "4294967296", "4294967296; it must be a whole number, at least 0 and below 4294967296"),
        ("training.lr_scheduler", "linear", "'linear'; it must be one of cosine, step, reduce_on_plateau, exponential"),
        ("training.precision", "64", "64; it must be one of auto, 32, 16, bf16"),
        ("training.optimizer", '" "', "' '; it must be printable text"),
        ("training.deterministic", "1", "1; it must be true or false"),
        ("training.deterministic", "yes", "'yes'; it must be true or false"),
        ("data.data_dir", "5", "5; it must be printable text"),
        ("data.image_size", "8", "8; it must be a whole number, at least 16 and at most 2048"),
        ("data.image_size", "4096", "4096; it must be a whole number, at least 16 and at most 2048"),
        ("data.subsample_percentage", "0", "0; it must be a number, above 0 and at most 1"),
        ("data.subsample_percentage", "50", "50; it must be a number, above 0 and at most 1"),
        ("data.num_workers", "0", "0; it must be a whole number or null, at least 1 and at most 256"),
        ("model.num_classes", "3", "3; it must be one of 2, 7"),
        ("model.dropout_rate", "1.0", "1.0; it must be a number, at least 0 and below 1"),
        ("evaluation.prevalences", "0.1", "0.1; it must be a list, of which each is a number, above 0 and below 1"),
        (
            "evaluation.prevalences",
            "[0.1, 0]",
            "[0.1, 0]; it must be a list, of which each is a number, above 0 and below 1",
        ),
        (
            "evaluation.prevalences",
            "[0.1, 1.0]",
            "[0.1, 1.0]; it must be a list, of which each is a number, above 0 and below 1",
        ),
        (
            "evaluation.prevalences",
            "[0.1, .nan]",
            "[0.1, nan]; it must be a list, of which each is a number, above 0 and below 1",
        ),
        (
            "evaluation.prevalences",
            "[0.1, true]",
            "[0.1, True]; it must be a list, of which each is a number, above 0 and below 1",
        ),
        (
            "evaluation.prevalences",
            "[0.1, null]",
            "[0.1, None]; it must be a list, of which each is a number, above 0 and below 1",
        ),
        (
            "evaluation.prevalences",
            "[[0.1]]",
            "[[0.1]]; it must be a list, of which each is a number, above 0 and below 1",
        ),
        ("evaluation.prevalences", "null", "None; it must be a list, of which each is a number, above 0 and below 1"),
        (
            "evaluation.prevalences",
            "{0.1: 0.2}",
            "{0.1: 0.2}; it must be a list, of which each is a number, above 0 and below 1",
        ),
        (
            "evaluation.prevalences",
            "[0.1, low]",
            "[0.1, 'low']; it must be a list, of which each is a number, above 0 and below 1",
        ),
        ("split.folds", "2", "2; it must be a whole number, at least 3 and at most 100"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_with_what_is(params, key, text, expected):
    path = params({key: text})
    assert refusal(path) == f"{path}:\n  {key} is {expected}"


def test_all_mistakes_are_reported_together(params):
    changes = {"data.image_size": "big", "data.augment": "1", "model.num_classes": "3"}
    message = refusal(params(changes, without=["training.seed"], more="extra: 1"))
    for part in ("data.image_size", "data.augment", "model.num_classes", "training.seed is missing", "extra"):
        assert part in message


def test_an_unknown_key_is_refused_with_the_one_that_was_meant(params):
    message = refusal(params({"training.max_epochs": "1\n  learning_rat: 0.1"}))
    assert "training.learning_rat is not a parameter; did you mean training.learning_rate?" in message


def test_an_unknown_key_like_no_other_is_refused_with_those_there_are(params):
    message = refusal(params({"evaluation.batch_size": "1\n  zzz: 0.1"}))
    assert "evaluation.zzz is not a parameter; known are batch_size" in message


def test_an_unknown_section_is_refused(params):
    message = refusal(params(more="trainin:\n  seed: 1"))
    assert "trainin is not a parameter; did you mean training?" in message


@pytest.mark.parametrize("key", sorted(KEYS))
def test_no_key_may_be_missing(params, key):
    assert f"{key} is missing" in refusal(params(without=[key]))


def test_no_section_may_be_missing(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("data: {}\n", encoding="utf-8")
    message = refusal(path)
    for name in set(SECTIONS) - {"data"}:
        assert f"{name} is missing" in message
    assert "data.image_size is missing" in message


@pytest.mark.parametrize("text", ["evaluation: 5", "evaluation: [batch_size]", "evaluation:"])
def test_a_section_must_hold_keys(params, text):
    path = params()
    path.write_text(re.sub(r"(?s)evaluation:\n.*", text, path.read_text()), encoding="utf-8")
    message = refusal(path)
    assert re.search(r"evaluation is .*; it must hold batch_size", message)


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "just text", "- data\n- split"])
def test_a_file_without_sections_is_refused_with_those_it_needs(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    assert re.search(r"the file is .*; it must hold data, split, model, training, evaluation", refusal(path))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"data: {image_size: 64, image_size: 32}", "image_size"),
        (b"data:\n  image_size: 64\n image_size: 32", "line 3"),
        (b"data: [", "line 1"),
        (b"data: \xff", "not valid YAML"),
    ],
    ids=["duplicate key", "indentation", "open bracket", "not UTF-8"],
)
def test_broken_yaml_is_refused(tmp_path, text, named):
    path = tmp_path / "params.yaml"
    path.write_bytes(text)
    message = refusal(path)
    assert message.startswith(f"{path} is not valid YAML: ")
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


def test_without_a_validation_fold_it_is_the_one_after_the_test_fold():
    chosen = [SplitConfig(folds=4, test_fold=fold).validation_fold for fold in range(4)]
    assert chosen == [1, 2, 3, 0]
    assert SplitConfig(folds=4, test_fold=1, val_fold=3).validation_fold == 3
