import argparse

import pytest
import torch
from samples import fashion_mnist
from torch import nn
from torch.nn import functional as F

from vision import training
from vision.classifier import Classifier
from vision.data import Split
from vision.errors import ExpectedError
from vision.preprocessing import Preprocessing
from vision.training import Recipe, StopRequest, augment, batches, fit, warmup_cosine


def arguments(**changes):
    defaults = {
        "model": "small_resnet",
        "epochs": 1,
        "batch_size": 64,
        "lr": 0.05,
        "weight_decay": 5e-4,
        "label_smoothing": 0.0,
        "augment": "none",
        "patience": 0,
        "seed": 0,
    }
    return argparse.Namespace(**{**defaults, **changes})


def as_split(images, labels):
    images, labels = torch.as_tensor(images), torch.as_tensor(labels)
    names = [str(i) for i in range(len(labels))]
    return Split(images, labels, names, [str(c) for c in range(int(labels.max()) + 1)], "hash")


def random_split(count=20, classes=3):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8)
    return as_split(images, torch.arange(count) % classes)


def linear_classifier(split):
    """A model without batch norm: its loss on a picture does not depend on the batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, len(split.class_names)))
    return Classifier("linear", model, Preprocessing(8, 1, (0.5,), (0.3,)), split.class_names)


@pytest.mark.parametrize("batch_size", [3, 7, 20, 100])
def test_losses_and_accuracies_are_means_over_samples(batch_size):
    split = random_split(20)
    classifier = linear_classifier(split)
    logits = classifier.logits(split.images)
    loss = F.cross_entropy(logits, split.labels).item()
    accuracy = (logits.argmax(1) == split.labels).float().mean().item()

    # A learning rate of zero leaves the model as it is, whatever the batches.
    recipe = Recipe(arguments(lr=0.0, batch_size=batch_size), classifier, split)
    recipe.dtype = None
    trained = training.train_one_epoch(classifier, split, recipe, StopRequest())
    assert trained["train_loss"] == pytest.approx(loss, rel=1e-5)
    assert trained["train_accuracy"] == pytest.approx(accuracy)
    measured = training.evaluate(classifier, split)
    assert measured["valid_loss"] == pytest.approx(loss, rel=1e-5)
    assert measured["valid_accuracy"] == pytest.approx(accuracy)


def test_a_picture_that_is_skipped_is_noticed(monkeypatch):
    split = random_split(20)
    monkeypatch.setattr(training, "batches", lambda count, *_: (torch.arange(count - 1),))
    with pytest.raises(RuntimeError, match="saw 19 pictures, the split has 20"):
        fit(linear_classifier(split), split, split, arguments(), StopRequest())


@pytest.mark.parametrize(("count", "size"), [(2, 2), (3, 2), (257, 256), (1000, 64), (5, 64)])
def test_batches_hold_every_picture_once_and_none_alone(count, size):
    parts = batches(count, size, torch.Generator().manual_seed(0))
    assert sorted(torch.cat(parts).tolist()) == list(range(count))
    lengths = [len(part) for part in parts]
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_the_learning_rate_warms_up_to_its_peak_and_falls_towards_zero(steps):
    shares = [warmup_cosine(step, steps) for step in range(steps)]
    top = shares.index(max(shares))
    assert max(shares) == 1
    assert shares[: top + 1] == sorted(shares[: top + 1])
    assert shares[top:] == sorted(shares[top:], reverse=True)
    assert all(0 < share <= 1 for share in shares)
    assert warmup_cosine(steps, steps) == pytest.approx(0, abs=1e-12)


def scripted_fit(monkeypatch, accuracies, **changes):
    """Fit with these validation accuracies; return the best, and the weights after each epoch."""
    split = random_split()
    classifier = linear_classifier(split)
    script, weights, rows = iter(accuracies), [], []

    def evaluate(classifier, split):
        weights.append(classifier.model[1].weight.detach().clone())
        return {"valid_loss": 1.0, "valid_accuracy": next(script)}

    monkeypatch.setattr(training, "evaluate", evaluate)
    args = arguments(epochs=len(accuracies), **changes)
    best = fit(classifier, split, split, args, StopRequest(), rows.append)
    return best, weights, classifier.model[1].weight, rows


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
    split = random_split()
    classifier = linear_classifier(split)
    before = classifier.model[1].weight.detach().clone()
    stop = StopRequest()
    stop.received = True
    best = fit(classifier, split, split, arguments(batch_size=2), stop)
    assert best.metrics == {}
    assert not torch.equal(classifier.model[1].weight, before)


def test_a_diverging_loss_is_told():
    split = random_split()
    with pytest.raises(ExpectedError, match="lower --lr"):
        fit(linear_classifier(split), split, split, arguments(lr=1e30, epochs=3), StopRequest())


def test_augmentation_moves_pictures_and_invents_nothing():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 2, 24, 24), dtype=torch.uint8)
    assert augment(images, "none", generator) is images
    for kind, mirrors in (("shift", (False,)), ("shift-flip", (False, True))):
        changed = augment(images, kind, generator)
        assert changed.shape == images.shape
        assert changed.dtype == torch.uint8
        for before, after in zip(images, changed):
            assert any(is_shifted(before, after, mirror) for mirror in mirrors)
    assert any(is_shifted(b, a, True) for b, a in zip(images, changed))


def is_shifted(before, after, mirrored, reach=2):
    """Whether the middle of `after` is in `before`, up to `reach` pixels away."""
    before = before.flip(2) if mirrored else before
    middle = after[:, reach:-reach, reach:-reach]
    moves = range(2 * reach + 1)
    return any(torch.equal(before[:, y : y + 20, x : x + 20], middle) for y in moves for x in moves)


def test_it_can_learn_one_batch_by_heart(data_dir):
    batch = as_split(*fashion_mnist(data_dir, 64))
    torch.manual_seed(0)
    args = arguments(epochs=40)
    classifier = training.new_classifier(args, batch)
    best = fit(classifier, batch, batch, args, StopRequest())
    assert best.metrics["valid_accuracy"] == 1.0


def test_it_learns_real_pictures_and_forgives_a_shift(data_dir):
    images, labels = fashion_mnist(data_dir, 2500)
    train, valid = as_split(images[:2000], labels[:2000]), as_split(images[2000:], labels[2000:])
    torch.manual_seed(0)
    args = arguments(epochs=5, augment="shift-flip", lr=0.1)
    classifier = training.new_classifier(args, train)
    best = fit(classifier, train, valid, args, StopRequest())
    assert best.metrics["valid_accuracy"] > 0.75

    # Nothing about a garment changes when it lies a pixel further, or is seen in a mirror.
    predicted = classifier.probabilities(valid.images).argmax(1)
    for changed in (valid.images.roll(1, dims=3), valid.images.flip(3)):
        same = classifier.probabilities(changed).argmax(1) == predicted
        assert same.float().mean() > 0.85
