"""params.yaml as typed, checked dataclasses: no stage runs on a value that is not allowed here.

The meaning of each parameter is beside it in params.yaml, which holds all of them: there are no defaults here.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, Strict, model_validator
from pydantic.dataclasses import dataclass
from ruamel.yaml import YAML

from stages.checks import Count, Flag, Float, Number, Positive, Whole, checked, relation
from stages.errors import InputError, printable

PARAMS = Path("params.yaml")
ALL_DIAGNOSES = "diagnoses"  # as model.num_classes
MOST_PROBABLE, BALANCED = "most_probable", "balanced"  # as evaluation.decision
MOST_NETWORKS = 10  # of an ensemble
MAX_CHARACTERS = 1_000_000  # of a YAML file, its aliases written out


def _is_text(value: Any) -> bool:
    """Whether it can be a name: line breaks and other control characters cannot be part of one."""
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _text(value: Any) -> str:
    if not _is_text(value):
        raise ValueError("printable text")
    return value


def _text_to_text(mapping: Any) -> dict[str, str | None]:
    # YAML reads the label 1 as a number; tables hold text. Of other keys, as true, the spelling is not certain.
    if not isinstance(mapping, dict) or not all(
        (type(key) is int or _is_text(key)) and (value is None or _is_text(value)) for key, value in mapping.items()
    ):
        raise ValueError("a mapping of text to text or null, as {a: b}, numbers in quotes; empty: {}")
    return {str(key): value for key, value in mapping.items()}


Seed = Annotated[int, Strict(), Field(ge=0, lt=2**32)]
Share = Annotated[Float, Field(gt=0, le=1)]
Side = Annotated[int, Strict(), Field(ge=16, le=2048)]
Rate = Annotated[Float, Field(ge=0, lt=1)]
Text = Annotated[str, BeforeValidator(_text)]
Names = Annotated[dict[str, str | None], BeforeValidator(_text_to_text)]
PARAMETERS = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=PARAMETERS)
class DataConfig:
    """Which images, and how they are stored and augmented."""

    data_dir: Text
    taxonomy: Text
    columns: Names
    classes: Names
    image_size: Side
    detail: Side | None
    subsample_percentage: Share
    augment: Flag
    augment_strength: Annotated[Float, Field(ge=0, le=3)]
    acquisition_strength: Annotated[Float, Field(ge=0, le=3)]
    cutout: Rate
    mixup: Number
    cutmix: Number


@dataclass(frozen=True, config=PARAMETERS)
class SplitConfig:
    """Which folds are held out, or which source."""

    by: Literal["lesion", "source"]
    test_source: Text | None
    folds: Annotated[int, Strict(), Field(ge=3, le=100)]
    test_fold: Whole
    val_fold: Whole | None
    seed: Seed

    @model_validator(mode="after")
    def _check_folds(self) -> Self:
        for key in ("test_fold", "val_fold"):
            value = getattr(self, key)
            if value is not None and value >= self.folds:
                raise relation(f"{key} is {value}; it must be below split.folds, which is {self.folds}")
        if self.val_fold == self.test_fold:
            raise relation(
                f"val_fold is {self.val_fold}, the same as split.test_fold; "
                "it must be another fold, or null for the one after test_fold"
            )
        return self

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.by == "source") != (self.test_source is not None):
            raise relation(
                f"by is {self.by} and split.test_source {self.test_source or 'null'}; with source it must name the "
                "source to hold out, with lesion be null"
            )
        return self

    @property
    def validation_fold(self) -> int:
        """The fold that validates: `val_fold`, or the one after `test_fold`, so that a sweep over it just works."""
        return (self.test_fold + 1) % self.folds if self.val_fold is None else self.val_fold


@dataclass(frozen=True, config=PARAMETERS)
class ModelConfig:
    """Which network, and where its weights start."""

    name: Text
    variant: Text | Whole | None
    num_classes: Literal["diagnoses"] | Annotated[int, Strict(), Field(ge=2, le=100)]
    pretrained: Flag
    weights: Text | None
    metadata: Literal["none", "late", "fused"]
    dropout_rate: Rate
    drop_path_rate: Rate
    ensemble: Annotated[int, Strict(), Field(ge=1, le=MOST_NETWORKS)]
    ensemble_over: Literal["seeds", "folds"]

    @property
    def is_over_folds(self) -> bool:
        """Whether there are several networks, each validated on its own fold."""
        return self.ensemble > 1 and self.ensemble_over == "folds"


def _whole_or_fraction(value: int | float) -> int | float:
    if type(value) is float and value > 1:
        raise ValueError(f"a number of batches, as {int(value)}, or a fraction of an epoch, at most 1.0")
    return value


Batches = Annotated[Count | Positive, AfterValidator(_whole_or_fraction)]


@dataclass(frozen=True, config=PARAMETERS)
class TrainingConfig:
    """How the network is fitted."""

    max_epochs: Count
    learning_rate: Positive
    batch_size: Count
    accumulate_grad_batches: Count
    weight_decay: Number
    optimizer: Text
    layer_decay: Share
    frozen_epochs: Whole
    lr_scheduler: Literal["cosine", "step", "reduce_on_plateau", "exponential"]
    lr_warmup_epochs: Number
    lr_step_epochs: Count
    lr_gamma: Share
    lr_plateau_patience: Whole
    early_stopping_patience: Count
    monitor: Literal["val_loss", "val_calibrated_loss"]
    gradient_clip_val: Number
    label_smoothing: Rate
    class_balance: Literal["none", "weights", "sampling", "logits"]
    class_balance_strength: Share
    class_balance_within: Literal["all", "source"]
    teacher: Text | None
    teacher_weight: Share
    ema_decay: Rate
    precision: Literal["auto", 32, 16, "bf16"]
    compile: Literal["auto", "none", "graph", "inductor"]
    devices: Count
    num_nodes: Count
    strategy: Literal["auto", "ddp"]
    seed: Seed
    deterministic: Flag
    val_check_interval: Batches
    limit_train_batches: Batches
    overfit_batches: Annotated[Whole | Number, AfterValidator(_whole_or_fraction)]
    fast_dev_run: Flag | Whole
    log_every_n_steps: Count
    resume: Flag
    checkpoint_minutes: Positive
    loggers: tuple[Literal["dvclive", "wandb", "tensorboard", "mlflow", "csv"], ...]
    profiler: Literal["simple", "advanced", "pytorch"] | None
    detect_anomaly: Flag


def _decision(text: str) -> str:
    if text not in (MOST_PROBABLE, BALANCED) and not text.lower().endswith(".csv"):
        raise ValueError(f"{MOST_PROBABLE}, {BALANCED} or the path of a CSV file, as data/costs/ham10000.csv")
    return text


@dataclass(frozen=True, config=PARAMETERS)
class EvaluationConfig:
    """How predictions are made and evaluated."""

    batch_size: Count
    test_time_augmentation: Flag
    target_sensitivity: Share
    decision: Annotated[Text, AfterValidator(_decision)]
    prevalences: tuple[Annotated[Float, Field(gt=0, lt=1)], ...]
    gradcam_cases: Annotated[int, Strict(), Field(ge=0, le=20)]
    bootstrap_replicates: Annotated[int, Strict(), Field(ge=100, le=1_000_000)]
    confidence: Annotated[Float, Field(ge=0.5, lt=1)]


@dataclass(frozen=True, config=PARAMETERS)
class RuntimeConfig:
    """What every stage may use of the machine."""

    cpu_instructions: Literal["avx2", "native"]
    cpu_threads: Annotated[int, Strict(), Field(ge=1, le=1024)]
    num_workers: Annotated[int, Strict(), Field(ge=1, le=256)] | None


@dataclass(frozen=True, config=PARAMETERS)
class Config:
    """Everything in params.yaml."""

    data: DataConfig
    split: SplitConfig
    model: ModelConfig
    training: TrainingConfig
    evaluation: EvaluationConfig
    runtime: RuntimeConfig


def load_config(path: Path = PARAMS) -> Config:
    """Read and check params.yaml.

    Every key must be present: a default that a file does not show is one that nobody can compare between two commits.

    Raises:
        InputError: the file is missing, is not YAML, or has unknown, missing or disallowed entries, each of them named.
    """
    return read_yaml(path, Config, "; run from the root of the repository")


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """`config` with other values, by their dotted names, such as "training.seed".

    Raises:
        InputError: there is no such parameter, or it cannot have this value.
    """
    content = asdict(config)
    for name, value in changes.items():
        section, _, key = name.partition(".")
        content.setdefault(section, {})[key] = value
    try:
        return checked(content, Config)
    except ValueError as error:
        raise InputError(str(error)) from None


def read_yaml(path: Path, kind: Any, advice: str = "") -> Any:
    """A YAML file that people write, as an instance of a pydantic type.

    Args:
        path: the file.
        kind: the type.
        advice: what is said of a file that cannot be read.

    Raises:
        InputError: it cannot be read, is not YAML, or holds something else; each entry that is wrong is named.
    """
    try:
        return checked(parse_yaml(path.read_bytes()), kind)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}){advice}") from None
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def parse_yaml(content: bytes) -> Any:
    """What a YAML file holds: text, numbers, truth values, null, lists and mappings, whatever tags it has.

    Raises:
        ValueError: it is not YAML; the message is one line.
    """
    try:
        # YAML 1.2: DVC writes 3e-05, which YAML 1.1 readers take for a string.
        parsed = YAML(typ="safe", pure=True).load(content.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:  # besides ruamel's own, whatever Python has for a date or number that is none
        raise ValueError(printable(" ".join(str(error).split()))) from None
    if _is_endless(parsed):
        raise ValueError("its aliases stand for too much, or for themselves")
    return parsed


def _is_endless(parsed: Any) -> bool:
    """Whether it would take too much to write out: with aliases, ten lines may stand for more than a disk holds."""
    size, left = 0, [parsed]
    while left and size <= MAX_CHARACTERS:
        value = left.pop()
        size += 1 + (len(value) if isinstance(value, str | bytes) else 0)
        if isinstance(value, dict):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set):
            left += value
    return size > MAX_CHARACTERS
