"""The recipe that benchmarks and tests change: params.yaml, with what was tuned put back to a plain choice."""

from pathlib import Path

from stages.config import PARAMS, load_config, override

PLAIN = override(
    load_config(Path(__file__).parents[1] / PARAMS),
    {
        "data.data_dir": "data/ham10000",
        "data.image_size": 224,
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
