import argparse
import math
import random

import pytest
import torch
from samples import fashion_mnist
from torch import nn
from torch.nn import functional as F

from vision import recipes, training
from vision.augment import build_augment, parse_augment
from vision.classifier import Classifier
from vision.data import Split, channel_statistics
from vision.distributed import Group
from vision.errors import ExpectedError
from vision.feeds import PictureFeed
from vision.models import build_model
from vision.preprocessing import Preprocessing
from vision.setup import ordinal_targets
from vision.training import StopRequest, Trainer, logits_of

CPU = torch.device("cpu")


def arguments(**changes):
    others = {"recipe": "small", "precision": "float32", "workers": 0, "seed": 0}
    others |= {"checkpoint_dir": None, "checkpoint_seconds": 0.0, "max_seconds": None}
    plain = {
        "optimizer": "sgd",
        "lr": 0.05,
        "weight_decay": 5e-4,
        "epochs": 1,
        "batch_size": 64,
        "label_smoothing": 0.0,
        "patience": 0,
    }
    return argparse.Namespace(**{**recipes.SMALL, **others, **plain, **changes})


def as_split(images, labels):
    images, labels = torch.as_tensor(images), torch.as_tensor(labels)
    names = [str(i) for i in range(len(labels))]
    return Split(images, labels, names, [str(c) for c in range(int(labels.max()) + 1)], "hash")


def random_split(count=20, classes=3):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8)
    return as_split(images, torch.arange(count) % classes)


def linear():
    """A model without batch norm: its loss on a picture does not depend on the batch."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def trainer_of(train, args, module=None, valid=None, stop=None, targets=None):
    size, channels = train.images.shape[-1], train.images.shape[1]
    preprocessing = Preprocessing(size, channels, *channel_statistics(train.images))
    names = parse_augment(args.augment) if args.augment != "shift" else ()
    augment = build_augment(names, size, preprocessing.mean)
    return Trainer(
        args,
        module or linear(),
        PictureFeed(train, preprocessing, augment, args.mixup),
        PictureFeed(valid or train, preprocessing),
        Group(),
        StopRequest() if stop is None else stop,
        targets,
    )


def fit(trainer, rows=None):
    rows = [] if rows is None else rows
    return trainer.fit(rows.append, "hash")


@pytest.mark.parametrize("batch_size", [3, 7, 20, 100])
def test_losses_and_accuracies_are_means_over_samples(batch_size):
    split = random_split(20)
    # A learning rate of zero leaves the model as it is, whatever the batches.
    trainer = trainer_of(split, arguments(lr=0.0, batch_size=batch_size))
    logits = logits_of(trainer.module, trainer.valid, CPU, Group())
    metrics = fit(trainer).metrics
    loss = F.cross_entropy(logits, split.labels).item()
    accuracy = (logits.argmax(1) == split.labels).float().mean().item()
    for part in ("train", "valid"):
        assert metrics[f"{part}_loss"] == pytest.approx(loss, rel=1e-5)
        assert metrics[f"{part}_accuracy"] == pytest.approx(accuracy)


def test_counts_share_their_target_with_their_neighbours():
    targets = ordinal_targets(["1", "10", "2"], 0.5)
    assert torch.allclose(targets.sum(1), torch.ones(3))
    # One apart counts for exp(-1²/(2·0.5²)) of the count itself, whatever the order of the names.
    near = 0.1353352832 / 1.1353352832
    assert torch.allclose(targets[0], torch.tensor([1 - near, 0.0, near]), atol=1e-6)
    assert torch.allclose(targets[1], torch.tensor([0.0, 1.0, 0.0]), atol=1e-6)
    with pytest.raises(ExpectedError, match="classes that are numbers, not bag, coat"):
        ordinal_targets(["bag", "coat"], 0.5)


@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_the_loss_is_the_cross_entropy_with_the_shared_targets(mixup):
    split, targets = random_split(20), ordinal_targets(["1", "2", "3"], 0.8)
    args = arguments(lr=0.0, batch_size=20, mixup=mixup)
    trainer = trainer_of(split, args, targets=targets)
    seen = []
    trainer.loss = lambda logits, y: (
        seen.append((logits, y)) or F.cross_entropy(logits, y, reduction="none")
    )
    loss = fit(trainer).metrics["train_loss"]
    logits, shares = seen[0]
    expected = -(shares * logits.log_softmax(1)).sum(1).mean().item()
    assert loss == pytest.approx(expected, rel=1e-5)
    rows = {tuple(round(v, 5) for v in row) for row in shares.tolist()}
    if mixup:
        assert torch.allclose(shares.sum(1), torch.ones(20))
        assert len(rows) > 3
    else:
        assert rows == {tuple(round(v, 5) for v in row) for row in targets.tolist()}


@pytest.mark.parametrize("left_out", [0, 7])
def test_a_picture_that_is_skipped_or_doubled_is_noticed(monkeypatch, left_out):
    order = torch.tensor([i if i != left_out else 3 for i in range(20)])
    monkeypatch.setattr(training, "plan", lambda *_: (order,))
    with pytest.raises(RuntimeError, match="2 of 20 pictures were not seen exactly once"):
        fit(trainer_of(random_split(20), arguments()))


def scripted_fit(monkeypatch, accuracies, **changes):
    """Fit with these validation accuracies; return the best, and the weights after each epoch."""
    trainer = trainer_of(random_split(), arguments(epochs=len(accuracies), **changes))
    script, weights, rows = iter(accuracies), [], []

    def evaluate(logits, labels):
        weights.append(trainer.module[1].weight.detach().clone())
        return {"valid_loss": 1.0, "valid_accuracy": next(script)}

    monkeypatch.setattr(training, "evaluate", evaluate)
    best = fit(trainer, rows)
    return best, weights, trainer.module[1].weight, rows


def test_the_best_weights_remain_not_the_last(monkeypatch):
    best, weights, final, rows = scripted_fit(monkeypatch, [0.3, 0.9, 0.5, 0.9, 0.1])
    assert best.metrics["epoch"] == 2
    assert torch.equal(final, weights[1])
    assert not torch.equal(final, weights[-1])
    assert len(rows) == 5


def test_patience_starts_again_at_every_improvement(monkeypatch):
    # Three epochs without improvement in all, but two in a row only at the end.
    accuracies = [0.5, 0.4, 0.6, 0.5, 0.55, 0.99]
    best, _, _, rows = scripted_fit(monkeypatch, accuracies, patience=2)
    assert len(rows) == 5
    assert best.metrics["epoch"] == 3


def test_patience_of_zero_never_stops(monkeypatch):
    assert len(scripted_fit(monkeypatch, [0.5] + [0.1] * 9)[3]) == 10


def test_a_stop_ends_after_the_current_step():
    stop = StopRequest()
    trainer = trainer_of(random_split(), arguments(batch_size=2), stop=stop)
    before = trainer.module[1].weight.detach().clone()
    step = trainer._step

    def step_and_stop(*args, **kwargs):
        step(*args, **kwargs)
        stop.received = True

    trainer._step = step_and_stop
    assert fit(trainer).metrics == {}
    assert trainer.steps_done == 1
    assert not torch.equal(trainer.module[1].weight, before)


def test_a_time_budget_ends_in_validated_weights():
    rows = []
    trainer = trainer_of(random_split(), arguments(batch_size=2, epochs=50, max_seconds=1e-9))
    best = fit(trainer, rows)
    assert len(rows) == 1
    assert best.metrics["epoch"] == 1
    assert trainer.steps_done == 1


def test_with_more_time_a_training_goes_on_where_its_budget_ended(tmp_path):
    """In the middle of an epoch: no step is left out, none is taken twice."""
    split, kept = random_split(), {"batch_size": 2, "epochs": 3}
    unbroken = trainer_of(split, arguments(**kept))
    fit(unbroken)
    kept |= {"checkpoint_dir": tmp_path}
    for budget in (1e-9, 1e-9, None):
        rows = []
        trainer = trainer_of(split, arguments(**kept, max_seconds=budget))
        fit(trainer, rows)
        assert [row["epoch"] for row in rows] == (["1"] if budget else ["1", "2", "3"])
    assert rows == [{**row, **seconds_of(rows[i])} for i, row in enumerate(unbroken.rows)]
    assert torch.equal(trainer.module[1].weight, unbroken.module[1].weight)


def seconds_of(row):
    return {key: row[key] for key in ("seconds", "data_seconds")}


def test_the_answers_are_those_of_the_best_average(monkeypatch):
    """With an average of the weights, what is measured afterwards is what is saved."""
    split, script = random_split(), iter([0.3, 0.9, 0.5])
    trainer = trainer_of(split, arguments(epochs=3, ema=0.5, lr=0.5))
    answered = []

    def evaluate(logits, labels):
        answered.append(logits)
        return {"valid_loss": 1.0, "valid_accuracy": next(script)}

    monkeypatch.setattr(training, "evaluate", evaluate)
    assert fit(trainer).metrics["epoch"] == 2
    assert torch.equal(trainer.valid_logits(), answered[1])
    assert torch.equal(logits_of(trainer.module, trainer.valid, CPU, Group()), answered[1])
    assert not torch.equal(answered[1], answered[2])


@pytest.mark.parametrize("changed", ["pictures", "architecture"])
def test_a_checkpoint_of_other_pictures_or_another_network_is_not_used(tmp_path, changed, capsys):
    args = arguments(checkpoint_dir=tmp_path)
    fit(trainer_of(random_split(), args))
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 3))
    trainer = trainer_of(random_split(), args, module if changed == "architecture" else None)
    trainer.fit(lambda row: None, "another hash" if changed == "pictures" else "hash")
    assert "is a checkpoint of another run or other data: not used" in capsys.readouterr().out
    assert len(trainer.rows) == 1


def test_a_diverging_loss_is_told():
    with pytest.raises(ExpectedError, match="lower --lr"):
        fit(trainer_of(random_split(), arguments(lr=1e30, epochs=3)))


def test_clipping_bounds_the_change_of_a_step():
    for clip_norm, bounded in ((0.0, False), (1e-3, True)):
        args = arguments(lr=1.0, clip_norm=clip_norm, weight_decay=0.0, schedule="constant")
        args.warmup = 0.0
        trainer = trainer_of(random_split(), args)
        before = nn.utils.parameters_to_vector(trainer.module.parameters()).clone()
        trainer.fit(lambda row: None, "hash")
        change = nn.utils.parameters_to_vector(trainer.module.parameters()) - before
        # One step of Nesterov's momentum: the gradient and nine tenths of it.
        assert (change.norm().item() <= 1.9e-3 * 1.001) == bounded


def test_class_weights_count_only_the_classes_that_are_there():
    """As in a dry run, whose few pictures may be of a part of the classes."""
    split = as_split(random_split(20).images, [0] * 15 + [2] * 5)
    trainer = trainer_of(split, arguments(balance="weights"))
    assert trainer.loss.weight.tolist() == pytest.approx([20 / 30, 10, 20 / 10])
    assert math.isfinite(fit(trainer).metrics["train_loss"])


def test_class_weights_give_every_class_the_same_say():
    # The loss is the mean over classes of the mean over each class's pictures.
    split = as_split(random_split(20).images, [0] * 15 + [1] * 4 + [2])
    trainer = trainer_of(split, arguments(lr=0.0, balance="weights"))
    logits = trainer.valid_logits()
    expected = [F.cross_entropy(logits[split.labels == c], split.labels[split.labels == c])
                for c in range(3)]  # fmt: skip
    assert fit(trainer).metrics["train_loss"] == pytest.approx(sum(expected).item() / 3, rel=1e-5)


def test_the_moving_average_is_what_is_validated_and_kept():
    trainer = trainer_of(random_split(), arguments(ema=0.5, batch_size=10, lr=0.1))
    seen, step = [], trainer._step

    def step_and_note(*args, **kwargs):
        step(*args, **kwargs)
        seen.append(trainer.module[1].weight.detach().clone())

    trainer._step = step_and_note
    fit(trainer)
    # The first step sets the average, the second moves it half of the way.
    assert torch.allclose(trainer.module[1].weight, (seen[0] + seen[1]) / 2, atol=1e-6)


def test_a_run_that_is_cut_anywhere_ends_with_the_same_weights(tmp_path):
    """All that has a state: dropout, momentum, moving average, mixup, augmentation, scaler."""
    train = random_split(30)
    changes = {"epochs": 3, "batch_size": 8, "ema": 0.8, "mixup": 0.3, "augment": "flip,erase"}

    def trainer(**more):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 3))
        made = trainer_of(train, arguments(**changes, **more), module)
        if made.scaler.is_enabled():
            # Gradients too large for float16: their steps are left out, and the scale is halved.
            made.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
        return made

    runs = (("sgd", "float32"), ("adamw", "float32"), ("adamw", "float16"))
    for optimizer, precision in runs:
        how = {"optimizer": optimizer, "precision": precision}
        whole = trainer(**how)
        fit(whole)
        assert (1 < whole.scaler.get_scale() < 2**20) == (precision == "float16")
        folder = tmp_path / f"{optimizer}-{precision}"
        cuts = random.Random(0).sample(range(1, 12), 3)
        for cut in sorted(cuts):
            part = trainer(**how, checkpoint_dir=str(folder))
            part._resume("hash")
            step = part._step

            def cutting_step(*args, part=part, step=step, cut=cut, **kwargs):
                if (part.epoch - 1) * 4 + part.steps_done == cut:
                    raise KeyboardInterrupt
                step(*args, **kwargs)

            part._step = cutting_step
            with pytest.raises(KeyboardInterrupt):
                fit(part)
        rows = []
        last = trainer(**how, checkpoint_dir=str(folder))
        fit(last, rows)
        assert last.epoch == 4
        assert [row["epoch"] for row in rows] == ["1", "2", "3"]
        for ours, theirs in zip(last.module.parameters(), whole.module.parameters()):
            assert torch.equal(ours, theirs)


def network(channels, classes):
    torch.manual_seed(0)
    return build_model("small_resnet", channels, classes)


def test_it_can_learn_one_batch_by_heart(data_dir):
    batch = as_split(*fashion_mnist(data_dir, 64))
    trainer = trainer_of(
        batch, arguments(epochs=40, precision="auto", lr=0.01, optimizer="adamw"), network(1, 10)
    )
    assert fit(trainer).metrics["valid_accuracy"] == 1.0


def test_it_learns_real_pictures_and_forgives_a_shift(data_dir):
    images, labels = fashion_mnist(data_dir, 2500)
    train, valid = as_split(images[:2000], labels[:2000]), as_split(images[2000:], labels[2000:])
    args = arguments(epochs=5, augment="shift-flip", lr=0.01, optimizer="adamw", precision="auto")
    trainer = trainer_of(train, args, network(1, 10), valid)
    assert fit(trainer).metrics["valid_accuracy"] > 0.75

    # Nothing about a garment changes when it lies a pixel further, or is seen in a mirror.
    preprocessing = trainer.train.preprocessing
    classifier = Classifier("small_resnet", trainer.module, preprocessing, train.class_names)
    predicted = classifier.probabilities(valid.images).argmax(1)
    for changed in (valid.images.roll(1, dims=3), valid.images.flip(3)):
        same = classifier.probabilities(changed).argmax(1) == predicted
        assert same.float().mean() > 0.85
