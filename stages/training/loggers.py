"""Where the curves and the results of training are written."""

import importlib.util
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from dvclive import Live
from torch import nn

from stages.config import Config
from stages.dataset.augmentation import as_float
from stages.dataset.loaders import Batches, SplitImages
from stages.errors import DiskFullError, InputError, no_space, one_line
from stages.files import LOGS, MODEL_DESCRIPTION, MODEL_WEIGHTS, WANDB
from stages.training.module import TrainingModule

if TYPE_CHECKING:
    import wandb

SAMPLES = 16  # validation images that Weights & Biases shows


class MetricLogger(Protocol):
    """What the training loop needs of a logger; Lightning's loggers have it."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log numbers by name, with the training step, from 0, after which they hold."""


class DVCLiveLogger:
    """Appends each number to its curve in DVCLive's folder, and writes a summary of the last ones after each epoch.

    Lightning's logger of DVCLive looks up the source of every function that has called it to find out whether an epoch
    ended: 50 ms per entry, during which a GPU is idle.

    Args:
        folder: of DVCLive; its content is replaced.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # dvc.yaml is written by hand and experiments are saved by `dvc exp run`: DVCLive does neither.
        self._live = Live(dir=str(folder), dvcyaml=None, save_dvc_exp=False, report=None)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append numbers to their curves; unless they are those of a single step, write the summary.

        Raises:
            DiskFullError: there is no space for them; the folder is gone, since its files were cut short.
        """
        self._live.step = step or 0
        try:
            for name, value in metrics.items():
                self._live.log_metric(_path(name), value)
            if "step_loss" not in metrics:
                self._live.sync()
        except OSError as error:
            if (full := no_space(error)) is None:
                raise
            shutil.rmtree(self._folder, ignore_errors=True)
            raise DiskFullError(self._folder, full.strerror) from None

    def summarize(self, metrics: Mapping[str, float], step: int) -> None:
        """Write a summary of these numbers alone: those of the epoch that was kept, not of the last one."""
        self._live.step, self._live.summary = step, {}
        for name, value in metrics.items():
            self._live.log_metric(_path(name), value, plot=False)
        self._live.make_summary()


def _path(name: str) -> str:
    return name.replace("train_", "train/").replace("val_", "val/")


def create_loggers(config: Config, metrics: Path) -> list[MetricLogger]:
    """DVCLive's logger, and Lightning's of each other that `training.loggers` lists.

    DVCLive always logs: its files are outputs of the stage.

    Args:
        config: the parameters, which the others record.
        metrics: folder for DVCLive.

    Raises:
        InputError: a package is not installed, or Weights & Biases or MLflow cannot start a run.
    """
    others = [name for name in config.training.loggers if name != "dvclive"]
    for name in others:
        _require(name)
    loggers = [_weights_and_biases(config) if name == "wandb" else _lightning_logger(name, config) for name in others]
    return [DVCLiveLogger(metrics), *loggers]


def _require(name: str) -> None:
    """Raise an InputError if a logger's package, which has its name, is not installed."""
    # Python takes the folder of earlier runs for a package of that name, one without an origin.
    if name != "csv" and getattr(importlib.util.find_spec(name), "origin", None) is None:
        raise InputError(
            f"training.loggers lists {name}, which is not installed: `pip install {name}`, or remove it from the list"
        )


def _lightning_logger(name: str, config: Config) -> MetricLogger:
    """Lightning's logger of a CSV file, TensorBoard or MLflow, in `LOGS`; MLflow's where MLFLOW_TRACKING_URI says."""
    from pytorch_lightning import loggers

    logger: Any
    if name == "csv":
        logger = loggers.CSVLogger(LOGS, name="csv")
    elif name == "tensorboard":
        logger = loggers.TensorBoardLogger(LOGS, name="tensorboard", default_hp_metric=False)
    else:
        address = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{LOGS}/mlflow.db"
        LOGS.mkdir(exist_ok=True)
        from mlflow.exceptions import MlflowException  # pyright: ignore[reportMissingImports]

        try:
            logger = loggers.MLFlowLogger("skin-lesions", tracking_uri=address, artifact_location=str(LOGS / "mlflow"))
            logger.experiment  # noqa: B018  # starts the run
        except MlflowException as error:
            raise InputError(
                f"MLflow cannot start a run ({one_line(error)}); set MLFLOW_TRACKING_URI to a server that answers, or "
                "remove mlflow from training.loggers"
            ) from None
    logger.log_hyperparams(asdict(config))
    return logger


def _weights_and_biases(config: Config) -> MetricLogger:
    import wandb
    from pytorch_lightning.loggers import WandbLogger

    # By default it keeps artifacts in the user's home until they are uploaded: a run that was logged offline could not
    # be taken to another machine.
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        os.environ.setdefault(name, str(WANDB.absolute()))
    logger = WandbLogger(project="skin-lesions", save_dir=WANDB.parent, config=asdict(config), log_model=False)
    try:
        logger.experiment  # noqa: B018  # starts the run, in the first process
    except wandb.Error as error:
        raise InputError(
            f"Weights & Biases cannot start a run ({error}); `wandb login`, or WANDB_MODE=offline, or remove wandb "
            "from training.loggers"
        ) from None
    return logger


def end_logging(loggers: list[MetricLogger]) -> None:
    """Write what loggers still hold, and end their runs: the next network of an ensemble has runs of its own."""
    for logger in loggers:
        if not isinstance(logger, DVCLiveLogger):
            getattr(logger, "finalize")("success")  # noqa: B009
    for run in _runs(loggers):
        run.finish()


def log_results(
    loggers: list[MetricLogger], module: TrainingModule, val: SplitImages, network: nn.Module, models: Path,
    metrics: dict[str, float],
) -> None:  # fmt: skip
    """End the runs of all loggers; give Weights & Biases what DVC keeps, and pictures of the validation images.

    The model's files, the number of parameters, the confusion matrix and some images with their probabilities.

    Args:
        loggers: of the last network.
        module: the last network, trained.
        val: the validation images.
        network: with the weights that are kept, on the device, maps images to logits as the module does.
        models: folder of the written model.
        metrics: of the whole training, by name.
    """
    for run in _runs(loggers):
        _log_model(run, module, val, network, models, metrics)
    end_logging(loggers)


def _log_model(
    run: Any, module: TrainingModule, val: SplitImages, network: nn.Module, models: Path,
    metrics: dict[str, float],
) -> None:  # fmt: skip
    import wandb
    from pytorch_lightning import LightningModule
    from pytorch_lightning.utilities.model_summary import ModelSummary

    classes = list(val.classes.names)
    batches = Batches(val, module.config.evaluation.batch_size, module.device)
    network.eval()
    with torch.inference_mode():
        each = [network(as_float(batch.images), batch.metadata).softmax(dim=1) for batch in batches]
    probabilities = torch.cat(each).cpu().numpy()
    labels, predicted = val.labels, probabilities.argmax(axis=1)
    summarised = LightningModule()
    for name, part in module.named_children():
        summarised.add_module(name, part)
    summary = ModelSummary(summarised, max_depth=2)
    run.summary.update(
        metrics | {"parameters": summary.total_parameters, "trainable_parameters": summary.trainable_parameters}
    )
    run.log(
        {
            "confusion_matrix": wandb.plot.confusion_matrix(
                y_true=labels.tolist(), preds=predicted.tolist(), class_names=classes, title="Validation images"
            ),
            "samples": _sample_table(val, probabilities, classes),
            "model_summary": wandb.Html(f"<pre>{summary}</pre>"),
        }
    )
    artifact = wandb.Artifact("classifier", type="model", metadata=asdict(module.config))
    # By name: what evaluation wrote for an earlier model may still lie beside them.
    for file in (MODEL_WEIGHTS, MODEL_DESCRIPTION):
        artifact.add_file(str(models / file.name))
    run.log_artifact(artifact)


def _runs(loggers: list[MetricLogger]) -> list:
    """The runs of Weights & Biases."""
    return [getattr(logger, "experiment") for logger in loggers if type(logger).__name__ == "WandbLogger"]  # noqa: B009


def _sample_table(images: SplitImages, probabilities: np.ndarray, classes: list[str]) -> "wandb.Table":
    import wandb

    rows = np.linspace(0, len(images) - 1, min(SAMPLES, len(images))).astype(int)
    table = wandb.Table(columns=["image_id", "image", "true", "predicted", "confidence", *classes])
    for row, pixels in zip(rows, images.store.read(images.indices[rows])):
        true, predicted = classes[images.labels[row]], classes[probabilities[row].argmax()]
        numbers = probabilities[row].max(), *probabilities[row]
        table.add_data(images.table["image_id"][row], wandb.Image(pixels), true, predicted, *map(float, numbers))
    return table
