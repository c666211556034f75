"""The temperature that fits a network's logits, and the loss at that temperature."""

import numpy as np
from scipy.optimize import minimize_scalar

_SEARCHED = (0.01, 100.0)  # what the prior gives lies far inside, but for thousands of images that are all alike


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature of the lowest penalised negative log-likelihood.

    Temperature scaling (Guo et al., ICML 2017) is a logistic regression with one coefficient, the inverse temperature
    b. Its likelihood has no maximum where all predictions are correct: b would grow without bound, and so would the
    confidence in all other images. As is usual there (Gelman et al., Annals of Applied Statistics 2:1360, 2008), a weak
    prior gives it one: b has a gamma distribution with shape 2 and rate 1, whose mode 1 leaves the probabilities as
    they are. Its −log, b − log b, is added once however many images there are: among n images its weight is 1/n, and
    the sum, like both of its parts, is convex in b.

    Args:
        probabilities: of validation images, shape (n, classes).
        labels: shape (n,).
    """
    return _scale(np.log(np.maximum(probabilities, np.finfo(np.float64).tiny)), labels)[0]


def calibrated_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean cross-entropy at the temperature that `fit_temperature` finds, in nats; above 0.

    The loss after temperature scaling: how well the classes are separated, whatever the calibration.

    Args:
        logits: shape (n, classes).
        labels: shape (n,).

    Returns:
        nan where a logit is not finite.
    """
    return _scale(logits.astype(np.float64), labels)[1] if np.isfinite(logits).all() else np.nan


def _scale(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """The temperature, and the mean cross-entropy at it."""
    # log Σ exp z − z of the own class = (the highest z − it) + log(1 + Σ exp(the others − the highest)), also scaled.
    ordered = np.sort(logits, axis=1)
    highest = ordered[:, -1] - logits[np.arange(len(labels)), labels]
    others = ordered[:, :-1] - ordered[:, -1:]

    def loss(inverse: float) -> float:
        # Not of the scaled probabilities: rounded to 0 or 1 they are alike for many temperatures. Nor by SciPy's
        # logsumexp, which takes six times as long: after each epoch, a GPU waits for this.
        return (inverse * highest + np.log1p(np.exp(inverse * others).sum(axis=1))).mean()

    def penalised(log_temperature: float) -> float:
        return loss(np.exp(-log_temperature)) + (np.exp(-log_temperature) + log_temperature) / len(labels)

    found = minimize_scalar(penalised, bounds=np.log(_SEARCHED), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x)), float(loss(np.exp(-found.x)))
