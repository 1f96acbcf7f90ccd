"""Randomness that depends on names and numbers only, so that a resumed training repeats it exactly."""
from __future__ import annotations

import hashlib

import torch


def seed_for(*names: int | str) -> int:
    """A 63-bit seed made of e.g. ("noise", run seed, step); the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def stream(*names: int | str) -> torch.Generator:
    """A CPU generator seeded by `seed_for(*names)`."""
    return torch.Generator().manual_seed(seed_for(*names))


def batch_indices(count: int, batch: int, seed: int, draw: int) -> list[int]:
    """Which of `count` samples make up batch number `draw` (0, 1, ...).

    Every epoch is a fresh permutation; a batch may reach over the end of an epoch, so none is ever short.
    """
    indices: list[int] = []
    position = draw * batch
    while len(indices) < batch:
        epoch, offset = divmod(position, count)
        permutation = torch.randperm(count, generator=stream("order", seed, epoch))
        taken = permutation[offset:offset + batch - len(indices)].tolist()
        indices += taken
        position += len(taken)
    return indices
