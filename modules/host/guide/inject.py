"""A guide's residuals in a U-Net, made while its encoder runs."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...guide.networks import Walk

RESIZED = ("another node changes the size of features inside of the U-Net (Deep Shrink and the like); the guide's "
           "residuals are resized there.")
DROPPED = ("a ControlNet's residual does not have the size that the features have inside of the U-Net, and is left "
           "out, as it is without a guide.")


class Injection:
    """Walks of a guide beside the encoder of one call, each on rows of its own, as the control that the decoder reads.

    A patch behind every block of the encoder makes the residual of its skip: a fed guide gets the feature, and each
    residual the size of the skip that it will meet. Where another node changes that size, the host would drop the
    residual with a line in its log, or stretch one of a single cell over all.

    Args:
        walks: of rows of the batch; other rows get zeros.
        count: skips of the base.
        control: residuals of ControlNets, which add up with the guide's; lists align at their ends.
        factor: on the guide's residuals.
        told: gets RESIZED and DROPPED.

    Attributes:
        control: for the U-Net, which pops from the end of each list.
        squares: mean square of each residual, once the encoder has run.
    """

    def __init__(self, walks: Sequence[tuple[slice, Walk]], count: int, control: Mapping | None = None,
                 factor: float = 1.0, told: Callable[[str], None] | None = None):
        self.walks, self.count, self.factor, self.told = walks, count, factor, told
        own = {name: list(parts) for name, parts in (control or {}).items()}
        self.control = {"input": [], **own}
        for name, wanted in (("middle", 1), ("output", count)):
            there = own.get(name, [])
            self.control[name] = [None] * (wanted - len(there)) + there
        self.squares: list[Tensor] = []

    def options(self, options: Mapping) -> dict:
        """Options of the call with the patch, behind the encoder's other patches."""
        patches = dict(options.get("patches", {}))
        patches["input_block_patch"] = [*patches.get("input_block_patch", []), self.behind]
        return {**options, "patches": patches}

    def behind(self, h: Tensor, options: Mapping) -> Tensor:
        """The patch: h [B, C, H, W] is what the decoder will be given as this block's skip."""
        number = options["block"][1]
        if number >= self.count:
            return h
        feature = h.clone() if torch.is_grad_enabled() else h       # the decoder adds to h in place
        self.add("output", number - self.count, h, lambda walk, rows: walk.skip(number, feature[rows]))
        if number == self.count - 1:
            self.add("middle", -1, h, lambda walk, rows: walk.middle())
        return h

    def add(self, name: str, place: int, h: Tensor, residual_of: Callable[[Walk, slice], Tensor]) -> None:
        """A residual of every walk into the control, of the size of h."""
        parts = self.control[name]
        residual = self.whole(h, residual_of)
        self.squares.append(residual.detach().float().square().mean())
        there = parts[place]
        if there is not None and there.shape[1:] != residual.shape[1:]:
            if self.told is not None:
                self.told(DROPPED)
            there = None
        parts[place] = residual if there is None else there + residual

    def whole(self, h: Tensor, residual_of: Callable[[Walk, slice], Tensor]) -> Tensor:
        """Residuals of all rows, zero where none is made."""
        made = []
        for rows, walk in self.walks:
            residual = residual_of(walk, rows) * self.factor
            if residual.shape[2:] != h.shape[2:] and self.told is not None:
                self.told(RESIZED)
            made.append(sized(residual, h))
        if len(made) == 1 and len(made[0]) == len(h):
            return made[0]
        found = made[0].new_zeros(len(h), *made[0].shape[1:])
        for (rows, _), residual in zip(self.walks, made, strict=True):
            found[rows] = residual
        return found


def sized(residual: Tensor, h: Tensor) -> Tensor:
    """A residual of the size of h."""
    if residual.shape[2:] == h.shape[2:]:
        return residual
    return F.interpolate(residual.float(), h.shape[2:], mode="bilinear", align_corners=False).to(residual)
