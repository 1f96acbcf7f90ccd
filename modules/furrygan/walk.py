"""A closed loop through several styles: an object that changes into others and comes back."""
from __future__ import annotations

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from .sampling import Styles


def closed_loop(anchors: Styles, frames: int, hold_background: bool = True) -> Styles:
    """Styles of a loop's frames through all anchors, smooth and as smooth where the last frame meets the first.

    A periodic cubic spline in W. The noise is the first anchor's in all frames, so that nothing flickers, and the
    background too if it is held. Raises ValueError for less than two anchors or frames.
    """
    if len(anchors) < 2 or frames < 2:
        raise ValueError(f"A loop wants two anchors and two frames at least; {len(anchors)} and {frames} were given.")

    def along(w: Tensor) -> Tensor:
        points = torch.cat([w, w[:1]]).double().numpy()
        spline = CubicSpline(np.arange(len(points)), points, bc_type="periodic")
        return torch.from_numpy(spline(np.arange(frames) * len(w) / frames)).float()

    background = (anchors.background[:1].expand(frames, -1, -1) if hold_background else along(anchors.background))
    return Styles(along(anchors.foreground), background.contiguous(), [anchors.noise[0]] * frames)
