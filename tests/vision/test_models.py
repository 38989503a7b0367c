import pytest
import torch

from vision.models import MODEL_NAMES, build_model


# The large ones in grey only: it is the case that adapts them, and building them takes seconds.
@pytest.mark.parametrize(
    ("name", "channels"),
    [*((name, 1) for name in MODEL_NAMES), ("small_resnet", 3), ("resnet18", 3)],
)
def test_every_model_takes_its_channels_and_gives_a_logit_a_class(name, channels):
    model = build_model(name, channels, 5).eval()
    with torch.inference_mode():
        assert model(torch.zeros(2, channels, 32, 32)).shape == (2, 5)


def test_the_small_model_takes_pictures_of_any_size():
    model = build_model("small_resnet", 1, 10).eval()
    assert sum(p.numel() for p in model.parameters()) < 400_000
    with torch.inference_mode():
        for size in (8, 28, 33):
            assert model(torch.zeros(1, 1, size, size)).shape == (1, 10)
