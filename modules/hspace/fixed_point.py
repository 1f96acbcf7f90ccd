"""Refining an inversion: y = x + (sigma' - sigma) eps(y, sigma'), so that a step of Euler's method from y meets x.

With aim(y) the right side, aim(y) - y is what that step back misses x by. Repeating y <- aim(y) is fixed-point
inversion (Pan et al., ICCV 2023; Meiri et al. 2023, arXiv 2312.12540). Near the picture the right side is hardly a
contraction, and a repetition can miss by more than the one before. So the y that misses least is kept, and the next one
comes from it by Anderson's acceleration (Walker and Ni, SIAM J. Numer. Anal. 49, 2011), which combines the last ones
such that their misses, taken as linear, cancel. The first repetition, which has nothing to combine, goes as far as
would have been best in the step before.
"""
from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .slerp import norms

MEMORY = 2                      # iterates beside the best one that are combined
LENGTHS = 0.125, 1.5            # of a first repetition, as a share of aim(y) - y
COLLINEAR = 1e-8                # relative eigenvalue below which two differences of misses count as one


class FixedPoint:
    """The iterates of one step of an inversion, row by row; of all rows as one if `joint`, for networks that mix them.

    Attributes:
        y: the iterate that misses least [B, ...].
        seen: what the network showed there, [B, ...] by name.
        length: share of aim(y) - y that the first repetition goes: [B] (joint: [1]), from the step before.
    """

    def __init__(self, joint: bool = False, length: Tensor | None = None):
        self.joint, self.length = joint, length
        self.y: Tensor | None = None
        self.aim: Tensor | None = None
        self.missed: Tensor | None = None
        self.seen: Mapping[str, Tensor] = {}
        self.tried: list[tuple[Tensor, Tensor]] = []        # (y, aim(y) - y), as rows

    def take(self, y: Tensor, aim: Tensor, seen: Mapping[str, Tensor]) -> None:
        """A new iterate with its aim(y), and what the network showed there."""
        missed = norms(self.rows(aim - y))
        self.tried.append((self.rows(y), self.rows(aim - y)))
        if self.y is None:
            self.y, self.aim, self.missed, self.seen = y, aim, missed, seen
            return
        won = missed < self.missed

        def better(new: Tensor, old: Tensor) -> Tensor:
            of_rows = won.to(new.device).expand(len(new)).view(-1, *[1] * (new.ndim - 1))
            return torch.where(of_rows, new, old)

        self.y, self.aim = better(y, self.y), better(aim, self.aim)
        self.missed = torch.where(won, missed, self.missed)
        self.seen = {name: better(value, self.seen[name]) for name, value in seen.items()}

    def following(self) -> Tensor:
        """The next y to try."""
        best, miss = self.rows(self.y), self.rows(self.aim - self.y)
        if len(self.tried) == 1:
            step = miss if self.length is None else self.length[:, None].to(miss) * miss
            return (best + step).view_as(self.y)
        moves, changes = (torch.stack([each[kind] - of_best for each in self.tried[-MEMORY - 1:]], dim=2).double()
                          for kind, of_best in ((0, best), (1, miss)))      # [rows, N, tried]; 0 for the best itself
        sizes = changes.norm(dim=1, keepdim=True).clamp(min=1e-30)
        moves, changes = moves / sizes, changes / sizes
        gram = (changes.mT @ changes).cpu()
        inverse = torch.linalg.pinv(gram, rtol=COLLINEAR, hermitian=True).to(changes)
        weights = inverse @ (changes.mT @ miss[..., None].double())
        step = miss - ((moves + changes) @ weights)[..., 0]
        return (best + step).to(best).view_as(self.y)

    def next_length(self) -> Tensor | None:
        """The length of a first repetition by which this step's would have missed least, for the next step."""
        if len(self.tried) < 2:
            return self.length
        (first, miss), (second, later) = self.tried[:2]
        gone = (second - first).norm(dim=1) / miss.norm(dim=1).clamp(min=1e-30)
        turned = ((later - miss) * miss).sum(1) / miss.square().sum(1).clamp(min=1e-30)     # of the miss, along itself
        lengths = gone / (-turned).clamp(min=1e-30)
        return lengths.clamp(*LENGTHS)

    def rows(self, x: Tensor) -> Tensor:
        """[B, ...] as [B, N], or as [1, B N]."""
        return x.reshape(1 if self.joint else len(x), -1)
