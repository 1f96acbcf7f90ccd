"""How much an edit changes what it should, and how much else: from the scores of the same pictures before and after."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Disentanglement:
    """Of one edit of N pictures, in HCS.

    Attributes:
        shift: [M] mean change of each attribute.
        target: index of the attribute meant, or that changed most.
        purity: |shift of the target| / (that + mean |shift| of all others): 1 nothing else, .5 as much as another.
    """
    shift: Tensor
    target: int
    purity: float


def disentanglement(before: Tensor, after: Tensor, target: int | None = None, groups: Sequence[str] = ()
                    ) -> Disentanglement:
    """Of scores [N, M] of pictures before and after an edit, in the same order.

    Args:
        target: the attribute that the edit means; None: the one that changed most.
        groups: of the attributes; those of the target's own group exclude it, so they move with it and do not count.

    Raises ValueError for sets of other sizes, or where no other attribute is left to compare with.
    """
    if before.shape != after.shape:
        raise ValueError(f"Before and after an edit are the same pictures; {list(before.shape)} and "
                         f"{list(after.shape)} scores were given.")
    shift = (after - before).double().mean(0)
    target = int(shift.abs().argmax()) if target is None else target
    others = [row for row in range(len(shift)) if row != target
              and not (groups and groups[row] and groups[row] == groups[target])]
    if not others:
        raise ValueError("There is no attribute besides the target's group. Add attributes that the edit should leave "
                         "alone.")
    wanted, rest = float(shift[target].abs()), float(shift[others].abs().mean())
    return Disentanglement(shift, target, wanted / (wanted + rest) if wanted + rest else 0.0)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's, with mean ranks for equal numbers; nan where one does not vary."""
    from scipy.stats import rankdata
    return float(torch.corrcoef(torch.from_numpy(rankdata([first, second], axis=1)))[0, 1])
