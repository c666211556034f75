"""What it takes to calibrate a model for another place: a temperature, a bias of malignancy, or one of each diagnosis.

    python -m benchmarks.recalibration

Images of seven diagnoses are simulated, and a network that is calibrated at home. Elsewhere the mix of diagnoses is
another one, and images are less clear. Three calibrations are fitted to some images there, and judged on 40,000 others.

Writes benchmarks/results/recalibration.json.
"""

from importlib.metadata import version
from pathlib import Path

import numpy as np
from scipy.special import softmax

from benchmarks.paired_test import HAM10000_MIX
from benchmarks.plain import told_apart
from stages.classifier.calibration import apply_temperature
from stages.evaluation.calibration import negative_log_likelihoods, weighted_gaps
from stages.evaluation.predictions import malignant_probability
from stages.evaluation.recalibration import fit_temperature_and_bias
from stages.evaluation.uncertainty import combine
from stages.evaluation.weighted import unit_weights
from stages.files import write_json

RESULT = Path("benchmarks/results/recalibration.json")
CLASSES = told_apart(7)
SEPARATION, SHARPNESS, JUDGED, REPEATED = 2.6, 1.5, 40_000, 12
# The shares of the diagnoses, and how much noisier the images are.
PLACES = {
    "at home": (HAM10000_MIX, 1.0),
    "more melanomas": ((0.02, 0.04, 0.08, 0.02, 0.25, 0.55, 0.04), 1.0),
    "more melanomas, less clear images": ((0.02, 0.04, 0.08, 0.02, 0.25, 0.55, 0.04), 1.5),
    "a clinic of skin cancer": ((0.15, 0.3, 0.15, 0.01, 0.15, 0.2, 0.04), 1.3),
    "four of seven diagnoses": ((0, 0.1, 0.2, 0, 0.3, 0.4, 0), 1.2),
}
BIASES = {
    "temperature": np.zeros((7, 0)),
    "and malignancy": CLASSES.is_malignant[:, None].astype(float),
    "and each diagnosis": np.eye(7),
}


def draw(
    random: np.random.Generator, images: int, mix: tuple[float, ...], noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and the overconfident probabilities of a network that is right but for a temperature at home."""
    labels = random.choice(7, images, p=np.array(mix) / sum(mix))
    seen = SEPARATION * np.eye(7)[labels] + noise * random.normal(size=(images, 7))
    return labels, softmax(SHARPNESS * (SEPARATION * seen + np.log(HAM10000_MIX)), axis=1)


def judge(probabilities: np.ndarray, labels: np.ndarray) -> list[float]:
    """Log loss, ECE, and how far the mean probability of malignancy is from the share of malignant images."""
    gaps = weighted_gaps(probabilities, labels, unit_weights(labels))
    excess = malignant_probability(probabilities, CLASSES).mean() - CLASSES.is_malignant[labels].mean()
    return [negative_log_likelihoods(probabilities, labels).mean(), combine("ece", gaps)[0], abs(excess)]


def main() -> None:
    random, results = np.random.default_rng(0), {}
    for place, of in PLACES.items():
        labels, probabilities = draw(random, JUDGED, *of)
        results[place] = {"temperature of home": judge(apply_temperature(probabilities, SHARPNESS), labels)}
        for images in (100, 300, 1000):
            numbers = {name: [] for name in BIASES}
            for _ in range(REPEATED):
                fitted_on, raw = draw(random, images, *of)
                for name, free in BIASES.items():
                    fitted = fit_temperature_and_bias(raw, fitted_on[:, None] == np.arange(7), free)
                    numbers[name].append(judge(apply_temperature(probabilities, *fitted), labels))
            results[place] |= {f"{name}, {images} images": np.mean(of, axis=0).tolist() for name, of in numbers.items()}
    write_json(RESULT, {"numpy": version("numpy"), "log loss, ECE, error of the mean": results})
    for place, of in results.items():
        print(
            place, *(f"  {name}: " + " ".join(f"{it:.3f}" for it in numbers) for name, numbers in of.items()), sep="\n"
        )


if __name__ == "__main__":
    main()
