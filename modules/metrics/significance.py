"""What two sets of the same law would score, and which differences are more than that.

A permutation test: pool the two sets, part them at random, score again. For attributes, p by their own draws and the
procedure of Benjamini and Hochberg; for pairs, of which there are hundreds, the largest of each draw (Westfall, Young).
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..seeding import stream
from . import density
from .divergence import Settings, cell_masses, check_scores, kl
from .series import BYTES, Waves, by_first

NODES = 512             # of the grid of draws
PAIR_CELLS = 50         # a side, of draws of pairs
PAIR_GONE = 12          # e to the minus this is dropped of their densities
DRAWS_AN_ATTRIBUTE = 40  # so that one attribute of a list can be found by Benjamini and Hochberg at 5 %
MOST_DRAWS = 4000
LEVEL = 0.05


@dataclass(frozen=True)
class Null:
    """Of the scores' own law, from `draws` partings of the pooled sets.

    Attributes:
        floor: [M] mean over the draws, in published units.
        p: [M] share of draws at least as far apart as the two sets.
        adjusted: [M] p after Benjamini and Hochberg, or the share of draws whose largest is as far (pairs).
        mean_high: 95 % of the draws' means over attributes lie below.
        draws: how many.
    """
    floor: Tensor
    p: Tensor
    adjusted: Tensor
    mean_high: float
    draws: int


def attribute_null(reference: Tensor, generated: Tensor, settings: Settings, seed: int = 0,
                   tick: Callable[[], None] = lambda: None) -> Null:
    """The permutation test of `sad`, for scores [N, M] and [N', M].

    At least `settings.draws` draws, and enough for the length of the list: p cannot be below 1 / (draws + 1). `tick` is
    called before each and may raise to stop.
    """
    check_scores(reference, generated, least=2)
    draws = max(settings.draws, min(MOST_DRAWS, DRAWS_AN_ATTRIBUTE * reference.shape[1] - 1))
    pool = _Bins.of(torch.cat([reference, generated]).double(), settings.half_range)
    rows = []
    for parted in _partings(len(reference), len(pool), draws, seed):
        tick()
        rows.append(pool.sad(parted, settings.epsilon))
    found = torch.stack(rows)                                                   # [draws, M]
    observed = pool.sad(torch.arange(len(pool)) < len(reference), settings.epsilon)
    p = (1 + (found >= observed * (1 - 1e-9)).sum(0)) / (1 + draws)
    return Null(found.mean(0), p, benjamini_hochberg(p), float(found.mean(1).quantile(1 - LEVEL)), draws)


def pair_null(reference: Tensor, generated: Tensor, pairs: Tensor, settings: Settings, seed: int = 0,
              tick: Callable[[], None] = lambda: None) -> Null | None:
    """The permutation test of `pad` for sorted pairs [P, 2]; adjusted for all pairs by the largest of each draw.

    A pair's distance is measured in its own floors, so that a wide pair does not stand for all. None for sets too
    large for it: there the floor is small. `tick` is called before each draw and may raise to stop.
    """
    check_scores(reference, generated, least=3)
    pooled = torch.cat([reference, generated]).double()
    nodes = torch.linspace(-settings.half_range, settings.half_range, PAIR_CELLS + 1, dtype=torch.float64)
    waves = Waves.of(pooled, density.kernel_covariances(pooled, pairs), nodes, PAIR_GONE)
    if waves is None or len(pairs) * 2 * waves.waves.shape[-1] ** 2 * 16 > BYTES:
        return None
    most, area = waves.waves.shape[-1] - 1, (2 * settings.half_range / PAIR_CELLS) ** 2
    whole = {first: waves.sums(first, pairs[rows, 1], most) for first, rows in by_first(pairs)}

    def score(parted: Tensor) -> Tensor:
        tick()
        covariances = [density.kernel_covariances(pooled[mask], pairs) for mask in (parted, ~parted)]
        numbers, found = [int(parted.sum()), int((~parted).sum())], []
        for first, rows in by_first(pairs):
            sums = waves.sums(first, pairs[rows, 1], most, parted)
            masses = [cell_masses(waves.densities(part, number, covariance[rows], nodes), area, settings.epsilon)
                      for part, number, covariance in zip((sums, whole[first] - sums), numbers, covariances,
                                                          strict=True)]
            found.append(kl(*masses))
        return torch.cat(found)

    found = torch.stack([score(parted) for parted in _partings(len(reference), len(pooled), settings.pair_draws, seed)])
    floor, observed = found.mean(0), score(torch.arange(len(pooled)) < len(reference))
    largest = (found / floor).max(1).values
    p = (1 + (found >= observed).sum(0)) / (1 + len(found))
    adjusted = (1 + (largest[:, None] >= observed / floor).sum(0)) / (1 + len(found))
    return Null(floor, p, adjusted, float(found.mean(1).quantile(1 - LEVEL)), len(found))


def bootstrap(reference: Tensor, generated: Tensor, settings: Settings, seed: int = 0,
              tick: Callable[[], None] = lambda: None) -> tuple[Tensor, Tensor]:
    """(low, high) [M] of the divergence at 95 %, by drawing pictures anew with replacement; never below 0.

    Densities of drawn pictures lie further apart than those of the pictures, and these further than the laws they are
    from, by about as much: the draws' quantiles are moved down by both, so the interval may end below SaD.
    """
    parts = [_Bins.of(values.double(), settings.half_range) for values in (reference, generated)]
    observed, found = _sad_of(*(part.density() for part in parts), settings.epsilon), []
    for draw in range(settings.resamples):
        tick()
        drawn = [torch.randint(len(part), (len(part),), generator=stream("bootstrap", seed, draw, name))
                 for name, part in enumerate(parts)]
        counts = [torch.bincount(numbers, minlength=len(numbers)).double() for numbers in drawn]
        found.append(_sad_of(*(part.density(count) for part, count in zip(parts, counts, strict=True)),
                             settings.epsilon))
    draws = torch.stack(found)
    too_far = draws.median(0).values - observed
    ends = draws.quantile(torch.tensor([LEVEL / 2, 1 - LEVEL / 2], dtype=torch.float64), dim=0)
    low, high = (ends - 2 * too_far).clamp(min=0)
    return low, high


def benjamini_hochberg(p: Tensor) -> Tensor:
    """p [M] adjusted so that of those below a level only that share is expected to be false."""
    order = p.argsort(descending=True)
    scaled = p[order] * len(p) / torch.arange(len(p), 0, -1)
    return torch.empty_like(p).scatter_(0, order, scaled.cummin(0).values.clamp(max=1))


def _partings(first: int, count: int, draws: int, seed: int):
    """[count] bool a draw: which of the pooled pictures are the reference this time."""
    for draw in range(draws):
        parted = torch.zeros(count, dtype=torch.bool)
        parted[torch.randperm(count, generator=stream("permutation", seed, draw))[:first]] = True
        yield parted


@dataclass(frozen=True)
class _Bins:
    """Scores [N, M] on a coarse grid, once, to be counted with many weights."""

    values: Tensor          # [N, M]
    low: Tensor             # [N, M] index of the node below, of all attributes in one row
    share: Tensor           # [N, M] of the node above
    step: float

    @classmethod
    def of(cls, values: Tensor, half_range: float) -> _Bins:
        grid = torch.linspace(-half_range, half_range, NODES, dtype=torch.float64)
        step = float(grid[1] - grid[0])
        position = ((values - grid[0]) / step).clamp(0, NODES - 1.001)
        low = position.floor()
        return cls(values, low.long() + torch.arange(values.shape[1]) * NODES, position - low, step)

    def __len__(self) -> int:
        return len(self.values)

    def density(self, counts: Tensor | None = None) -> Tensor:
        """[M, NODES] with pictures counted so often [N]; masses, kernel included."""
        counts = torch.ones(len(self), dtype=torch.float64) if counts is None else counts
        number, columns = counts.sum(), self.values.shape[1]
        mean = (counts[:, None] * self.values).sum(0) / number
        variance = (counts[:, None] * (self.values - mean) ** 2).sum(0) / (number - 1)
        weights = torch.bincount(self.low.flatten(), (counts[:, None] * (1 - self.share)).flatten(), columns * NODES)
        weights += torch.bincount(self.low.flatten() + 1, (counts[:, None] * self.share).flatten(), columns * NODES)
        return self._smooth(weights.view(columns, NODES) / number, variance, int(number))

    def sad(self, parted: Tensor, epsilon: float) -> Tensor:
        """[M] of the pictures of a mask against the others."""
        return _sad_of(self._part(parted), self._part(~parted), epsilon)

    def _part(self, mask: Tensor) -> Tensor:
        values, columns = self.values[mask], self.values.shape[1]
        low, share = self.low[mask].flatten(), self.share[mask].flatten()
        weights = torch.bincount(low, 1 - share, columns * NODES) + torch.bincount(low + 1, share, columns * NODES)
        return self._smooth(weights.view(columns, NODES) / len(values), values.var(0), len(values))

    def _smooth(self, weights: Tensor, variance: Tensor, number: int) -> Tensor:
        deviation = (density.scott(number, 1) * variance.sqrt()).clamp(min=density.FLOOR)
        frequency = 2 * math.pi * torch.fft.rfftfreq(2 * NODES, self.step, dtype=torch.float64)
        kernel = torch.exp(-0.5 * (deviation[:, None] * frequency) ** 2)
        return torch.fft.irfft(torch.fft.rfft(weights, 2 * NODES) * kernel, 2 * NODES)[:, :NODES].clamp(min=0)


def _sad_of(p: Tensor, q: Tensor, epsilon: float) -> Tensor:
    return kl(p + epsilon, q + epsilon)
