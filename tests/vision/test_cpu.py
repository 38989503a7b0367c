import pytest
import torch
from torch import nn

from vision.cpu import mend_bfloat16


def leave_nan_in_freed_memory():
    for power in range(8, 21, 2):
        torch.full((2**power,), float("nan"))


def gradient(conv, x, bfloat16):
    conv.weight.grad = None
    leave_nan_in_freed_memory()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        conv(x).float().square().mean().backward()
    return conv.weight.grad


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("groups", [1, 32])
def test_bfloat16_gradients_are_those_of_float32_however_small_the_picture(size, kernel, groups):
    torch.manual_seed(0)
    for stride in (1, 2):
        conv = nn.Conv2d(32, 64, kernel, stride, kernel // 2, bias=False, groups=groups)
        mend_bfloat16(conv)
        x = torch.randn(16, 32, size, size)
        exact = gradient(conv, x, bfloat16=False)
        rounded = gradient(conv, x, bfloat16=True)
        torch.testing.assert_close(rounded, exact, rtol=0, atol=0.02 * exact.abs().max().item())
        # The parts of a kernel that only meet padding have no gradient at all.
        assert (rounded[exact == 0] == 0).all()
