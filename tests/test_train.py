import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dvc.repo import Repo
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from benchmarks.plain import HAM10000
from stages import train
from stages.classifier.inference import predict_probabilities
from stages.classifier.weights import WEIGHTS, load_model, save_model
from stages.dataset.augmentation import as_float
from stages.dataset.folds import validated_on
from stages.dataset.loaders import Batches, SplitImages
from stages.dataset.pixels import PixelStore
from stages.errors import InputError
from stages.evaluation.history import read_history
from stages.files import CHECKPOINTS, MODELS, PREPARED, SPLIT, TRAINING_METRICS, read_csv, sha256_of, write_csv
from stages.launch import run
from stages.training.fit import train_model

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def train_below(tiny, quick):
    """A function that trains with changed parameters and writes below a folder."""

    def run(folder, **changes):
        return train_model(
            quick(**changes), *tiny, folder / MODELS, folder / TRAINING_METRICS, folder / CHECKPOINTS
        )  # fmt: skip

    return run


def test_training_writes_the_model_its_description_its_curves_and_checkpoints(trained):
    assert {path.name for path in (trained / MODELS).iterdir()} == {"model.safetensors", "model.json"}
    assert (trained / TRAINING_METRICS / "metrics.json").is_file()
    assert list((trained / CHECKPOINTS).iterdir()) == []  # training has ended
    description = json.loads((trained / MODELS / "model.json").read_text())
    assert description["architecture"] == "baseline_cnn"
    assert description["classes"] == ["benign", "malignant"]
    assert description["image_size"] == 16


def test_the_written_weights_are_those_of_the_lowest_val_loss(trained):
    network, description = load_model(trained / MODELS)
    images = SplitImages(PixelStore(trained / PREPARED), "val", trained / SPLIT, 2)
    cpu = torch.device("cpu")
    batches = (batch.images for batch in Batches(images, 8, cpu))
    probabilities = torch.from_numpy(predict_probabilities(network, batches, cpu, test_time_augmentation=False))
    assert cross_entropy(probabilities.log(), images.labels).item() == pytest.approx(
        description.val_losses[0], abs=1e-5
    )
    losses = read_history(trained / TRAINING_METRICS)["val_loss"]
    assert description.epochs == [losses.idxmin()]
    assert description.val_losses == [pytest.approx(losses.min(), abs=1e-6)]


def test_two_trainings_write_the_same_bytes_and_another_seed_others(train_below, tmp_path, bytes_below):
    for name, changes in (("one", {}), ("again", {}), ("other", {"training.seed": 1})):
        train_below(tmp_path / name, **changes)
    one, again, other = (
        {place: bytes_below(tmp_path / name / place) for place in (MODELS, TRAINING_METRICS)}
        for name in ("one", "again", "other")
    )
    assert one == again
    assert one[MODELS]["model.safetensors"] != other[MODELS]["model.safetensors"]
    assert one[TRAINING_METRICS]["metrics.json"] != other[TRAINING_METRICS]["metrics.json"]


def test_a_second_training_replaces_all_of_the_first(train_below, tmp_path, bytes_below):
    train_below(tmp_path / "once", **{"training.max_epochs": 1})
    for epochs in (3, 1):
        train_below(tmp_path / "twice", **{"training.max_epochs": epochs})
    assert bytes_below(tmp_path / "twice" / MODELS) == bytes_below(tmp_path / "once" / MODELS)
    assert bytes_below(tmp_path / "twice" / TRAINING_METRICS) == bytes_below(tmp_path / "once" / TRAINING_METRICS)
    checkpoints = set(bytes_below(tmp_path / "twice" / CHECKPOINTS))
    assert checkpoints == set(bytes_below(tmp_path / "once" / CHECKPOINTS))


def test_seven_classes_are_described_in_their_order(train_below, tmp_path):
    changes = {"model.num_classes": 7, "training.max_epochs": 1}
    description = train_below(tmp_path, **changes).description
    assert description.classes == ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
    network, _ = load_model(tmp_path / MODELS)
    assert network(torch.rand(1, 3, 16, 16)).shape == (1, 7)


def test_training_starts_from_weights_of_an_earlier_one(train_below, trained, tmp_path):
    weights = trained / MODELS / "model.safetensors"
    description = train_below(
        tmp_path, **{"model.weights": str(weights), "training.learning_rate": 1e-9, "training.max_epochs": 1}
    ).description
    assert description.val_losses[0] == pytest.approx(load_model(trained / MODELS)[1].val_losses[0], abs=0.1)


def test_the_networks_of_an_ensemble_are_those_of_its_seeds(train_below, tmp_path):
    ensemble = train_below(tmp_path / "both", **{"model.ensemble": 2}).description
    singles = [train_below(tmp_path / str(seed), **{"training.seed": seed}).description for seed in (0, 1)]
    assert ensemble.networks == 2
    assert ensemble.epochs == [single.epochs[0] for single in singles]
    state = load_file(tmp_path / "both" / MODELS / "model.safetensors")
    for seed in (0, 1):
        for name, tensor in load_file(tmp_path / str(seed) / MODELS / "model.safetensors").items():
            assert torch.equal(state[f"{seed}.{name}"], tensor)
    assert {path.name for path in (tmp_path / "both" / TRAINING_METRICS).iterdir()} == {
        "metrics.json", "plots", "network-2"
    }  # fmt: skip
    assert list((tmp_path / "both" / CHECKPOINTS).iterdir()) == []
    # A smaller one leaves nothing of it.
    train_below(tmp_path / "both")
    assert not (tmp_path / "both" / TRAINING_METRICS / "network-2").exists()


def test_each_network_of_an_ensemble_over_folds_leaves_another_one_out(train_below, tiny, quick, tmp_path):
    changes = {"model.ensemble": 2, "model.ensemble_over": "folds"}
    description = train_below(tmp_path / "both", **changes).description
    table = read_csv(tiny.split, [])
    calibrates = int(table["fold"][table["split"] == "val"].iloc[0])
    first, second = sorted(set(table["fold"][table["split"] == "train"]) & set(range(calibrates + 1, 100)))[:2]
    assert description.validation_folds == [first, second]
    # The second is what a training of its own on that split and seed gives.
    split = tmp_path / "split.csv"
    write_csv(split, validated_on(table, second))
    places = (tmp_path / "alone" / place for place in (MODELS, TRAINING_METRICS, CHECKPOINTS))
    train_model(quick(**{"training.seed": 1}), tiny.folder, split, *places)
    state = load_file(tmp_path / "both" / MODELS / "model.safetensors")
    for name, tensor in load_file(tmp_path / "alone" / MODELS / "model.safetensors").items():
        assert torch.equal(state[f"1.{name}"], tensor)


def test_students_of_a_teacher_are_the_same_bytes_again(train_below, trained, tmp_path, bytes_below):
    shutil.copytree(trained / MODELS, tmp_path / "teachers" / "any")
    changes = {"model.ensemble": 2, "training.teacher": str(tmp_path / "teachers"), "training.teacher_weight": 1.0}
    for name in ("one", "again"):
        description = train_below(tmp_path / name, **changes).description
    assert description.teacher_sha256 == sha256_of(trained / MODELS / WEIGHTS)
    assert bytes_below(tmp_path / "one" / MODELS) == bytes_below(tmp_path / "again" / MODELS)
    # Nothing but the teacher tells them the label: it is not asked for.
    store = PixelStore(trained / PREPARED)
    val = SplitImages(store, "val", trained / SPLIT, 2)
    teacher, student = (load_model(folder)[0] for folder in (trained / MODELS, tmp_path / "one" / MODELS))
    images = as_float(torch.from_numpy(store.read(val.indices)))
    with torch.no_grad():
        assert (teacher(images).argmax(dim=1) == student(images).argmax(dim=1)).float().mean() > 0.8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split_sha256": "0" * 64}, r"trained by .*split\.csv: which is what .*model\.json does not say"),
        ({"split_sha256": None}, "Others may know the test lesions, as a release does"),
        ({"image_size": 32}, r"model\.json says that its image_size is 32; it must be 16"),
        ({"detail": 100}, "its detail is 100; it must be None"),
        ({"classes": list(HAM10000)}, "its classes is .*'akiec'.*; it must be .*'malignant'"),
        (None, r"which takes a model\.json"),
    ],
)
def test_a_teacher_that_may_know_the_test_lesions_or_says_something_else_is_refused(
    train_below, trained, tmp_path, change, message
):
    if change is not None:
        network, description = load_model(trained / MODELS)
        save_model(network, replace(description, **change), tmp_path / "teacher")
    with pytest.raises(InputError, match=rf"training\.teacher is '.*teacher'.*{message}"):
        train_below(tmp_path, **{"training.teacher": str(tmp_path / "teacher")})
    assert not (tmp_path / MODELS).exists()


def test_more_networks_than_folds_are_refused(train_below, tmp_path):
    with pytest.raises(InputError, match=r"model\.ensemble is 10 and .* 'folds', but .* only \d folds"):
        train_below(tmp_path, **{"model.ensemble": 10, "model.ensemble_over": "folds"})


def test_the_stage_leaves_nothing_but_its_outputs(workspace, capsys):
    """In a DVC repository, where DVCLive would save experiments and write dvc.yaml."""
    for name in (MODELS, TRAINING_METRICS, CHECKPOINTS):
        shutil.rmtree(name, ignore_errors=True)
    Repo.init(".", no_scm=True).close()
    shutil.copy(REPOSITORY / "dvc.yaml", "dvc.yaml")
    before = {path.name for path in workspace.iterdir()}
    train.main()
    assert {path.name for path in workspace.iterdir()} == before | {"models", "metrics", "checkpoints"}
    assert Path("dvc.yaml").read_bytes() == (REPOSITORY / "dvc.yaml").read_bytes()
    assert {path.name for path in TRAINING_METRICS.iterdir()} == {"metrics.json", "plots"}
    assert "baseline_cnn: best epoch " in capsys.readouterr().out


def test_a_failed_training_leaves_the_earlier_model(workspace, params, bytes_below):
    before = bytes_below(MODELS)
    params({"model.name": "no_such_network", "model.variant": "null"})
    with pytest.raises(InputError, match="no_such_network"):
        train.main()
    assert bytes_below(MODELS) == before


@pytest.mark.parametrize("place", [PREPARED, SPLIT])
def test_a_missing_input_is_named(workspace, place):
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    with pytest.raises(InputError, match=f"{place}.*does not exist; run `dvc repro`"):
        train.main()


def test_a_mistake_ends_the_command_with_its_message(workspace, params):
    params({"model.name": "baseline_cnn", "model.variant": "null", "model.pretrained": "true"})
    with pytest.raises(SystemExit, match=r"^error: model\.pretrained is true, but baseline_cnn"):
        run(train.main)
