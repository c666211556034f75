"""params.yaml as typed, checked dataclasses: no stage runs on a value that is not allowed here."""

import dataclasses
import reprlib
import sys
import types
import typing
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

from ruamel.yaml import YAML

from stages.errors import InputError, printable

PARAMS = Path("params.yaml")
NUMBERS = tuple[float, ...]
NAMES = tuple[str, ...]
LISTS = {NUMBERS: float, NAMES: str}
MAPPING = dict[str, str | None]
MAX_PROBLEMS_SHOWN = 50
MOST_NETWORKS = 10  # of an ensemble
MAX_CHARACTERS = 1_000_000  # of a YAML file, its aliases written out
# Values in messages.
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 200
_SHOWN.maxlist = _SHOWN.maxdict = 10
_SHOWN.maxlevel = 3


def setting(default: Any, *, above=None, at_least=None, below=None, at_most=None, choices=None) -> Any:
    """A dataclass field with its default and the values it allows; bounds and choices do not apply to null."""
    limits = {"above": above, "at least": at_least, "below": below, "at most": at_most}
    limits = {name: limit for name, limit in limits.items() if limit is not None}
    return dataclasses.field(default=default, metadata={"limits": limits, "choices": choices})


def mapping() -> Any:
    """A dataclass field of the type `MAPPING`, empty by default."""
    return dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """A section of params.yaml, checked whenever one is made.

    Raises:
        InputError: a value has the wrong type or lies outside its bounds; all such keys are named together.
    """

    section: ClassVar[str]

    def __post_init__(self) -> None:
        problems = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not _allowed(value, field):
                problems.append(f"{self.section}.{field.name} is {_SHOWN.repr(value)}; it must be {_expected(field)}")
            elif field.type in LISTS:
                object.__setattr__(self, field.name, tuple(LISTS[field.type](entry) for entry in value))
            elif field.type == MAPPING:
                # YAML reads the label 1 as a number; tables hold text.
                object.__setattr__(self, field.name, {str(key): entry for key, entry in value.items()})
            elif type(value) is int and float in _types(field) and int not in _types(field):
                object.__setattr__(self, field.name, float(value))
        if problems:
            raise InputError("\n  ".join(problems))


def _types(field: dataclasses.Field) -> tuple[type, ...]:
    if field.type in LISTS:
        return (LISTS[field.type],)  # of each of them
    return typing.get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)


def _allowed(value: Any, field: dataclasses.Field) -> bool:
    if field.type == MAPPING:
        # Other keys have no certain spelling: `True` may stand as true in the table, and 1.0 as 1.
        return isinstance(value, dict) and all(
            (type(key) is int or _is_text(key)) and (entry is None or _is_text(entry)) for key, entry in value.items()
        )
    if field.type in LISTS:
        return isinstance(value, list | tuple) and all(_one_allowed(entry, field) for entry in value)
    return _one_allowed(value, field)


def _one_allowed(value: Any, field: dataclasses.Field) -> bool:
    allowed_types = _types(field)
    # bool is a subclass of int, and an int is as good as a float.
    if type(value) not in allowed_types and not (type(value) is int and float in allowed_types):
        return False
    if value is None:
        return True
    if field.metadata["choices"] is not None:
        return value in field.metadata["choices"]
    if isinstance(value, str):
        return _is_text(value)
    tests = {
        "above": lambda limit: value > limit,
        "at least": lambda limit: value >= limit,
        "below": lambda limit: value < limit,
        "at most": lambda limit: value <= limit,
    }
    # Neither infinite nor, as YAML allows, a whole number of a thousand digits.
    finite = abs(value) <= (sys.float_info.max if type(value) is float else sys.maxsize)
    return finite and all(tests[name](limit) for name, limit in field.metadata["limits"].items())


def _is_text(value: Any) -> bool:
    """Whether it can be a name of something: line breaks and other control characters can only harm."""
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _expected(field: dataclasses.Field) -> str:
    if field.type == MAPPING:
        return "a mapping of text to text or null, as {a: b}, numbers in quotes; empty: {}"
    choices = field.metadata["choices"]
    if choices is not None:
        kind = "a list of " if field.type in LISTS else "one of "
        return kind + ", ".join(map(str, choices)) + (" or null" if types.NoneType in _types(field) else "")
    names = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "printable text",
        types.NoneType: "null",
    }
    limits = " and ".join(f"{name} {limit}" for name, limit in field.metadata["limits"].items())
    kind = " or ".join(names[kind] for kind in _types(field)) + (f", {limits}" if limits else "")
    return f"a list, of which each is {kind}" if field.type in LISTS else kind


@dataclass(frozen=True)
class DataConfig(Section):
    """Which images, and how they are stored and augmented."""

    section: ClassVar[str] = "data"

    data_dir: str = setting("data/ham10000")
    columns: MAPPING = mapping()  # noqa: RUF009 (makes a field, as the others)
    classes: MAPPING = mapping()  # noqa: RUF009
    image_size: int = setting(224, at_least=16, at_most=2048)
    subsample_percentage: float = setting(1.0, above=0, at_most=1)
    num_workers: int | None = setting(None, at_least=1, at_most=256)
    augment: bool = setting(True)
    augment_strength: float = setting(1.0, at_least=0, at_most=3)
    cutout: float = setting(0.0, at_least=0, below=1)
    mixup: float = setting(0.0, at_least=0)
    cutmix: float = setting(0.0, at_least=0)


@dataclass(frozen=True)
class SplitConfig(Section):
    """Which folds are held out."""

    section: ClassVar[str] = "split"

    folds: int = setting(7, at_least=3, at_most=100)
    test_fold: int = setting(0, at_least=0)
    val_fold: int | None = setting(None, at_least=0)
    seed: int = setting(0, at_least=0, below=2**32)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("test_fold", "val_fold"):
            value = getattr(self, key)
            if value is not None and value >= self.folds:
                raise InputError(f"split.{key} is {value}; it must be below split.folds, which is {self.folds}")
        if self.val_fold == self.test_fold:
            raise InputError(
                f"split.val_fold is {self.val_fold}, the same as split.test_fold; "
                "it must be another fold, or null for the one after test_fold"
            )

    @property
    def validation_fold(self) -> int:
        """The fold that validates: `val_fold`, or the one after `test_fold`, so that a sweep over it just works."""
        return (self.test_fold + 1) % self.folds if self.val_fold is None else self.val_fold


@dataclass(frozen=True)
class ModelConfig(Section):
    """Which network, and where its weights start."""

    section: ClassVar[str] = "model"

    name: str = setting("efficientnet")
    variant: str | int | None = setting("lite0")
    num_classes: int = setting(2, choices=(2, 7))
    pretrained: bool = setting(True)
    weights: str | None = setting(None)
    dropout_rate: float = setting(0.2, at_least=0, below=1)
    drop_path_rate: float = setting(0.0, at_least=0, below=1)
    ensemble: int = setting(1, at_least=1, at_most=MOST_NETWORKS)
    ensemble_over: str = setting("seeds", choices=("seeds", "folds"))
    ensemble_average: str = setting("predictions", choices=("predictions", "weights"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.is_over_folds and self.ensemble_average == "weights":
            raise InputError(
                "model.ensemble_average is 'weights' and model.ensemble_over 'folds': the mean has been trained on all "
                "folds, and none is left to validate it; set ensemble_over to seeds, or ensemble_average to predictions"
            )

    @property
    def is_over_folds(self) -> bool:
        """Whether there are several networks, each validated on a fold of its own."""
        return self.ensemble > 1 and self.ensemble_over == "folds"


@dataclass(frozen=True)
class TrainingConfig(Section):
    """How the network is fitted. `batch_size` counts the images of one device in one batch."""

    section: ClassVar[str] = "training"

    max_epochs: int = setting(25, at_least=1)
    learning_rate: float = setting(1e-4, above=0)
    batch_size: int = setting(32, at_least=1)
    auto_batch_size: bool = setting(False)
    accumulate_grad_batches: int = setting(1, at_least=1)
    weight_decay: float = setting(0.01, at_least=0)
    optimizer: str = setting("adamw")
    layer_decay: float = setting(1.0, above=0, at_most=1)
    frozen_epochs: int = setting(0, at_least=0)
    lr_scheduler: str = setting("cosine", choices=("cosine", "step", "reduce_on_plateau", "exponential"))
    lr_warmup_epochs: float = setting(0.0, at_least=0)
    lr_step_epochs: int = setting(10, at_least=1)
    lr_gamma: float = setting(0.1, above=0, at_most=1)
    lr_plateau_patience: int = setting(3, at_least=0)
    early_stopping_patience: int = setting(10, at_least=1)
    monitor: str = setting("val_loss", choices=("val_loss", "val_calibrated_loss"))
    gradient_clip_val: float = setting(1.0, at_least=0)
    label_smoothing: float = setting(0.0, at_least=0, below=1)
    class_balance: str = setting("none", choices=("none", "weights", "sampling", "logits"))
    class_balance_strength: float = setting(1.0, above=0, at_most=1)
    ema_decay: float = setting(0.0, at_least=0, below=1)
    precision: str | int = setting("auto", choices=("auto", 32, 16, "bf16"))
    compile: str = setting("auto", choices=("auto", "none", "graph", "inductor"))
    devices: int = setting(1, at_least=1)
    num_nodes: int = setting(1, at_least=1)
    strategy: str = setting("auto", choices=("auto", "ddp"))
    seed: int = setting(0, at_least=0, below=2**32)
    deterministic: bool = setting(True)
    cpu_threads: int = setting(2, at_least=1, at_most=1024)
    val_check_interval: int | float = setting(1.0, above=0)
    limit_train_batches: int | float = setting(1.0, above=0)
    overfit_batches: int | float = setting(0, at_least=0)
    fast_dev_run: bool | int = setting(0, at_least=0)
    log_every_n_steps: int = setting(50, at_least=1)
    resume: bool = setting(True)
    checkpoint_minutes: float = setting(10.0, above=0)
    loggers: NAMES = setting(("dvclive",), choices=("dvclive", "wandb"))  # noqa: RUF009 (makes a field)
    profiler: str | None = setting(None, choices=("simple", "advanced", "pytorch"))
    detect_anomaly: bool = setting(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("val_check_interval", "limit_train_batches", "overfit_batches"):
            value = getattr(self, key)
            if type(value) is float and value > 1:
                raise InputError(
                    f"training.{key} is {value}; "
                    f"it must be a number of batches, as {int(value)}, or a fraction of an epoch, at most 1.0"
                )


@dataclass(frozen=True)
class EvaluationConfig(Section):
    """How predictions are made and judged."""

    section: ClassVar[str] = "evaluation"

    batch_size: int = setting(64, at_least=1)
    test_time_augmentation: bool = setting(True)
    target_sensitivity: float = setting(0.9, above=0, at_most=1)
    prevalences: NUMBERS = setting((0.02, 0.1, 0.3), above=0, below=1)  # noqa: RUF009 (makes a field, as the others)
    gradcam_cases: int = setting(4, at_least=0, at_most=20)
    bootstrap_replicates: int = setting(2000, at_least=100, at_most=1_000_000)
    confidence: float = setting(0.95, at_least=0.5, below=1)


@dataclass(frozen=True)
class Config:
    """Everything in params.yaml."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    split: SplitConfig = dataclasses.field(default_factory=SplitConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)


def load_config(path: Path = PARAMS) -> Config:
    """Read and check params.yaml.

    Every key must be present: a default that a file does not show is one that nobody can compare between two commits.

    Raises:
        InputError: the file is missing, is no YAML, or has unknown, missing or disallowed entries, each of them named.
    """
    try:
        content = parse_yaml(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist here; run from the root of the repository") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid YAML: {error}") from None

    classes = {field.name: field.default_factory for field in dataclasses.fields(Config)}
    problems = _key_problems("", content, classes)
    sections = {}
    for name, section in classes.items():
        if not isinstance(content, dict) or name not in content:
            continue
        keys = [field.name for field in dataclasses.fields(section)]
        section_problems = _key_problems(f"{name}.", content[name], keys)
        problems += section_problems
        if not section_problems:
            try:
                sections[name] = section(**content[name])
            except InputError as error:
                problems.append(str(error))
    if problems:
        more = len(problems) - MAX_PROBLEMS_SHOWN
        lines = problems[:MAX_PROBLEMS_SHOWN] + ([f"… and {more} more"] if more > 0 else [])
        raise InputError(f"{path}:\n  " + "\n  ".join(lines))
    return Config(**sections)


def parse_yaml(content: bytes) -> Any:
    """What a YAML file holds: text, numbers, truth values, null, lists and mappings, whatever tags it has.

    Raises:
        ValueError: it is no YAML; the message is one line.
    """
    try:
        # YAML 1.2: DVC writes 3e-05, which YAML 1.1 readers take for a string.
        parsed = YAML(typ="safe", pure=True).load(content.decode("utf-8"))
    except RecursionError:
        raise ValueError("its brackets or indentations lie too deep in each other") from None
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


def _key_problems(prefix: str, content: Any, expected: typing.Iterable[str]) -> list[str]:
    if not isinstance(content, dict):
        return [f"{prefix.rstrip('.') or 'the file'} is {_SHOWN.repr(content)}; it must hold {', '.join(expected)}"]
    problems = []
    unknown = [key for key in content if key not in expected]
    for key in (_SHOWN.repr(key).strip("'") for key in unknown[:MAX_PROBLEMS_SHOWN]):
        close = get_close_matches(key, expected, n=1)
        hint = f"did you mean {prefix}{close[0]}?" if close else f"known are {', '.join(expected)}"
        problems.append(f"{prefix}{key} is not a parameter; {hint}")
    problems += [f"{prefix}{key} is missing" for key in expected if key not in content]
    return problems
