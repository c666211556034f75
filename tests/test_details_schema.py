"""docs/details.schema.json against what `evaluate` really writes."""

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from stages import evaluate
from stages.files import DETAILS, MODELS, PREPARED, SPLIT, TRAINING_METRICS, read_json
from stages.train import train_model
from tests.figures.findings import details_of

SCHEMA = json.loads((Path(__file__).parent.parent / "docs/details.schema.json").read_text(encoding="utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA)


def shortened(content):
    """`content` with one object in each list of objects, so that it is checked quickly."""
    if isinstance(content, dict):
        return {key: shortened(value) for key, value in content.items()}
    is_list_of_objects = isinstance(content, list) and content and isinstance(content[0], dict)
    return [shortened(content[0])] if is_list_of_objects else content


def places(content, path=()):
    """The path to every object below `content`."""
    if isinstance(content, dict | list):
        if isinstance(content, dict):
            yield path
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from places(value, (*path, key))


def at(content, path):
    for key in path:
        content = content[key]
    return content


@pytest.fixture(params=[2, 7])
def details(request):
    """What metrics/details.json might hold, for 2 and for 7 classes."""
    return details_of(request.param)


def test_the_schema_is_one_and_describes_every_key():
    Draft202012Validator.check_schema(SCHEMA)
    undescribed = []

    def visit(schema, path):
        keys = {**schema.get("properties", {}), **schema.get("$defs", {})}
        undescribed.extend(f"{path}.{key}" for key, inner in keys.items() if not inner.get("description"))
        for key, inner in keys.items():
            visit(inner, f"{path}.{key}")
        for inner in [*filter(None, [schema.get("items")]), *schema.get("anyOf", [])]:
            visit(inner, path)

    visit(SCHEMA, "")
    assert undescribed == []


@pytest.mark.parametrize("classes", [2, 7])
def test_what_evaluate_writes_is_what_the_schema_says(workspace, quick, classes):
    if classes == 7:
        changes = {"model.num_classes": 7, "training.max_epochs": 1}
        train_model(quick(**changes), PREPARED, SPLIT, MODELS, TRAINING_METRICS, workspace / "checkpoints")
    evaluate.main()
    written = read_json(DETAILS)
    assert len(written["classes"]) == classes
    assert [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(written)] == []


def test_a_key_that_is_unknown_or_missing_is_found_wherever_it_is(details):
    details, shapes = shortened(details), set()
    for path in list(places(details)):
        place = at(details, path)
        place["surprise"] = 1
        assert not VALIDATOR.is_valid(details), path
        del place["surprise"]
        if frozenset(place) in shapes:  # an object like this one has lacked each of its keys already
            continue
        shapes.add(frozenset(place))
        for key in list(place):
            value = place.pop(key)
            assert not VALIDATOR.is_valid(details), (*path, key)
            place[key] = value
    assert VALIDATOR.is_valid(details)


@pytest.mark.parametrize("key", ["val", "baselines", "leakage"])
def test_what_an_external_validation_does_not_have_may_be_null(details, key):
    assert VALIDATOR.is_valid(details | {key: None})
    assert not VALIDATOR.is_valid(details | {"test": None})


def test_a_number_that_does_not_exist_has_no_interval_and_a_share_lies_between_0_and_1(details):
    details["test"]["metrics"]["accuracy"] = {"value": None, "interval": None}
    assert VALIDATOR.is_valid(details)
    for value, interval in ((0.5, [0.4]), (0.5, None), (None, [0.4, 0.6])):
        details["test"]["metrics"]["accuracy"] = {"value": value, "interval": interval}
        assert not VALIDATOR.is_valid(details)
    details["test"]["metrics"]["accuracy"] = {"value": 0.5, "interval": [0.4, 0.6]}
    details["calibration"]["threshold"] = 1.5
    assert not VALIDATOR.is_valid(details)
