"""The temperature that a network's logits ask for, and the loss that it leaves of them."""

import numpy as np
from scipy.optimize import minimize_scalar

_TEMPERATURES = (0.05, 20.0)


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the lowest negative log-likelihood (Guo et al., ICML 2017).

    Args:
        probabilities: of validation images, shape (n, classes).
        labels: shape (n,).

    Returns:
        From 0.05 to 20: images that are all predicted rightly have no best temperature, only ever lower ones.
    """
    return _scale(np.log(np.maximum(probabilities, np.finfo(np.float64).tiny)), labels)[0]


def calibrated_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean cross-entropy at the temperature that makes it least, in nats.

    What is left of a loss when `fit_temperature` has mended what it can: how well the classes are told apart.

    Args:
        logits: shape (n, classes).
        labels: shape (n,).

    Returns:
        nan where a logit is not finite.
    """
    return _scale(logits.astype(np.float64), labels)[1] if np.isfinite(logits).all() else np.nan


def _scale(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """The temperature with the lowest loss, and that loss."""
    # log Σ exp z − z of the own class = (the highest z − it) + log(1 + Σ exp(the others − the highest)), also scaled.
    ordered = np.sort(logits, axis=1)
    highest = ordered[:, -1] - logits[np.arange(len(labels)), labels]
    others = ordered[:, :-1] - ordered[:, -1:]

    def loss(log_temperature: float) -> float:
        # Not of the scaled probabilities: rounded to 0 or 1 they are alike for many temperatures. Nor by SciPy's
        # logsumexp, which takes six times as long: behind every epoch, a GPU waits for this.
        temperature = np.exp(log_temperature)
        return (highest / temperature + np.log1p(np.exp(others / temperature).sum(axis=1))).mean()

    found = minimize_scalar(loss, bounds=np.log(_TEMPERATURES), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x)), float(found.fun)
