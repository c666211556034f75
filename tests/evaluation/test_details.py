"""The types of metrics/details.json, and the schema that is made of them, against what `evaluate` really writes."""

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from stages import evaluate
from stages.checks import checked
from stages.errors import InputError
from stages.evaluation.details import SCHEMA, Details, details_schema, read_details
from stages.files import DETAILS, MODELS, PREPARED, SPLIT, TRAINING_METRICS, read_json, write_json
from stages.training.fit import train_model
from tests.figures.findings import details_of

ROOT = Path(__file__).parents[2]
VALIDATOR = Draft202012Validator(json.loads((ROOT / SCHEMA).read_text(encoding="utf-8")))


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


@pytest.fixture
def refusal(tmp_path):
    """A function that gives what is said of the content of a details.json; None if it is taken."""

    def read(content):
        path = tmp_path / "details.json"
        write_json(path, content)
        said = _refusal(path)
        assert VALIDATOR.is_valid(content) == (said is None), said
        return said

    return read


def _refusal(path):
    try:
        read_details(path)
    except InputError as error:
        return str(error)
    return None


def test_the_schema_is_that_of_the_types_and_describes_every_key():
    assert VALIDATOR.schema == json.loads(json.dumps(details_schema())), "run `make schema`"
    Draft202012Validator.check_schema(VALIDATOR.schema)
    keys = [pair for schema in VALIDATOR.schema["$defs"].values() for pair in schema.get("properties", {}).items()]
    # What only refers to a description that says the same has none of its own.
    assert [key for key, field in keys if not field.get("description") and set(field) != {"$ref"}] == []


@pytest.mark.parametrize("classes", [2, 7])
def test_what_evaluate_writes_is_what_the_types_say(workspace, quick, classes):
    if classes == 7:
        changes = {"model.num_classes": 7, "training.max_epochs": 1}
        train_model(quick(**changes), PREPARED, SPLIT, MODELS, TRAINING_METRICS, workspace / "checkpoints")
    evaluate.main()
    written = read_json(DETAILS)
    assert len(written["classes"]) == classes
    assert read_details(DETAILS) == written
    assert [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(written)] == []


def test_a_key_that_is_unknown_or_missing_is_found_wherever_it_is(details):
    details, shapes = shortened(details), set()
    for path in list(places(details)):
        place = at(details, path)
        if frozenset(place) in shapes:  # an object like this one has lacked each of its keys already
            continue
        shapes.add(frozenset(place))
        place["surprise"] = 1
        with pytest.raises(ValueError, match="surprise"):
            checked(details, Details)
        del place["surprise"]
        for key in place.keys() - {"costs"}:  # which files of earlier commits lack
            value = place.pop(key)
            with pytest.raises(ValueError, match=r"missing|it must"):
                checked(details, Details)
            place[key] = value
    checked(details, Details)


@pytest.mark.parametrize("key", ["val", "baselines", "leakage"])
def test_what_an_external_validation_does_not_have_may_be_null(details, refusal, key):
    assert refusal(details | {key: None}) is None
    assert "test is None; it must be a mapping" in refusal(details | {"test": None})


def test_a_number_that_does_not_exist_has_no_interval_and_a_share_lies_between_0_and_1(details, refusal):
    accuracy = details["test"]["metrics"]["accuracy"]
    accuracy |= {"value": None, "interval": None}
    assert refusal(details) is None
    for value, interval in ((0.5, [0.4]), (0.5, None), (None, [0.4, 0.6])):
        accuracy |= {"value": value, "interval": interval}
        assert "test.metrics.accuracy.interval is " in refusal(details)
    accuracy |= {"value": 0.5, "interval": [0.4, 0.6]}
    details["calibration"]["threshold"] = 1.5
    assert "calibration.threshold is 1.5; it must be less than or equal to 1" in refusal(details)


def test_the_structure_is_that_of_the_number_of_classes(refusal):
    two, seven = details_of(2), details_of(7)
    assert "test.malignancy is missing" in refusal(two | {"classes": seven["classes"]})
    assert "test.malignancy is unknown" in refusal(seven | {"classes": two["classes"]})
    assert "classes[0] is 'malignant'; it must be 'benign'" in refusal(two | {"classes": ["malignant", "benign"]})
