"""The recipe that benchmarks and tests change: params.yaml, with what was tuned put back to a plain choice."""

from functools import cache
from pathlib import Path

from stages.config import PARAMS, load_config, override
from stages.dataset.taxonomy import Classes, Diagnosis, classes_of, read_taxonomy

ROOT = Path(__file__).parents[1]
PLAIN = override(
    load_config(ROOT / PARAMS),
    {
        "data.data_dir": "data/ham10000",
        "data.image_size": 224,
        "data.taxonomy": str(ROOT / "data/taxonomies/ham10000.yaml"),
        "model.dropout_rate": 0.2,
        "training.class_balance": "none",
        "training.class_balance_strength": 1.0,
        "training.ema_decay": 0.0,
        "training.learning_rate": 1e-4,
        "training.lr_warmup_epochs": 0.0,
        "training.max_epochs": 25,
        "training.monitor": "val_loss",
    },
)
HAM10000 = read_taxonomy(Path(PLAIN.data.taxonomy))


@cache
def taxonomy_of(classes: int) -> dict[str, Diagnosis]:
    """HAM10000's for 2 classes and for 7, Derm7pt's for 20."""
    return read_taxonomy(ROOT / "data/taxonomies/derm7pt.yaml") if classes == 20 else HAM10000


def told_apart(classes: int) -> Classes:
    """Benign and malignant for 2, else the diagnoses of a taxonomy."""
    return classes_of(taxonomy_of(classes), classes)
