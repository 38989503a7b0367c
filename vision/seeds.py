"""Random numbers that depend on where they are used, not on what was drawn before."""

import hashlib

import torch


def seed_of(*numbers: int) -> int:
    """Return a 63-bit seed that mixes all numbers; other numbers give an unrelated seed."""
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def generator_of(*numbers: int) -> torch.Generator:
    """Return a CPU generator that is seeded by these numbers."""
    return torch.Generator().manual_seed(seed_of(*numbers))
