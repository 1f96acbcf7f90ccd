"""The pictures of an injection, of a calibration of timesteps, and of a grid of contents and styles."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..pictures.frame_sheet import GREY, frame_sheet
from ..pictures.plot import as_image, line_plot, stacked

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


def grid_sheet(results: Tensor, styles: int, content_images: Tensor | None = None,
               style_images: Tensor | None = None) -> Tensor:
    """Results [N M, H, W, 3], a row for each content and a column for each of the M styles, as one IMAGE [1, h, w, 3].

    content_images [N, ...] go to the left of the rows, style_images [M, ...] above the columns, at the results' size.
    Raises ValueError for other numbers of those.
    """
    rows = list(results.split(styles))
    for name, images, count in (("content_images", content_images, len(rows)), ("style_images", style_images, styles)):
        if images is not None and len(images) != count:
            raise ValueError(f"{name} holds {len(images)} pictures; the grid has {count} of them. Connect the pictures "
                             "that were inverted, in their order, or none.")
    if style_images is not None:
        rows.insert(0, _fitted(style_images, results))
    if content_images is not None:
        left = list(_fitted(content_images, results).split(1))
        if style_images is not None:
            left.insert(0, torch.full_like(results[:1], GREY))
        rows = [torch.cat(pair) for pair in zip(left, rows, strict=True)]
    return frame_sheet(torch.cat(rows), len(rows[0]))


def _fitted(images: Tensor, like: Tensor) -> Tensor:
    """IMAGEs at the size of others."""
    pixels = images[..., :3].movedim(-1, 1).to(like)
    return F.interpolate(pixels, like.shape[1:3], mode="bilinear", antialias=True).clamp(0, 1).movedim(1, -1)
