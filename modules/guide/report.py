"""Pictures of what a guide does and learns."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..pictures.plot import as_image, line_plot, stacked


def residual_plot(rows: Sequence[Mapping[str, float]]) -> Tensor:
    """The size of the residuals at every step: IMAGE [1, H, W, 3]; a blank one where the guide did not act."""
    if not rows:
        return torch.ones(1, 64, 64, 3)
    points = [(float(number), row["residual"]) for number, row in enumerate(rows)]
    return as_image(line_plot({"residuals (root mean square)": points}, "what the guide adds", "call", height=240))


def training_plot(history: Sequence[Mapping[str, float]]) -> Tensor:
    """The fraction of guidance unexplained and the distance to real guidance over a training: IMAGE [1, H, W, 3]."""
    if not history:
        return torch.ones(1, 64, 64, 3)
    series = {name: [(float(number), found[name]) for number, found in enumerate(history)]
              for name in history[0] if name.startswith("FGU")}
    ratio = [(float(number), found["ratio"]) for number, found in enumerate(history)]
    return as_image(stacked([
        line_plot(series, "guidance unexplained, by scale (1 = no guide)", "sample", height=240),
        line_plot({"ratio": ratio}, "distance to real guidance over that of none", "sample", height=240)]))
