"""Kernel density estimates of pairs of scores by Fourier series: exact to rounding, for up to some thousand pictures.

The transform of a density estimate is the mean of exp(-i w x) over the points, times the kernel's own transform, which
leaves nothing of high frequencies. For all pairs of attributes the means are products of two matrices.
"""
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .density import FLOOR, GONE, PAIRS_AT_ONCE, REACH, kernel_covariances

BYTES = 2 ** 29             # of waves in memory


@dataclass(frozen=True)
class Waves:
    """exp(-i w_k x) of scores, to be summed over pictures.

    Attributes:
        waves: [M, N, m + 1] complex, of the frequencies 0, 1, ..., m times `step`.
        step: 2 pi over the period.
        origin: where phase 0 is.
    """
    waves: Tensor
    step: float
    origin: float

    @classmethod
    def of(cls, values: Tensor, covariances: Tensor, nodes: Tensor, gone: float = GONE) -> Waves | None:
        """For scores [N, M] and the covariances [P, 2, 2] of kernels; None where they would not fit into memory.

        The period holds data, nodes and kernels, so that nothing comes in from the next one.
        """
        reach = REACH * float(covariances.diagonal(dim1=1, dim2=2).max().sqrt())
        low = min(float(values.min()), float(nodes[0])) - reach
        high = max(float(values.max()), float(nodes[-1])) + reach
        step = 2 * math.pi / (high - low)
        most = count(covariances, step, gone)
        if max(values.numel() * (most + 1), PAIRS_AT_ONCE * 2 * (most + 1) ** 2) * 16 > BYTES:
            return None
        phase = (values.double().T[..., None] - low) * (step * torch.arange(most + 1, dtype=torch.float64))
        return cls(torch.polar(torch.ones_like(phase), -phase), step, low)

    def sums(self, first: int, others: Tensor, most: int, chosen: Tensor | slice = slice(None)) -> Tensor:
        """Sums [P, 2 m + 1, m + 1] of one attribute with P others over chosen pictures, for frequencies -m to m of the
        first and 0 to m of the others.
        """
        mine = self.waves[first, chosen, :most + 1]                             # [n, m + 1]
        both = torch.cat([mine[:, 1:].conj().flip(1), mine], 1)
        theirs = self.waves[others][:, chosen, :most + 1].movedim(1, 0).flatten(1)      # [n, P (m + 1)]
        return (both.mT @ theirs).view(both.shape[1], len(others), -1).movedim(1, 0)

    def densities(self, sums: Tensor, number: int, covariances: Tensor, nodes: Tensor) -> Tensor:
        """[P, b, b] at the nodes of both axes, from sums over `number` pictures [P, 2 m + 1, m + 1]."""
        most = sums.shape[-1] - 1
        along = self.step * torch.arange(most + 1, dtype=torch.float64)
        across = self.step * torch.arange(-most, most + 1, dtype=torch.float64)[:, None]
        a, b, c = (covariances[:, i, j, None, None] for i, j in ((0, 0), (0, 1), (1, 1)))
        kernel = torch.exp(-0.5 * (a * across ** 2 + 2 * b * across * along + c * along ** 2))
        kernel[..., 1:] *= 2                    # the negative frequencies of the second, by symmetry
        turned = [torch.polar(torch.ones(len(nodes), len(w), dtype=torch.float64), (nodes - self.origin)[:, None] * w)
                  for w in (across[:, 0], along)]
        found = (turned[0] @ (sums * kernel) @ turned[1].T).real
        return found.clamp(min=0) * (self.step / (2 * math.pi)) ** 2 / number


def count(covariances: Tensor, step: float, gone: float) -> int:
    """How many frequencies of that step the narrowest direction of any kernel needs."""
    narrow = torch.linalg.eigvalsh(covariances)[:, 0].min().clamp(min=FLOOR ** 2).sqrt()
    return math.ceil(math.sqrt(2 * gone) / float(narrow) / step)


def by_first(pairs: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(attribute, its rows in `pairs`), for pairs that are sorted by their first attribute."""
    for first in pairs[:, 0].unique().tolist():
        yield first, (pairs[:, 0] == first).nonzero()[:, 0]


def series_2d(values: Tensor, pairs: Tensor, nodes: Tensor) -> Iterator[Tensor] | None:
    """Densities [P, b, b] of sorted pairs [P, 2] of scores [N, M] at the nodes, some at a time; None for sets that do
    not fit into memory.
    """
    covariances = kernel_covariances(values, pairs)
    waves = Waves.of(values, covariances, nodes)
    if waves is None:
        return None

    def parts() -> Iterator[Tensor]:
        for first, rows in by_first(pairs):
            for some in rows.split(PAIRS_AT_ONCE):
                most = count(covariances[some], waves.step, GONE)
                sums = waves.sums(first, pairs[some, 1], most)
                yield waves.densities(sums, len(values), covariances[some], nodes)

    return parts()
