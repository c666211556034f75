"""Where in an image a network sees evidence of malignancy."""

from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn

from stages.classifier.networks import Ensemble, NormalizedNetwork, pad_batch
from stages.dataset.augmentation import as_float
from stages.dataset.taxonomy import Classes

MIN_CELLS = 7  # of a side of the feature maps: fewer would be blocks that say nothing of where in the image


@torch.enable_grad()
def gradcam_heatmaps(
    network: NormalizedNetwork | Ensemble,
    images: Tensor,
    classes: Classes,
    device: torch.device,
    batch_size: int = 1,
    metadata: np.ndarray | None = None,
) -> np.ndarray | None:
    """Grad-CAM (Selvaraju et al., ICCV 2017) of the log-odds of malignancy at the network's coarsest useful maps.

    The log-odds are the logsumexp of the malignant logits minus that of the benign ones: the same question for two
    classes and for diagnoses, and unlike a probability it does not saturate, so that a confident prediction has a
    gradient too.

    Of an ensemble, the mean of its networks' heatmaps.

    A heatmap says where evidence lies within one image, not how much of it there is: each has its own scale. It is as
    coarse as the feature maps, the last that have at least `MIN_CELLS` cells a side: 7 × 7 at the end of
    EfficientNet-Lite0 at 224 pixels, 8 × 8 in the middle of it at 64, where those at the end are 2 × 2.

    Args:
        network: what `load_model` gives; it is not changed, its mode included.
        images: uint8, shape (n, size, size, 3), n at least 1; all computed at once.
        classes: of the outputs.
        device: where to compute, in float32.
        batch_size: of the predictions that this process has made with such a network, for `pad_batch` on a GPU.
        metadata: as of `predict_probabilities`; a heatmap is of the image, given these.

    Returns:
        uint8, shape (n, cells, cells): the largest value of each heatmap is 255, or 0 where nothing in the image speaks
        for malignancy. None where the network ends in no feature maps, as transformers do, or has none so fine.
    """
    # A copy, so that no hook, mode or device is left behind. Frozen, so that gradients start at the feature maps.
    network = deepcopy(network).to(device).eval().requires_grad_(False)
    count, on_gpu = len(images), device.type == "cuda"
    given = [images] if metadata is None else [images, torch.from_numpy(metadata)]
    pixels, *known = ((pad_batch(rows, batch_size) if on_gpu else rows).to(device) for rows in given)
    inputs = as_float(pixels)
    malignant = torch.from_numpy(classes.is_malignant).to(device)

    def heatmaps_of(member: nn.Module) -> Tensor | None:
        layer = _explained_layer(member, inputs if on_gpu else inputs[:1])
        if layer is None:
            return None
        maps, logits = _run_to(layer, member, inputs, *known)
        log_odds = logits[:, malignant].logsumexp(dim=1) - logits[:, ~malignant].logsumexp(dim=1)
        [gradients] = torch.autograd.grad(log_odds.sum(), maps)
        evidence = (gradients.mean(dim=(2, 3), keepdim=True) * maps.detach()).sum(dim=1).relu()
        return _scaled(evidence)

    each = [heatmaps for member in network.members if (heatmaps := heatmaps_of(member)) is not None]
    if not each:
        return None
    heatmaps = (each[0] if len(each) == 1 else _scaled(torch.stack(each).mean(dim=0)))[:count]
    return (heatmaps * 255).round().byte().cpu().numpy()


def _scaled(heatmaps: Tensor) -> Tensor:
    """Heatmaps (n, height, width) whose largest value is 1, or 0 where all are."""
    return heatmaps / heatmaps.amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def _run_to(layer: nn.Module, network: nn.Module, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The last output of a layer, from which gradients start, and the network's logits."""
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
        outputs.append(output.requires_grad_())
        return output.clone()  # the next layer may compute in place

    with layer.register_forward_hook(keep):
        logits = network(*inputs)
    return outputs[-1], logits


@torch.no_grad()
def _explained_layer(network: nn.Module, images: Tensor) -> nn.Module | None:
    """The module whose output is the coarsest maps (n, channels, side, side) of at least `MIN_CELLS` cells a side.

    Of several with such maps the outermost, which no shortcut of a residual block goes around, and of those the last.

    None if the last output that still has places in it are no maps: in transformers they are tokens, or have their
    channels last, and earlier outputs, as those of a patch embedding, are not what the network decides by.
    """
    shapes: dict[nn.Module, torch.Size] = {}

    def note(module: nn.Module, _: tuple, output: object) -> None:
        shapes.pop(module, None)  # of a module that is used twice the last output counts, at its place in the order
        if isinstance(output, Tensor):
            shapes[module] = output.shape[1:]

    depths = {module: name.count(".") for name, module in network.named_modules()}
    hooks = [module.register_forward_hook(note) for module in depths]
    network(images)
    for hook in hooks:
        hook.remove()
    # Else it is one vector for the image.
    placed = {module: shape for module, shape in shapes.items() if sum(side > 1 for side in shape) > 1}
    if not placed or not _is_square(list(placed.values())[-1]):
        return None
    maps = [(-shape[1], -depths[module], module) for module, shape in placed.items() if _is_square(shape)]
    fine = [each for each in maps if -each[0] >= MIN_CELLS]
    # `max` finds the first of the best.
    return max(reversed(fine), key=lambda each: each[:2])[-1] if fine else None


def _is_square(shape: torch.Size) -> bool:
    return len(shape) == 3 and shape[1] == shape[2]
