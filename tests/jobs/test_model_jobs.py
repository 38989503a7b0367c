"""The architectures as jobs: from scratch, partly frozen, with weights that somebody brings."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from sagemaker.core.training.configs import OutputDataConfig
from torch.nn import functional as F
from torchvision import models

from studio.jobs import JobFailed
from vision.classifier import load_classifier
from vision.data import DRY_RUN_PICTURES, list_split, load_split, spread
from vision.models import build_model

# The smallest pictures that leave something after five halvings.
SIZE = 32
FROM_SCRATCH = {"pretrained": "false", "image-size": SIZE, "dry-run": "true"}


@pytest.mark.parametrize("name", ["vgg16", "convnext_tiny"])
def test_the_model_of_a_job_says_what_the_job_measured(jobs, stripes, name):
    # As a folder: to pack the half gigabyte of vgg16 takes longer than to train it.
    as_folder = OutputDataConfig(
        s3_output_path=jobs.cloud.s3_uri("output"), compression_type="NONE"
    )
    hyperparameters = {"model": name, "optimizer": "sgd", "lr": 0.01, **FROM_SCRATCH}
    job = jobs.train(name.replace("_", "-"), hyperparameters, output_data_config=as_folder)
    folder = jobs.model(job)
    classifier = load_classifier(folder)
    shutil.rmtree(folder)
    assert classifier.model_name == name
    entries = spread(list_split(stripes / "valid"), DRY_RUN_PICTURES)
    valid = load_split(entries, classifier.class_names, SIZE, 1)
    loss = F.cross_entropy(classifier.logits(valid.images), valid.labels).item()
    assert classifier.facts["metrics"]["valid_loss"] == pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "efficientnet_b0"])
def test_a_model_from_scratch_is_trained_and_evaluated(run_script, stripes, tmp_path, name):
    words = [word for pair in FROM_SCRATCH.items() for word in (f"--{pair[0]}", pair[1])]
    trained = run_script(
        *("train_model.py", "--model", name, *words),
        *("--model-dir", tmp_path / "model", "--output-data-dir", tmp_path / "output"),
        SM_CHANNEL_TRAIN=stripes / "train",
        SM_CHANNEL_VALID=stripes / "valid",
    )
    assert trained.returncode == 0, trained.stderr
    evaluated = run_script(
        *("evaluate.py", "--model-dir", tmp_path / "model", "--test", stripes / "test"),
        *("--output", tmp_path / "evaluation"),
    )
    assert evaluated.returncode == 0, evaluated.stderr
    described = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert described["model"]["architecture"] == name
    assert described["n"] == 24


def test_a_job_trains_the_last_stages_as_it_is_told(jobs):
    told = {
        **{"model": "efficientnet_lite0", "trainable": "last-2-stages", "head-hidden": 64},
        **{"optimizer": "sgd", "schedule": "one-cycle", "clip-norm": 1, "balance": "sampler"},
        **{"augment": "erase", "image-size": SIZE, "epochs": 1, "pretrained": "true"},
    }
    classifier = load_classifier(jobs.model(jobs.train("stages", told)))
    noted = classifier.facts["hyperparameters"]
    expected = {key.replace("-", "_"): value for key, value in told.items()}
    expected |= {"head_hidden": [64], "pretrained": True}
    assert {key: noted[key] for key in expected} == expected
    assert [layer.out_features for layer in classifier.model.head[1::3]] == [64, 3]

    before = build_model("efficientnet_lite0", 3, 3, pretrained=True).stages
    for number, (old, new) in enumerate(zip(before, classifier.model.stages, strict=True)):
        weights = new.state_dict()
        same = {key: torch.equal(value, weights[key]) for key, value in old.state_dict().items()}
        frozen = number < len(before) - 2
        assert set(same.values()) == {frozen}, (number, same)


def test_weights_that_a_job_cannot_download_are_put_where_it_says(jobs, tmp_path):
    """Without network and cache it ends with the ways out; one of them is gone."""
    told = {"model": "resnet18", "pretrained": "true", "trainable": "head", "dry-run": "true"}
    told["image-size"] = SIZE
    # Nothing listens at that port, so that a machine with network has none here, either.
    nowhere = {"https_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    environment = {"TORCH_HOME": str(tmp_path), **nowhere}
    with pytest.raises(JobFailed) as caught:
        jobs.train("absent", told, environment=environment)
    reason = str(caught.value)
    assert "the weights of resnet18 cannot be downloaded" in reason
    assert "use --model efficientnet_lite0" in reason
    assert "--pretrained false" in reason
    assert "Traceback" not in reason
    file = Path(re.search(r"put that file at (\S+),", reason)[1])
    assert file.is_relative_to(tmp_path)

    torch.manual_seed(1)
    weights = models.resnet18(weights=None).state_dict()
    torch.save(weights, file)
    classifier = load_classifier(jobs.model(jobs.train("present", told, environment=environment)))
    assert torch.equal(classifier.model.backbone[0][0].weight, weights["conv1.weight"])
