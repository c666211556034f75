import json
import math
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.plain import HAM10000, told_apart
from stages.classifier.networks import Ensemble, build_network, pixel_statistics
from stages.classifier.weights import DESCRIPTION, WEIGHTS, ModelDescription, load_model, save_model
from stages.errors import InputError

NAME = "baseline_cnn"


def description(name=NAME, classes=2, networks=1):
    mean, std = pixel_statistics(name)
    epochs, losses, size, batch = [3] * networks, [0.25] * networks, 32, 32
    return ModelDescription(
        name,
        networks,
        list(told_apart(classes).names),
        HAM10000,
        size,
        list(mean),
        list(std),
        epochs,
        losses,
        [],
        batch,
        1,
    )


def network(name=NAME, classes=2, seed=0):
    torch.manual_seed(seed)
    built = build_network(name, classes, 32)
    built.train()(torch.rand(4, 3, 32, 32))  # statistics of batches that differ from fresh ones
    return built.eval()


@pytest.fixture
def folder(tmp_path):
    """A saved model."""
    save_model(network(), description(), tmp_path)
    return tmp_path


def refusal(folder):
    with pytest.raises(InputError) as caught:
        load_model(folder)
    return str(caught.value)


@pytest.mark.parametrize(("name", "classes"), [(NAME, 2), (NAME, 7), ("tf_efficientnet_lite0", 2)])
def test_a_loaded_model_gives_the_bits_of_the_saved_one(tmp_path, name, classes):
    saved = network(name, classes)
    save_model(saved, description(name, classes), tmp_path)
    loaded, loaded_description = load_model(tmp_path)
    images = torch.rand(3, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(loaded(images), saved(images))
    assert loaded_description == description(name, classes)
    assert not loaded.training


def test_the_detail_of_its_images_is_in_the_description_where_it_was_reduced(tmp_path):
    for detail in (None, 100):
        save_model(network(), replace(description(), detail=detail), tmp_path)
        assert ("detail" in json.loads((tmp_path / DESCRIPTION).read_text())) == (detail is not None)
        assert load_model(tmp_path)[1].detail == detail


def test_an_ensemble_gives_the_mean_of_its_networks_probabilities(tmp_path):
    members = [network(seed=seed) for seed in range(3)]
    save_model(Ensemble(members), description(networks=3), tmp_path)
    loaded, _ = load_model(tmp_path)
    images = torch.rand(4, 3, 32, 32)
    with torch.inference_mode():
        expected = torch.stack([member(images).softmax(dim=1) for member in members]).mean(dim=0)
        torch.testing.assert_close(loaded(images).softmax(dim=1), expected)
        torch.testing.assert_close(loaded(images).exp().sum(dim=1), torch.ones(4))


@pytest.mark.parametrize(("saved", "described"), [(1, 2), (2, 1), (2, 3)])
def test_an_ensemble_of_another_size_than_described_is_refused(tmp_path, saved, described):
    members = [network(seed=seed) for seed in range(saved)]
    save_model(Ensemble(members) if saved > 1 else members[0], description(networks=described), tmp_path)
    what = NAME if described == 1 else f"{described} {NAME}"
    assert refusal(tmp_path).startswith(f"{tmp_path / WEIGHTS} does not hold a {what}; run `dvc repro`")


def test_the_statistics_of_pixels_come_from_the_description(tmp_path):
    changed = replace(description(), mean=[0.0, 0.25, 0.5], std=[0.5, 0.25, 1.0])
    save_model(network(), changed, tmp_path)
    loaded, _ = load_model(tmp_path)
    images = torch.rand(2, 3, 32, 32)
    normalised = (images - torch.tensor(changed.mean).view(3, 1, 1)) / torch.tensor(changed.std).view(3, 1, 1)
    torch.testing.assert_close(loaded(images), loaded.backbone(normalised))


def test_the_same_weights_give_the_same_bytes_and_other_weights_do_not(tmp_path, bytes_below):
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        save_model(network(seed=seed), description(), tmp_path / name)
    assert bytes_below(tmp_path / "one") == bytes_below(tmp_path / "again")
    assert set(bytes_below(tmp_path / "one")) == {WEIGHTS, DESCRIPTION}
    assert bytes_below(tmp_path / "one")[WEIGHTS] != bytes_below(tmp_path / "other")[WEIGHTS]


@pytest.mark.parametrize("name", [WEIGHTS, DESCRIPTION])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert refusal(folder).startswith(f"{folder / name} does not exist; run `dvc repro`")


@pytest.mark.parametrize("length", [0, 4, 100, 5000])
def test_cut_off_weights_are_refused_with_the_file_s_name(folder, length):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:length])
    assert refusal(folder).startswith(f"{path} is not a safetensors file")


@pytest.mark.parametrize("content", [b"", b"garbage", b"[]", b"{}", b"\xff\xfe"])
def test_a_damaged_description_is_refused_with_the_file_s_name(folder, content):
    (folder / DESCRIPTION).write_bytes(content)
    assert str(folder / DESCRIPTION) in refusal(folder)


class Payload:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_refused_and_does_not_run(folder, tmp_path):
    victim = tmp_path / "executed"
    for dump in (
        lambda file: file.write(pickle.dumps(Payload(victim))),
        lambda file: torch.save(Payload(victim), file),
    ):
        with (folder / WEIGHTS).open("wb") as file:
            dump(file)
        assert refusal(folder).startswith(f"{folder / WEIGHTS} is not a safetensors file")
        assert not victim.exists()


@pytest.mark.parametrize("changes", [{"architecture": "resnet18"}, {"classes": list(told_apart(7).names)}])
def test_weights_and_a_description_of_different_networks_are_refused(folder, changes):
    path = folder / DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    message = refusal(folder)
    assert f"{folder / WEIGHTS} does not hold a {changes.get('architecture', NAME)}" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("architecture", ["no_such_network", 5, None, [NAME], "", "resnet18.no_such_tag"]),
        ("classes", [["malignant", "benign"], ["benign"], [], "benign", 2, None, [["benign"], "malignant"]]),
        ("image_size", [15, 2049, 32.0, "32", None, True, -1]),
        (
            "mean",
            [[0.5, 0.5], [0.5] * 4, 0.5, None, "0.5", [0.5, 0.5, "0.5"], [0.5, math.nan, 0.5], [-0.1, 0, 0], [2, 0, 0]],
        ),
        ("std", [[0.5, 0.5], [0.0, 0.5, 0.5], [0.5, math.nan, 0.5], [math.inf, 1, 1], None, [True, True, True]]),
        ("networks", [0, 1.0, "1", None, True]),
        ("epochs", [[-1], [1.5], ["1"], [None], [True], [], 1, None, [1] * 11, [1, 1]]),
        ("validation_folds", [[-1], [1.5], ["1"], [0, 1], 1, None, [True]]),
        ("val_losses", [[-0.1], [math.nan], [math.inf], ["0.5"], [None], [True], [], 0.5, None, [0.1, 0.2]]),
    ],
)
def test_every_field_of_the_description_is_checked(folder, key, values):
    path = folder / DESCRIPTION
    content = json.loads(path.read_text())
    for value in values:
        path.write_text(json.dumps(content | {key: value}))
        message = refusal(folder)
        assert message.startswith(f"{path}: {key}"), value
        assert "; it must " in message
    del content[key]
    path.write_text(json.dumps(content))
    assert f"{path}: {key} is missing; run `dvc repro` to regenerate it" in refusal(folder)


def test_an_unknown_field_of_the_description_is_refused(folder):
    path = folder / DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text()) | {"temperature": 1.0}))
    assert f"{path}: temperature is unknown; known are architecture, " in refusal(folder)
