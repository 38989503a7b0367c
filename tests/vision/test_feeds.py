import pytest
import torch

from vision.augment import build_augment, parse_augment
from vision.data import Split
from vision.distributed import Group
from vision.errors import ExpectedError
from vision.feeds import FeatureFeed, PictureFeed, load, plan
from vision.preprocessing import Preprocessing

ALONE = Group()


def split_of(count, size=8, classes=3):
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, size, size)
    labels = torch.arange(count) % classes
    names = [str(i) for i in range(count)]
    return Split(images, labels, names, [str(c) for c in range(classes)], "hash")


def feed_of(split, names=(), mixup=0.0):
    size = split.images.shape[-1]
    preprocessing = Preprocessing(size, split.images.shape[1], (0.5,), (0.3,))
    return PictureFeed(split, preprocessing, build_augment(names, size, (0.5,)), mixup)


@pytest.mark.parametrize(
    ("count", "size"), [(2, 2), (5, 2), (7, 3), (257, 256), (1000, 64), (5, 64)]
)
def test_an_epoch_holds_every_picture_once_and_no_step_has_one_alone(count, size):
    steps = plan(torch.zeros(count, dtype=torch.long), size, balanced=False, seed=0, epoch=1)
    assert sorted(torch.cat(steps).tolist()) == list(range(count))
    lengths = [len(step) for step in steps]
    # Of an odd number of pictures in pairs, three are together.
    assert max(lengths) <= (3 if (count, size) == (5, 2) else size)
    assert max(lengths) - min(lengths) <= 1
    assert min(lengths) > 1


def test_epochs_and_seeds_differ_and_repeat():
    labels = torch.zeros(50, dtype=torch.long)
    first, again, epoch, seed = (
        torch.cat(plan(labels, 8, False, s, e)) for s, e in ((0, 1), (0, 1), (0, 2), (1, 1))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, epoch)
    assert not torch.equal(first, seed)


def test_the_sampler_draws_rare_classes_as_often_as_frequent_ones():
    labels = torch.tensor([0] * 2700 + [1] * 270 + [2] * 30)
    drawn = labels[torch.cat(plan(labels, 64, balanced=True, seed=0, epoch=1))]
    shares = torch.bincount(drawn) / len(drawn)
    assert len(drawn) == len(labels)
    assert shares.tolist() == pytest.approx([1 / 3] * 3, abs=0.04)


def read(feed, group=ALONE, workers=0, first=0, batch_size=20):
    steps = plan(feed.labels, batch_size, balanced=False, seed=0, epoch=1)
    return list(load(feed, steps, first, 0, 1, group, workers))


@pytest.mark.parametrize("names", [(), ("shift", "flip", "erase"), ("crop", "color")])
@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_workers_resumes_and_groups_see_the_same_pictures_changed_in_the_same_way(names, mixup):
    feed = feed_of(split_of(100), names, mixup)
    whole = read(feed)
    torch.rand(7)  # What else draws random numbers must not matter.
    for numbers, X, y in whole:
        assert len(numbers) == len(X) == len(y) == 20

    for part, expected in zip(read(feed, first=3), whole[3:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(part, expected))
    parts = [read(feed, Group(rank, 2)) for rank in (0, 1)]
    for step, both in zip(whole, zip(*parts, strict=True), strict=True):
        order = torch.cat([numbers for numbers, _, _ in both]).argsort()
        expected_order = step[0].argsort()
        for i in range(3):
            joined = torch.cat([part[i] for part in both])[order]
            assert torch.equal(joined, step[i][expected_order])


def test_worker_processes_prepare_the_same_batches():
    feed = feed_of(split_of(60), ("shift", "flip"), mixup=0.2)
    for here, there in zip(read(feed), read(feed, workers=2), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(here, there))


def test_too_many_processes_for_a_step_is_one_sentence():
    with pytest.raises(ExpectedError, match="larger --batch-size"):
        read(feed_of(split_of(30)), Group(0, 3), batch_size=16)


def test_mixup_mixes_pictures_and_labels_in_the_same_share():
    # Picture i is everywhere 100 * class, so that its value tells its label.
    split = split_of(64, classes=2)
    split = Split(
        (split.labels * 100).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8),
        split.labels,
        split.names,
        split.class_names,
        "hash",
    )
    shares = []
    for _, X, y in read(feed_of(split, mixup=1.0)):
        assert torch.allclose(y.sum(1), torch.ones(len(y)))
        assert torch.allclose(X[:, 0, 0, 0].float(), 100 * y[:, 1], atol=0.5)
        shares += y[:, 1].tolist()
    assert any(0.05 < share < 0.95 for share in shares)


def test_features_come_from_a_view_drawn_for_each_picture():
    views = torch.stack([torch.full((200, 4), float(view)) for view in range(3)])
    feed = FeatureFeed(views, torch.zeros(200, dtype=torch.long), 1)
    drawn = torch.cat([X[:, 0] for _, X, _ in read(feed)]).long()
    assert torch.bincount(drawn, minlength=3).min() > 40
    assert torch.equal(feed.plain(torch.arange(200)), views[0])


def test_a_share_of_a_feed_keeps_its_pictures_together_with_their_labels():
    numbers = torch.tensor([4, 9, 11])
    part = feed_of(split_of(20)).subset(numbers)
    assert part.plain(torch.arange(3))[:, 0, 0, 0].tolist() == numbers.tolist()
    assert part.labels.tolist() == (numbers % 3).tolist()


def is_shifted(before, after, mirrored, reach=2):
    """Whether the middle of `after` is in `before`, up to `reach` pixels away."""
    before = before.flip(2) if mirrored else before
    middle = after[:, reach:-reach, reach:-reach]
    moves = range(2 * reach + 1)
    return any(torch.equal(before[:, y : y + 20, x : x + 20], middle) for y in moves for x in moves)


@pytest.mark.parametrize("text", ["shift", "shift-flip", "shift,flip"])
def test_shift_and_flip_move_pictures_and_invent_nothing(text):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (30, 2, 24, 24), dtype=torch.uint8)
    change = build_augment(parse_augment(text), 24, (0.5, 0.5))
    changed = torch.stack([change(image) for image in images])
    assert changed.dtype == torch.uint8
    mirrored = [is_shifted(b, a, True) for b, a in zip(images, changed)]
    straight = [is_shifted(b, a, False) for b, a in zip(images, changed)]
    assert all(m or s for m, s in zip(mirrored, straight))
    assert any(mirrored) == ("flip" in text)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["crop", "color", "erase"])
def test_every_augmentation_keeps_shape_and_kind_and_changes_something(name, channels):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (1, channels, 32, 32), dtype=torch.uint8)
    change = build_augment((name,), 32, (0.5,) * channels)
    changed = [change(images) for _ in range(8)]
    assert all(c.shape == images.shape and c.dtype == torch.uint8 for c in changed)
    assert any(not torch.equal(c, images) for c in changed)


def test_an_unknown_augmentation_is_one_sentence():
    assert parse_augment("none") == ()
    with pytest.raises(ExpectedError, match="knows no 'rotate'"):
        parse_augment("shift,rotate")
