"""The layers through which metadata meet an image: `model.metadata`."""

from typing import Any

import torch
from torch import Tensor, nn

from stages.dataset.encoding import MetadataEncoding

HIDDEN = 32  # numbers between metadata and what they do to the features
METADATA = "metadata"  # the name of these layers in a backbone


class MetadataLayers(nn.Module):
    """What metadata do to an image; nothing, until they are trained.

    Late: a linear model of the metadata adds to the logits. Fused: each feature of the image, before the last layer, is
    scaled and shifted by what two layers make of the metadata (FiLM: Perez et al., AAAI 2018), so that a sign can mean
    one thing on a child's face and another on an old man's back. Metadata appended to the features could not do that:
    through a last layer that is linear they, too, would only add to the logits.

    Args:
        encoding: of the metadata.
        outputs: late, the number of classes; fused, twice that of features.
    """

    def __init__(self, encoding: MetadataEncoding, outputs: int) -> None:
        super().__init__()
        self.unknown: Tensor
        self.register_buffer("unknown", torch.from_numpy(encoding.unknown), persistent=False)
        self.is_late, inputs = encoding.fusion == "late", len(encoding.unknown)
        self.hidden: Any = nn.Identity() if self.is_late else nn.Sequential(nn.Linear(inputs, HIDDEN), nn.ReLU())
        self.output = nn.Linear(inputs if self.is_late else HIDDEN, outputs, bias=False)
        nn.init.zeros_(self.output.weight)

    def adopt(self, before: MetadataEncoding, now: MetadataEncoding) -> None:
        """Take rows of another encoding than before, and say the same; a value that was not known stays unknown."""
        first: Any = self.output if self.is_late else self.hidden[0]
        first.weight = nn.Parameter(first.weight[:, before.places(now)].detach())
        first.in_features = first.weight.shape[1]
        self.unknown = torch.from_numpy(now.unknown).to(first.weight.device)

    def forward(self, backbone: Any, images: Tensor, metadata: Tensor | None) -> Tensor:
        """Logits of normalised images, shape (n, num_classes).

        Args:
            backbone: timm's, or `BaselineCNN`.
            images: shape (n, 3, size, size).
            metadata: shape (n, numbers), rows of the encoding; None: nothing is known.
        """
        rows = self.unknown.expand(len(images), -1) if metadata is None else metadata
        told = self.output(self.hidden(rows))
        if self.is_late:
            return backbone(images) + told
        scale, shift = told.chunk(2, dim=1)
        features = backbone.forward_head(backbone.forward_features(images), pre_logits=True)
        return backbone.get_classifier()(features * (1 + scale) + shift)
