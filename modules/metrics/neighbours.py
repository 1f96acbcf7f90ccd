"""Precision, recall, density and coverage of two sets of features: the paper's columns beside SaD and PaD.

Kynkaanniemi et al. (2019) and Naeem et al. (2020), k = 5, by chunks, so that no N x N matrix is kept.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

K = 5
CHUNK = 2048            # rows of a matrix of distances


@dataclass(frozen=True)
class Neighbours:
    """Each in 0..1, but for density, whose value is 1 where the two sets are alike."""

    precision: float        # generated pictures within reach of the reference
    recall: float           # reference pictures within reach of the generated
    density: float          # how many reference pictures reach a generated one, over k
    coverage: float         # reference pictures that have a generated one among their k nearest


def neighbours(reference: Tensor, generated: Tensor, k: int = K) -> Neighbours:
    """Of features [N, D] and [N', D]. A picture reaches as far as its k-th neighbour in its own set.

    Raises ValueError for sets of k pictures or fewer.
    """
    for name, features in (("reference", reference), ("generated", generated)):
        if len(features) <= k:
            raise ValueError(f"The {name} set has {len(features)} pictures; neighbours need more than k = {k}.")
    reference, generated = reference.float(), generated.float()
    radius, its_radius = _radii(reference, k), _radii(generated, k)
    precise, density, recalled, covered = 0, 0, 0, 0
    for _, distances in _distances(generated, reference):
        within = distances <= radius
        precise, density = precise + int(within.any(1).sum()), density + int(within.sum())
    for rows, distances in _distances(reference, generated):
        recalled += int((distances <= its_radius).any(1).sum())
        covered += int((distances <= radius[rows, None]).any(1).sum())
    return Neighbours(precise / len(generated), recalled / len(reference), density / (k * len(generated)),
                      covered / len(reference))


def _radii(features: Tensor, k: int) -> Tensor:
    """[N] distance to the k-th other picture of the set."""
    return torch.cat([distances.kthvalue(k + 1, dim=1).values for _, distances in _distances(features, features)])


def _distances(first: Tensor, second: Tensor) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, len(first), CHUNK):
        rows = slice(start, min(start + CHUNK, len(first)))
        yield rows, torch.cdist(first[rows], second, compute_mode="donot_use_mm_for_euclid_dist")
