"""Which picture goes where: stratified, seeded, look-alikes on one side."""

from collections import Counter, defaultdict

import numpy as np
import pandas as pd

from studio.pictures import SPLITS, DataError

# Look-alikes that are put on one side can leave a small class without a picture on another; a new
# draw then finds a way, unless there is none.
DRAWS = 50


def draw(labels, size, rng):
    """Sorted indices of a stratified random draw of `size`, and of the rest.

    Every class appears once before any appears in proportion, so that rare ones are not left out.
    """
    order = rng.permutation(len(labels))
    shuffled = pd.Series(np.asarray(labels)[order])
    groups = shuffled.groupby(shuffled)
    position = groups.cumcount() / groups.transform("size")
    order = order[np.argsort(position.to_numpy(), kind="stable")]
    return np.sort(order[:size]), np.sort(order[size:])


def split(labels, shares, seed, groups=()):
    """Dict of split → sorted indices, stratified, in the shares of train, valid and test.

    A share of 0 has no split; every other split has at least as many pictures as there are classes.
    The pictures of each of `groups` (lists of indices) share a split.
    """
    labels = np.asarray(labels)
    for attempt in range(DRAWS):
        side = _sides(labels, shares, np.random.default_rng([seed, attempt] if attempt else seed))
        _gather(side, labels, groups)
        splits = {name: np.flatnonzero(side == i) for i, name in enumerate(SPLITS) if shares[i] > 0}
        if all(len(set(labels[at])) == len(set(labels)) for at in splits.values()):
            break
    return splits


def _sides(labels, shares, rng):
    """The place in SPLITS of each picture, drawn by class."""
    valid, test = (
        max(round(len(labels) * share), len(set(labels))) if share else 0 for share in shares[1:]
    )
    test, rest = draw(labels, test, rng)
    valid, _ = draw(labels[rest], valid, rng)
    side = np.full(len(labels), SPLITS.index("train"))
    side[rest[valid]] = SPLITS.index("valid")
    side[test] = SPLITS.index("test")
    return side


def too_small(labels, groups, needed):
    """Dict of class → pictures that differ, of those with fewer than `needed`.

    Pictures of one group (near-duplicates, lists of indices) count once a class.
    """
    group_of = {i: number for number, group in enumerate(groups) for i in group}
    different = {(label, group_of.get(i, ("alone", i))) for i, label in enumerate(labels)}
    counts = Counter(label for label, _ in different)
    return {name: count for name, count in sorted(counts.items()) if count < needed}


def _gather(side, labels, groups):
    """Move each group to the side of its first picture, in exchange for single ones.

    The exchange is within a class, so that the counts stay as drawn while single pictures last.
    """
    grouped = {i for group in groups for i in group}
    singles = defaultdict(list)
    for i in range(len(side)):
        if i not in grouped:
            singles[side[i], labels[i]].append(i)
    for first, *others in groups:
        for i in others:
            if side[i] == side[first]:
                continue
            if singles[side[first], labels[i]]:
                side[singles[side[first], labels[i]].pop()] = side[i]
            side[i] = side[first]


def limited(splits, labels, seed, limit):
    """At most `limit` pictures of each split, every class in its proportion."""
    if limit is None:
        return splits
    rng = np.random.default_rng(seed)
    labels = np.asarray(labels)
    return {name: at[draw(labels[at], limit, rng)[0]] for name, at in splits.items()}


def check_every_class(splits, labels, class_names):
    """DataError where a split lacks a class."""
    for name, at in splits.items():
        missing = sorted(set(class_names) - {labels[i] for i in at})
        if missing:
            raise DataError(
                f"The {name} split would hold no picture of “{missing[0]}”. Add pictures of it, "
                "or choose larger shares or a larger limit."
            )
