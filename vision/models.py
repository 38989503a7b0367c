"""The architectures, by name, with untrained weights."""

import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

# The first convolution, which depends on the number of channels, by torchvision's name.
TORCHVISION_MODELS = {
    "resnet18": "conv1",
    "resnet34": "conv1",
    "resnet50": "conv1",
    "vgg16": "features.0",
}
MODEL_NAMES = ("small_resnet", *TORCHVISION_MODELS)


def build_model(name: str, channels: int, num_classes: int) -> nn.Module:
    """Build an untrained model: float pictures (N, channels, H, W) to logits (N, num_classes)."""
    if name == "small_resnet":
        return SmallResNet(channels, num_classes)
    first_name = TORCHVISION_MODELS[name]
    model = models.get_model(name, weights=None, num_classes=num_classes)
    first = model.get_submodule(first_name)
    if channels != first.in_channels:
        parent, _, attribute = first_name.rpartition(".")
        conv = nn.Conv2d(
            channels,
            first.out_channels,
            first.kernel_size,
            first.stride,
            first.padding,
            bias=first.bias is not None,
        )
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        setattr(model.get_submodule(parent), attribute, conv)
    return model


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (He et al. 2015, arXiv:1512.03385, figure 2)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """A residual network for pictures of up to about 32 pixels, 0.3 M parameters.

    The first convolution halves the picture: two thirds of the arithmetic of a full-size one
    would go into the outermost pixels, which on two cores buys more as further epochs.
    """

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, 32, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
        )
        self.blocks = nn.Sequential(
            BasicBlock(32, 32, stride=1),
            BasicBlock(32, 64, stride=2),
            BasicBlock(64, 128, stride=2),
        )
        self.fc = nn.Linear(128, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.blocks(self.stem(x)).mean(dim=(2, 3)))
