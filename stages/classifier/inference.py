"""Class probabilities of prepared images."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from stages.classifier.calibration import Calibration, calibrate
from stages.classifier.networks import Ensemble, NormalizedNetwork, last_layers, pad_batch
from stages.dataset.augmentation import as_float
from stages.errors import InputError


@torch.inference_mode()
def predict_probabilities(
    network: NormalizedNetwork | Ensemble,
    images: Iterable[Tensor],
    device: torch.device,
    test_time_augmentation: bool,
    metadata: np.ndarray | None = None,
) -> np.ndarray:
    """Probabilities as the network gives them, not calibrated.

    In float32 whatever the training's precision was: CPU and GPU agree more closely.

    Args:
        network: what `load_model` gives.
        images: uint8 batches of shape (n, size, size, 3).
        device: where to compute.
        test_time_augmentation: average over the 8 flips and quarter turns of each image.
        metadata: what `MetadataEncoding` makes of those of all images, for a network that takes them, float32, shape
            (images, numbers); None: nothing is known.

    Returns:
        float64, shape (images, classes), rows that sum to 1.

    Raises:
        InputError: the network's output for an image is not finite.
    """
    network = network.to(device).eval()
    probabilities, full, done = [], 0, 0
    for batch in images:
        size, full = len(batch), max(full, len(batch))
        known = None if metadata is None else torch.from_numpy(metadata[done : done + size])
        if device.type == "cuda":
            batch, known = pad_batch(batch, full), None if known is None else pad_batch(known, full)
        done, known = done + size, None if known is None else known.to(device)
        upright = as_float(batch.to(device))
        views = dihedral_views(upright) if test_time_augmentation else [upright]
        # Added up one after another, as a mean over stacked views would not be: the last bits are published.
        total = torch.zeros((), dtype=torch.float64, device=device)
        for view in views:
            logits = network(view.contiguous(memory_format=torch.channels_last), known)
            total = total + logits.double().softmax(dim=1)
        probabilities.append(total[:size] / len(views))
    result = torch.cat(probabilities).cpu().numpy()
    if not np.isfinite(result).all():
        number = int(np.flatnonzero(~np.isfinite(result).all(axis=1))[0]) + 1
        raise InputError(
            f"the model's output for image {number} of {len(result)} is not a number, so it has no probabilities: "
            "its training diverged; train it again, with a smaller training.learning_rate"
        )
    return result


@torch.inference_mode()
def extract_features(
    network: NormalizedNetwork | Ensemble, images: Iterable[Tensor], device: torch.device
) -> np.ndarray:
    """What the last layer of the network sees of each image alone, of an ensemble those of all networks.

    Arguments as for `predict_probabilities`.

    Returns:
        float32, shape (images, features).
    """
    network = network.to(device).eval()
    seen: list[Tensor] = []
    hooks = [
        member.backbone.get_submodule(last_layers(member.backbone)[0]).register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0].flatten(1).float())
        )
        for member in network.members
    ]
    batches = []
    for batch in images:
        seen.clear()
        network(as_float(batch.to(device)).contiguous(memory_format=torch.channels_last))
        batches.append(torch.cat(seen, dim=1).cpu())
    for hook in hooks:
        hook.remove()
    return torch.cat(batches).numpy()


def predict_calibrated(
    network: NormalizedNetwork | Ensemble,
    images: Iterable[Tensor],
    device: torch.device,
    calibration: Calibration,
    metadata: np.ndarray | None = None,
) -> np.ndarray:
    """Probabilities as they are published: averaged over views if the calibration says so, and calibrated.

    Arguments and result as for `predict_probabilities`.
    """
    augmented = calibration.test_time_augmentation
    return calibrate(predict_probabilities(network, images, device, augmented, metadata), calibration)


def dihedral_views(images: Tensor) -> list[Tensor]:
    """The 8 images that flips and quarter turns make of each: a skin lesion has no upright.

    Args:
        images: shape (n, channels, size, size).

    Returns:
        Eight tensors of that shape, the first the images themselves.
    """
    turned = [torch.rot90(images, turns, dims=(2, 3)) for turns in range(4)]
    return turned + [view.flip(3) for view in turned]
