"""What one step is taken on."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Images of one step.

    Attributes:
        images: uint8, shape (n, size, size, 3), RGB; or as networks take them, float, shape (n, 3, size, size), in
            [0, 1].
        labels: int64, shape (n,), numbers of classes; or probabilities of the classes, float32, shape (n, classes).
        draws: float32, shape (n, k), what augmentation is drawn from; None where nothing is augmented, or all is.
    """

    images: Tensor
    labels: Tensor
    draws: Tensor | None
