"""The pictures of an injection and of a calibration of timesteps."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..plot import as_image, line_plot, stacked

PLOTS = {"angle": "angle between h and content, degrees", "ratio": "|h| / |first skip|",
         "dose": "how far the injection moved the latent, as a share of it"}


def injection_plot(rows: Sequence[Mapping[str, float]]) -> Tensor:
    """One plot under another of what each step of an injection did: IMAGE [1, H, W, 3]; a blank one without rows."""
    plots = []
    for name, title in PLOTS.items():
        points = [(row["t"], row[name]) for row in rows if name in row and (name != "dose" or row[name])]
        if points:
            plots.append(line_plot({name: points}, title, "timestep (sampling goes from right to left)", height=240))
    return as_image(stacked(plots)) if plots else torch.ones(1, 64, 64, 3)


def timestep_plot(found) -> Tensor:
    """The distances of a calibration over timesteps, with t_edit and t_boost: IMAGE [1, H, W, 3]."""
    series = {"predicted picture": list(zip(found.times, found.predicted.tolist(), strict=True)),
              "noisy picture": list(zip(found.times, found.noisy.tolist(), strict=True))}
    return as_image(line_plot(series, "distance to the picture", "timestep",
                              marks={"t_edit": found.t_edit, "t_boost": found.t_boost}))
