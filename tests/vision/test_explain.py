import numpy as np
import torch
from torch import nn

from vision.explain import grad_cam


class Corner(nn.Module):
    """Evidence for class 0 is brightness, evidence for class 1 is darkness; in-place ReLU after."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1, bias=False)
        self.conv.weight.data = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
        self.relu = nn.ReLU(inplace=True)
        self.requires_grad_(False)

    def forward(self, x):
        return self.relu(self.conv(x)).mean(dim=(2, 3))


def test_the_evidence_is_found_where_it_is():
    model = Corner()
    picture = torch.zeros(6, 1, 8, 8)
    picture[:, :, :2, 6:] = 1.0
    picture[:, :, 5:, :3] = -1.0
    heat = grad_cam(model, model.conv, picture, torch.tensor([0, 1, 0, 1, 0, 1]))
    assert heat.shape == (6, 8, 8)
    assert heat.dtype == np.float32
    bright, dark = (picture[0, 0] > 0).numpy(), (picture[0, 0] < 0).numpy()
    for i, where in enumerate([bright, dark] * 3):
        assert (heat[i][where] == 1).all()
        assert (heat[i][~where] == 0).all()


def test_no_evidence_is_no_heat():
    model = Corner()
    heat = grad_cam(model, model.conv, torch.zeros(1, 1, 8, 8), torch.tensor([0]))
    assert (heat == 0).all()
