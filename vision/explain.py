"""Where a network looked."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

# Pictures a backward pass: VGG-16 at 224 pixels keeps 0.1 GB of activations for each.
CAM_BATCH = 4


def grad_cam(
    model: nn.Module, layer: nn.Module, pictures: torch.Tensor, targets: torch.Tensor
) -> np.ndarray:
    """Return float32 maps (N, H, W) from 0 to 1 of where evidence for a class was found.

    Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) at a convolutional layer, for normalised
    pictures (N, C, H, W) and classes (N); each map is scaled by its largest value.
    """
    from captum.attr import LayerGradCam

    attribution = LayerGradCam(model.eval(), layer)
    maps = []
    for X, y in zip(pictures.split(CAM_BATCH), targets.split(CAM_BATCH), strict=True):
        # A frozen network has gradients only where its input asks for them.
        found = attribution.attribute(X.clone().requires_grad_(), y, relu_attributions=True)
        maps.append(F.interpolate(found.detach(), pictures.shape[-2:], mode="bilinear"))
    heat = torch.cat(maps)[:, 0]
    largest = heat.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(heat.dtype).tiny)
    return (heat / largest).numpy()
