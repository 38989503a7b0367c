import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vision.errors import ExpectedError
from vision.features import backbone_features, cached_features, folded, view_pictures
from vision.models import build_model
from vision.preprocessing import Preprocessing


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build_model("small_resnet", 3, 4)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8, generator=generator)


PREPROCESSING = Preprocessing(16, 3, (0.5,) * 3, (0.25,) * 3)


class Cache:
    """cached_features with what it says and how often it had to read the pictures."""

    def __init__(self, network, images):
        self.network, self.images = network, images
        self.preprocessing, self.data_hash = PREPROCESSING, "abc"
        self.said, self.loads = [], 0

    def load_images(self, entries):
        self.loads += 1
        return self.images[list(entries)]

    def __call__(self, views, *folders, dtype=torch.float32, must_keep=False):
        self.said.clear()
        self.loads = 0
        features, self.precisions = cached_features(
            *(self.network, self.preprocessing, range(len(self.images)), self.data_hash),
            *(self.load_images, views, folders, self.said.append, dtype, must_keep),
        )
        return features


@pytest.fixture
def cache(network, images):
    return Cache(network, images)


def test_the_views_are_the_picture_its_mirror_image_and_crops(images):
    assert torch.equal(view_pictures(images, 0), images)
    assert torch.equal(view_pictures(images, 1), images.flip(3))
    for view in (2, 3, 7):
        pictures = view_pictures(images, view)
        assert (pictures.shape, pictures.dtype) == (images.shape, torch.uint8)
        assert torch.equal(pictures, view_pictures(images, view))
        # However the pictures are divided into batches, each gets its own crop.
        parts = [view_pictures(images[:4], view), view_pictures(images[4:], view, first=4)]
        assert torch.equal(torch.cat(parts), pictures)
    same = images[:1].expand(9, -1, -1, -1)
    assert len({picture.numpy().tobytes() for picture in view_pictures(same, 2)}) == 9


def test_a_crop_shows_a_part_of_the_picture_upright_and_not_its_border():
    # Brightness tells the place: x in the first channel, y in the second.
    ramp = torch.arange(64).mul(4).to(torch.uint8)
    x, y = ramp.view(1, 64).expand(64, 64), ramp.view(64, 1).expand(64, 64)
    images = torch.stack([x, y, y]).expand(50, -1, -1, -1)
    crops = view_pictures(images, 2).double()
    for steps in (crops[:, 0].diff(dim=2), crops[:, 1].diff(dim=1)):
        assert (steps >= 0).all()
    mirrored = view_pictures(images, 3).double()
    assert (mirrored[:, 0].diff(dim=2) <= 0).all()
    widths = crops[:, 0].amax((1, 2)) - crops[:, 0].amin((1, 2))
    heights = crops[:, 1].amax((1, 2)) - crops[:, 1].amin((1, 2))
    areas = widths * heights / (63 * 4) ** 2
    assert areas.min() > 0.35
    assert areas.max() <= 1
    assert areas.std() > 0.1


def test_a_network_goes_on_learning_after_its_features_were_taken(network, images):
    backbone_features(network, PREPROCESSING, images)
    network.train()(PREPROCESSING.normalise(images)).sum().backward()
    with torch.no_grad():
        network.backbone[0][0].weight += network.backbone[0][0].weight.grad


@pytest.mark.parametrize(
    "name",
    ["small_resnet", "resnet18", "mobilenet_v3_large", "efficientnet_b0", "efficientnet_lite0"],
)
def test_without_its_batch_norms_a_backbone_says_the_same(name):
    torch.manual_seed(0)
    backbone = build_model(name, 3, 4).backbone.eval()
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            nn.init.uniform_(values, 0.5, 1.5)
    X = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected, found = backbone(X), folded(backbone)(X)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded(backbone).modules())
    assert len([m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]) == len(norms)


def test_the_features_are_the_backbones_own_whatever_the_batches(network, images, monkeypatch):
    X = PREPROCESSING.normalise(images)
    with torch.inference_mode():
        expected = network.eval().backbone(X)
        mirrored = network.backbone(X.flip(3))
    network.train()
    features = backbone_features(network, PREPROCESSING, images)
    assert (features.dtype, features.is_inference()) == (torch.float32, False)
    assert torch.allclose(features, expected, atol=1e-5)
    assert torch.allclose(backbone_features(network, PREPROCESSING, images, 1), mirrored, atol=1e-5)
    monkeypatch.setattr("vision.features.forward_batch_size", lambda images: 2)
    assert torch.allclose(backbone_features(network, PREPROCESSING, images), expected, atol=1e-5)
    # A head can be trained on them.
    network.head(features).sum().backward()
    assert network.head[-1].weight.grad is not None


def test_the_progress_says_the_speed(network, images, monkeypatch):
    monkeypatch.setattr("vision.features.SECONDS_BETWEEN_PROGRESS", 0)
    monkeypatch.setattr("vision.features.forward_batch_size", lambda images: 4)
    said = []
    backbone_features(network, PREPROCESSING, images, 0, said.append)
    assert [line.split(",")[0] for line in said] == [
        f"  view 0: {done} of 9 pictures" for done in (4, 8, 9)
    ]
    assert said[-1].endswith(" pictures/s")


def test_what_is_kept_is_read_from_any_folder_without_a_picture(cache, tmp_path):
    first = cache(2, tmp_path / "a", tmp_path / "b")
    assert first.shape == (2, 9, 256)
    assert cache.loads == 1
    assert len(list((tmp_path / "a").iterdir())) == 2
    assert not (tmp_path / "b").exists()
    # Read-only channels come before or after the place that can be written.
    again = cache(2, tmp_path / "c", tmp_path / "a")
    assert torch.equal(again, first)
    assert cache.loads == 0
    # A view more costs that view.
    more = cache(3, tmp_path / "a")
    assert torch.equal(more[:2], first)
    assert cache.loads == 1
    assert "in 1 view(s)" in cache.said[-1]


@pytest.mark.parametrize("changed", ["data", "mean", "size", "weights", "statistics", "head"])
def test_the_key_covers_all_that_the_features_depend_on(cache, tmp_path, changed):
    cache(1, tmp_path)
    if changed == "data":
        cache.data_hash = "abd"
    elif changed == "mean":
        cache.preprocessing = Preprocessing(16, 3, (0.5, 0.5, 0.4), (0.25,) * 3)
    elif changed == "size":
        cache.preprocessing = Preprocessing(17, 3, (0.5,) * 3, (0.25,) * 3)
    elif changed == "weights":
        cache.network.backbone[-1][0].conv2.weight.data[0, 0, 0, 0] += 1e-3
    elif changed == "statistics":
        cache.network.backbone[0][1].running_var[3] += 1e-3
    else:
        cache.network.head[-1].weight.data += 1
    cache(1, tmp_path)
    assert cache.loads == (changed != "head")


def test_in_bfloat16_features_are_near_and_kept_apart(cache, tmp_path):
    exact = cache(1, tmp_path / "exact")
    near = cache(1, tmp_path / "near", dtype=torch.bfloat16)
    assert near.dtype == torch.float32
    assert 0 < (near - exact).norm() < 0.05 * exact.norm()
    cache(1, tmp_path / "near")
    assert cache.loads == 1, "a training in float32 read the features of one in bfloat16"


def test_float32_features_serve_a_training_in_any_precision(cache, tmp_path):
    exact = cache(1, tmp_path / "exact")
    cache(1, tmp_path / "near", dtype=torch.bfloat16)
    assert cache.precisions == ["bfloat16"]
    found = cache(1, tmp_path / "near", tmp_path / "exact", dtype=torch.bfloat16)
    assert cache.loads == 0
    assert torch.equal(found, exact)
    # Both give other weights than the other, so the model says which it were.
    assert cache.precisions == ["float32"]
    cache(2, tmp_path / "near", tmp_path / "exact", dtype=torch.bfloat16)
    assert cache.precisions == ["bfloat16", "float32"]


@pytest.mark.parametrize("damage", ["torn", "flipped", "foreign", "other model", "empty"])
def test_a_damaged_file_is_told_and_computed_again(cache, tmp_path, damage):
    first = cache(1, tmp_path)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-5] ^= 1
    elif damage == "other model":
        save_file({"features": torch.zeros(9, 64)}, path)
        content = path.read_bytes()
    else:
        content = {"torn": content[:-100], "foreign": b"\x80\x04pickled", "empty": b""}[damage]
    path.write_bytes(content)
    assert torch.equal(cache(1, tmp_path), first)
    assert cache.loads == 1
    assert str(path) in cache.said[0]
    assert "computing the features again" in cache.said[0]
    assert torch.equal(load_file(path)["features"], first[0])
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_passed_over_and_told_if_it_is_the_last(cache, tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache(1, tmp_path / "file" / "a", tmp_path / "b")
    assert len(list((tmp_path / "b").iterdir())) == 1
    assert len(cache.said) == 1
    features = cache(2, tmp_path / "file" / "a")
    assert features.shape == (2, 9, 256)
    assert any("cannot be kept" in line for line in cache.said)


def test_where_the_features_are_all_that_is_wanted_it_is_an_error(cache, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ExpectedError, match="the features cannot be written"):
        cache(1, tmp_path / "file" / "a", must_keep=True)


def test_what_killed_runs_left_is_swept_and_what_others_write_is_not(cache, tmp_path):
    cache(1, tmp_path)
    (kept,) = tmp_path.iterdir()
    old, new = (tmp_path / f".{kept.stem}-{pid}" for pid in (1, 2))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    kept.unlink()
    cache(1, tmp_path)
    assert set(tmp_path.iterdir()) == {kept, new}


def test_a_run_that_ends_while_it_writes_leaves_no_half_file(cache, tmp_path, monkeypatch):
    def save_half(tensors, path, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("vision.features.save_file", save_half)
    with pytest.raises(KeyboardInterrupt):
        cache(1, tmp_path)
    assert not list(tmp_path.iterdir())
