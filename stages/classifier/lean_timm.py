"""timm without Weights & Biases, which it imports wherever that is installed: a third of a stage's start."""

import sys

_absent = "wandb" not in sys.modules
if _absent:
    sys.modules["wandb"] = None  # an import of it raises ImportError, which timm is prepared for
try:
    import timm
    import timm.optim
finally:
    if _absent:
        del sys.modules["wandb"]

__all__ = ["timm"]
