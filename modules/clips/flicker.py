"""How a clip moves and flickers, in five figures and a curve (harivo.md 5)."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClipFigures:
    """Figures of one clip, in steps of 0..255.

    Attributes:
        d1: mean |v_(f+1) - v_f|.
        d2: mean |v_(f+1) - 2 v_f + v_(f-1)|; NaN for clips of two frames.
        r: d2 / d1, the flicker: about 1.7 for noise, 0 for even change.
        span: mean |v_last - v_first|: how much moves in all; small too for motion that returns.
        texture: mean |Laplacian| of the luma.
        curve: mean |v_(f+1) - v_f| of every pair of neighbours [F - 1].
    """
    d1: float
    d2: float
    r: float
    span: float
    texture: float
    curve: Tensor

    @property
    def worst_pair(self) -> tuple[int, int]:
        """The neighbours that differ most, counted from 0."""
        first = int(self.curve.argmax())
        return first, first + 1


def clip_figures(clip: Tensor) -> ClipFigures:
    """Figures of a clip [F, 3, H, W] in 0..1. Raises ValueError for fewer than two frames."""
    if clip.ndim != 4 or clip.shape[0] < 2 or clip.shape[1] != 3:
        raise ValueError(f"A clip of at least two RGB frames [F, 3, H, W] is needed; {list(clip.shape)} was given.")
    v = clip.float() * 255
    change = torch.diff(v, dim=0).abs()
    curve = change.mean(dim=(1, 2, 3))
    d1 = curve.mean().item()
    d2 = torch.diff(v, n=2, dim=0).abs().mean().item() if len(v) > 2 else float("nan")
    luma = (v * torch.tensor([0.299, 0.587, 0.114]).to(v).view(1, 3, 1, 1)).sum(1)
    inner = luma[:, 1:-1, 1:-1]
    laplacian = (luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:] - 4 * inner)
    return ClipFigures(d1=d1, d2=d2, r=d2 / d1 if d1 else 0.0, span=(v[-1] - v[0]).abs().mean().item(),
                       texture=laplacian.abs().mean().item(), curve=curve)
