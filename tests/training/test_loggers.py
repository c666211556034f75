"""Weights & Biases in offline mode: what a user would miss is read back from the files that the run left."""

import importlib.util
import inspect
import json
import os
import shutil
import struct
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import torch
from PIL import Image

from stages.classifier.inference import predict_probabilities
from stages.classifier.weights import load_model
from stages.dataset.loaders import Batches, SplitImages
from stages.dataset.pixels import PixelStore
from stages.errors import InputError
from stages.evaluation.history import read_history
from stages.files import CHECKPOINTS, LOGS, MODELS, PREPARED, SPLIT, TRAINING_METRICS
from stages.training.fit import train_model
from stages.training.loggers import DVCLiveLogger, create_loggers, end_logging

REPOSITORY = Path(__file__).parents[2]
CPU = torch.device("cpu")
TRAINED = {
    "training.log_every_n_steps": 2,
    "training.monitor": "val_calibrated_loss",
    "training.learning_rate": 0.0001,  # so slowly that this loss is not 0 yet
}
LOGGED = TRAINED | {"training.loggers": ("dvclive", "wandb")}
OUTPUTS = (MODELS, TRAINING_METRICS)


class OfflineRun(NamedTuple):
    """What Weights & Biases would upload.

    Attributes:
        workspace: the folder that was trained in.
        config: the parameters by section.
        history: what was logged, one dictionary a call, in order.
        summary: the last value of everything, and the results.
        artifacts: of each artifact's type, its files by name.
        before: content of the folder before the training, by path.
    """

    workspace: Path
    config: dict
    history: list[dict]
    summary: dict
    artifacts: dict[str, dict[str, Path]]
    before: dict[str, bytes]

    def curve(self, name: str) -> list:
        return [row[name] for row in self.history if name in row]

    def table(self, name: str) -> pd.DataFrame:
        """A logged table; images in it are dictionaries that name a file of its artifact."""
        path = next(
            path
            for files in self.artifacts.values()
            for logged, path in files.items()
            if logged == f"{name}.table.json"
        )
        content = json.loads(path.read_text(encoding="utf-8"))
        return pd.DataFrame(content["data"], columns=content["columns"])


def records_of(path: Path):
    """The records of a run's file: LevelDB's log format, blocks of 32 KiB, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left_in_block = 2**15 - place % 2**15
        if left_in_block < 7:  # no room for a header: filled with zeros
            place += left_in_block
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def values_of(items) -> dict:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def read_run(workspace: Path, before: dict[str, bytes]) -> OfflineRun:
    (path,) = workspace.glob("wandb/offline-run-*/run-*.wandb")
    config, history, summary, artifacts = {}, [], {}, {}
    for record in records_of(path):
        match record.WhichOneof("record_type"):
            case "run":
                config |= values_of(record.run.config.update)
            case "config":
                config |= values_of(record.config.update)
            case "history":
                history.append(values_of(record.history.item))
            case "summary":
                summary |= values_of(record.summary.update)
            case "request" if record.request.HasField("log_artifact"):
                artifact = record.request.log_artifact.artifact
                files = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
                artifacts.setdefault(artifact.type, {}).update(files)
            case "artifact":
                files = {entry.path: Path(entry.local_path) for entry in record.artifact.manifest.contents}
                artifacts.setdefault(record.artifact.type, {}).update(files)
    return OfflineRun(workspace, config, history, summary, artifacts, before)


@pytest.fixture
def offline(monkeypatch, tmp_path_factory):
    """No account, no network, and a home in which everything that is written is seen."""
    home = tmp_path_factory.mktemp("home")
    for name in list(os.environ):
        if name.startswith(("WANDB_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):  # which the logger sets: for monkeypatch to take them back
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield home
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()  # its service, which remembers this environment


@pytest.fixture
def run(offline, workspace, quick, bytes_below):
    """A training of three epochs with both loggers, beside what evaluation left for an earlier model."""
    wandb = pytest.importorskip("wandb")
    (MODELS / "calibration.json").write_text("{}")
    for folder in (TRAINING_METRICS, CHECKPOINTS):
        shutil.rmtree(folder)
    before = bytes_below(workspace)
    train_model(quick(**LOGGED))
    wandb.teardown()  # the end of a run does not wait until its service has closed the file
    return read_run(workspace, before)


def test_an_offline_run_holds_what_a_user_would_look_for(run, quick, offline, bytes_below):
    """One test: a run takes seconds to start and to finish."""
    # The parameters.
    assert run.config["training"]["learning_rate"] == 0.0001
    assert run.config["training"]["loggers"] == ["dvclive", "wandb"]
    assert run.config["training"]["precision"] == 32  # what auto became
    assert run.config["model"]["name"] == "baseline_cnn"
    assert {"data", "split", "model", "training", "evaluation"} <= set(run.config)

    # The curves: those that DVC keeps, and the steps'.
    history = read_history(TRAINING_METRICS)
    for name in ("train_loss", "val_loss", "val_calibrated_loss", "val_acc", "learning_rate"):
        assert run.curve(name) == pytest.approx(list(history[name]), rel=1e-6), name
    assert len(history) == 3
    steps = [row["trainer/global_step"] for row in run.history if "step_loss" in row]
    assert steps == list(range(1, len(steps) * 2, 2))
    assert len(steps) == 3 * 5 // 2
    assert all(loss > 0 for loss in run.curve("step_loss"))
    assert max(run.curve("step_learning_rate")) == pytest.approx(0.0001, rel=0.1)

    # The results.
    network, description = load_model(MODELS)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert run.summary["parameters"] == run.summary["trainable_parameters"] == parameters
    assert run.summary["images_per_second"] > 0
    assert run.summary["best_epoch"] == description.epochs[0]
    assert run.summary["best_val_calibrated_loss"] == pytest.approx(description.val_losses[0], abs=1e-6)
    summary = run.workspace / "wandb/latest-run/files" / run.summary["model_summary/path"]
    assert "Total params" in summary.read_text()

    # The confusion matrix and the samples are those of the written model.
    images = SplitImages(PixelStore(PREPARED), "val", SPLIT, 2)
    batches = (batch.images for batch in Batches(images, 8, CPU))
    probabilities = predict_probabilities(network, batches, CPU, test_time_augmentation=False)
    classes = ("benign", "malignant")
    matrix = run.table("confusion_matrix_table").set_index(["Actual", "Predicted"])["nPredictions"]
    for label, actual in enumerate(classes):
        for guess, predicted in enumerate(classes):
            expected = (images.labels.numpy() == label) & (probabilities.argmax(1) == guess)
            assert matrix[actual, predicted] == expected.sum()
    samples = run.table("samples")
    assert list(samples.columns) == ["image_id", "image", "true", "predicted", "confidence", *classes]
    assert list(samples["image_id"]) == list(images.table["image_id"])  # all: there are fewer than sixteen
    assert samples[list(classes)].to_numpy() == pytest.approx(probabilities, abs=1e-5)
    assert list(samples["confidence"]) == pytest.approx(list(probabilities.max(1)), abs=1e-5)
    assert list(samples["true"]) == [classes[label] for label in images.labels]
    assert list(samples["predicted"]) == [classes[guess] for guess in probabilities.argmax(1)]
    for row, pixels in enumerate(images.store.read(images.indices)):
        picture = run.artifacts["run_table"][samples["image"][row]["path"]]
        assert Image.open(picture).convert("RGB").tobytes() == pixels.tobytes()

    # The model, as DVC keeps it, and nothing that was there before.
    model = run.artifacts["model"]
    assert {name: path.read_bytes() for name, path in model.items()} == {
        name: (MODELS / name).read_bytes() for name in ("model.safetensors", "model.json")
    }

    # Everything lies in wandb/, where it can be synchronised from any machine, and Git ignores that.
    assert all(
        path.is_relative_to(run.workspace / "wandb") for files in run.artifacts.values() for path in files.values()
    )
    new = set(bytes_below(run.workspace)) - set(run.before)
    places = (f"{TRAINING_METRICS}/", f"{CHECKPOINTS}/", "wandb/")
    assert [name for name in new if not name.startswith(places)] == []
    assert bytes_below(offline) == {}
    assert "/wandb" in (REPOSITORY / ".gitignore").read_text().splitlines()


def test_dvc_outputs_are_the_same_bytes_with_and_without_weights_and_biases(run, quick, tmp_path_factory, bytes_below):
    alone = tmp_path_factory.mktemp("alone")
    train_model(
        quick(**TRAINED),
        models=alone / MODELS,
        metrics=alone / TRAINING_METRICS,
        checkpoints=alone / CHECKPOINTS,
    )
    (MODELS / "calibration.json").unlink()
    for place in OUTPUTS:
        assert bytes_below(place) == bytes_below(alone / place)


# A folder wandb/ of earlier runs is a namespace package to Python.
@pytest.mark.parametrize("found", [None, ModuleSpec("wandb", None)], ids=["nothing", "the folder of earlier runs"])
def test_a_missing_package_is_named_with_what_to_do(found, workspace, quick, monkeypatch, bytes_below):
    before = bytes_below(workspace)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    with pytest.raises(InputError, match="lists wandb, which is not installed: `pip install wandb`, or remove it"):
        train_model(quick(**LOGGED))
    assert bytes_below(workspace) == before


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_every_logger_that_is_missing_is_named(name, workspace, quick, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=f"lists {name}, which is not installed: `pip install {name}`, or remove it"):
        create_loggers(quick(**{"training.loggers": (name,)}), TRAINING_METRICS)


def test_an_mlflow_that_does_not_answer_is_said(workspace, quick, monkeypatch):
    pytest.importorskip("mlflow", reason="needs mlflow: pip install mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://x")
    with pytest.raises(InputError, match=r"MLflow cannot start a run \(.*nowhere://x.*; set MLFLOW_TRACKING_URI"):
        create_loggers(quick(**{"training.loggers": ("mlflow",)}), TRAINING_METRICS)


@pytest.mark.parametrize("name", ["csv", "tensorboard", "mlflow"])
def test_lightning_s_loggers_get_the_curves_and_the_parameters(name, workspace, quick, monkeypatch):
    if name != "csv":
        pytest.importorskip(name, reason=f"needs {name}: pip install {name}")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    loggers = create_loggers(quick(**{"training.loggers": (name, "dvclive")}), TRAINING_METRICS)
    assert [type(logger) is DVCLiveLogger for logger in loggers] == [True, False]
    for logger in loggers:
        logger.log_metrics({"step_loss": 0.5}, step=1)
        logger.log_metrics({"val_loss": 0.25}, step=2)
    end_logging(loggers)
    if name == "csv":
        table = pd.read_csv(LOGS / "csv/version_0/metrics.csv")
        assert list(table["val_loss"].dropna()) == [0.25]
        assert "max_epochs: 3" in (LOGS / "csv/version_0/hparams.yaml").read_text()
    elif name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(LOGS / "tensorboard/version_0")).Reload()
        assert [(event.step, event.value) for event in events.Scalars("val_loss")] == [(2, 0.25)]
    else:
        from mlflow.tracking import MlflowClient

        client = MlflowClient(f"sqlite:///{LOGS}/mlflow.db")
        [run] = client.search_runs([client.get_experiment_by_name("skin-lesions").experiment_id])
        assert run.data.metrics["val_loss"] == 0.25
        assert run.data.params["training/max_epochs"] == "3"
    assert "/logs" in (REPOSITORY / ".gitignore").read_text().splitlines()


def test_the_summary_shows_the_kept_epoch_and_not_the_last(workspace, quick):
    train_model(quick(**TRAINED | {"training.monitor": "val_loss"}))
    history = read_history(TRAINING_METRICS)
    summary = json.loads((TRAINING_METRICS / "metrics.json").read_text())
    best = history.loc[history["val_loss"].idxmin()]
    assert summary["epoch"] == best["epoch"]
    assert summary["val"]["loss"] == pytest.approx(best["val_loss"], rel=1e-6)
    assert summary["train"]["loss"] == pytest.approx(best["train_loss"], rel=1e-6)


def test_a_summary_is_of_the_numbers_that_it_is_given(workspace, quick):
    (logger,) = create_loggers(quick(), TRAINING_METRICS)
    for step, loss in ((1, 0.25), (2, 0.75)):
        logger.log_metrics({"val_loss": loss, "step_loss": loss}, step)
    logger.summarize({"val_loss": 0.25, "epoch": 1}, 1)
    assert json.loads((TRAINING_METRICS / "metrics.json").read_text()) == {"val": {"loss": 0.25}, "epoch": 1, "step": 1}
    assert len((TRAINING_METRICS / "plots/metrics/val/loss.tsv").read_text().splitlines()) == 3  # the curve is whole


def test_a_run_that_cannot_start_says_what_to_do(offline, workspace, quick, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def refuse(**_):
        raise wandb.errors.UsageError("no API key configured")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(InputError, match=r"cannot start a run \(no API key configured\); `wandb login`, or WANDB_MODE"):
        create_loggers(quick(**LOGGED), TRAINING_METRICS)


def test_without_weights_and_biases_only_dvclive_logs(workspace, quick):
    (logger,) = create_loggers(quick(), TRAINING_METRICS)
    assert isinstance(logger, DVCLiveLogger)
    assert not Path("wandb").exists()


def test_the_summary_is_written_at_the_end_of_an_epoch_without_a_search_for_who_called(workspace, quick, monkeypatch):
    def search(*_):
        pytest.fail("it looks up the source of all functions that called")

    monkeypatch.setattr(inspect, "stack", search)
    (logger,) = create_loggers(quick(), TRAINING_METRICS)
    logger.log_metrics({"val_loss": 0.75}, step=1)
    summary = TRAINING_METRICS / "metrics.json"
    assert json.loads(summary.read_text()) == {"val": {"loss": 0.75}, "step": 1}
    before = summary.read_bytes()
    logger.log_metrics({"step_loss": 0.5, "step_learning_rate": 0.001}, step=2)
    assert summary.read_bytes() == before
    assert (TRAINING_METRICS / "plots/metrics/step_loss.tsv").read_text().splitlines() == ["step\tstep_loss", "2\t0.5"]
    logger.log_metrics({"val_loss": 0.25}, step=2)
    assert json.loads(summary.read_text())["val"] == {"loss": 0.25}
