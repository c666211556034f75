"""Class probabilities of prepared images."""

import numpy as np
import torch

from stages.classifier.networks import NormalizedNetwork
from stages.dataset.augmentation import as_float
from stages.dataset.loaders import Batches


@torch.inference_mode()
def predict_probabilities(network: NormalizedNetwork, batches: Batches) -> np.ndarray:
    """Probabilities of every image in the order of `batches`: float64, shape (images, classes), rows that sum to 1.

    In float32 whatever the training's precision was: there are few images, and CPU and GPU agree more closely.
    """
    network = network.to(batches.device).eval()
    logits = [network(as_float(batch.images)) for batch in batches]
    return torch.cat(logits).double().softmax(dim=1).cpu().numpy()
