"""Pictures that are nearly the same: one in train and one in test would flatter any model."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

PIXELS = 64  # a side: four times the frequencies that are kept, as is usual
# The DCT hash of 16×16 low frequencies: with the usual 8×8, bins of one warehouse look alike.
HASH_SIDE = 16
# Bits of 256 that may differ. Measured on the 6,120 bin photos, which are numbered in the order
# they were taken: all 51 pairs within 48 bits are at most 3 numbers apart, so the same bin a moment
# later; within 56 it is 119 of 122, within 64 209 of 263, within 80 548 of 2,550.
MAX_DISTANCE = 48
# Smaller pictures have too few frequencies for this hash: only equal files count among them.
SMALLEST_SIDE = 33  # pixels


def perceptual_hash(pixels: np.ndarray) -> bytes:
    """256-bit hash of uint8 grey levels (64, 64) that survives scaling, recoding and light."""
    import imagehash
    from PIL import Image

    hashed = imagehash.phash(Image.fromarray(pixels), hash_size=HASH_SIDE)
    return np.packbits(hashed.hash).tobytes()


def find_pairs(hashes: Sequence[bytes]) -> pd.DataFrame:
    """Table of near-duplicates: first, second (indices, first < second) and distance in bits.

    A hash of 32 bytes is compared by its bits; any other length is a digest, equal or not. What
    repeats a hash is paired with its first only: a thousand equal pictures are 999 pairs.
    """
    first_of, pairs = {}, []
    for i, value in enumerate(hashes):
        if first_of.setdefault(value, i) != i:
            pairs.append((first_of[value], i, 0))
    compared = [i for value, i in first_of.items() if len(value) == HASH_SIDE**2 // 8]
    pairs += _near(compared, [hashes[i] for i in compared])
    columns = ["first", "second", "distance"]
    return pd.DataFrame(pairs, columns=columns, dtype=int).sort_values(columns[:2])


def _near(indices, hashes):
    if not hashes:
        return []
    bits = np.unpackbits(np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), -1), axis=1)
    # With bits as ±1, a product of matrices counts agreements less differences: exact, and fast.
    signs = bits.astype(np.float32) * 2 - 1
    found = []
    for start in range(0, len(signs), 1024):
        distances = (HASH_SIDE**2 - signs[start : start + 1024] @ signs[start:].T) / 2
        rows, columns = np.nonzero(np.triu(distances <= MAX_DISTANCE, 1))
        found += [
            (indices[start + row], indices[start + column], round(distances[row, column]))
            for row, column in zip(rows.tolist(), columns.tolist())
        ]
    return found


def find_groups(pairs: pd.DataFrame, count: int) -> list[list[int]]:
    """Sorted lists of the indices, out of `count`, that pairs connect."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = (pairs["first"].to_numpy(), pairs["second"].to_numpy())
    graph = coo_array((np.ones(len(pairs)), edges), shape=(count, count))
    _, group_of = connected_components(graph, directed=False)
    members = pd.Series(range(count)).groupby(group_of)
    return [group.tolist() for _, group in members if len(group) > 1]
