"""Plots as pictures, drawn with what ComfyUI installs."""
from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

LEFT, RIGHT, TOP, BOTTOM = 64, 20, 44, 52       # pixels around the axes
PAPER, INK, FAINT = "white", "#222222", "#dddddd"
COLOURS = ("#2a6fdb", "#d1342f", "#2e9e4f", "#8a4fbf", "#c77d0a", "#0f8b8d", "#b23a76", "#555555")
TICKS = 4

Points = Sequence[tuple[float, float]]


def line_plot(series: Mapping[str, Points], title: str, x_label: str, width: int = 720, height: int = 340,
              marks: Mapping[str, float] | None = None, from_zero: bool = True) -> Image.Image:
    """Lines over one axis, from 0 upwards unless `from_zero` is off. `marks` are named upright lines; points that are
    not finite are left out.

    Raises ValueError if no series has a point.
    """
    series = {name: [point for point in points if all(map(math.isfinite, point))] for name, points in series.items()}
    points = [point for line in series.values() for point in line]
    if not points:
        raise ValueError("There is nothing to plot: every series is empty.")
    spans = (_span([x for x, _ in points] + list((marks or {}).values()), False),
             _span([y for _, y in points], from_zero))
    picture, font = Image.new("RGB", (width, height), PAPER), ImageFont.load_default(13)
    pen = ImageDraw.Draw(picture)

    def on_paper(x: float, y: float) -> tuple[float, float]:
        (left, right), (low, high) = spans
        return (LEFT + (width - LEFT - RIGHT) * (x - left) / (right - left),
                height - BOTTOM - (height - TOP - BOTTOM) * (y - low) / (high - low))

    for tick in range(TICKS + 1):
        x, y = (low + (high - low) * tick / TICKS for low, high in spans)
        across, along = on_paper(x, y)
        pen.line((LEFT, along, width - RIGHT, along), fill=FAINT)
        pen.text((LEFT - 6, along), f"{y:.3g}", fill=INK, font=font, anchor="rm")
        pen.text((across, height - BOTTOM + 6), f"{x:.3g}", fill=INK, font=font, anchor="mt")
    for name, x in (marks or {}).items():
        across = on_paper(x, spans[1][0])[0]
        pen.line((across, TOP, across, height - BOTTOM), fill=INK)
        pen.text((across + 4, TOP), f"{name} {x:g}", fill=INK, font=font)
    pen.text((LEFT, 8), title, fill=INK, font=font)
    pen.text((width - RIGHT, height - 8), x_label, fill=INK, font=font, anchor="rb")
    across = LEFT
    for (name, line), colour in zip(series.items(), itertools.cycle(COLOURS), strict=False):
        points = [on_paper(*point) for point in line]
        if len(points) > 1:
            pen.line(points, fill=colour, width=2)
        for x, y in points if len(points) <= 60 else []:
            pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
        pen.text((across, height - 8), name, fill=colour, font=font, anchor="lb")
        across += pen.textlength(name, font=font) + 16
    return picture


def matrix_plot(values: Sequence[Sequence[float]], names: Sequence[str], title: str, cell: int = 64) -> Image.Image:
    """A square table of numbers as shades, dark for high."""
    count, highest = len(values), max(max(row) for row in values) or 1.0
    picture = Image.new("RGB", (LEFT + cell * count + RIGHT, TOP + cell * count + 12), PAPER)
    font = ImageFont.load_default(13)
    pen = ImageDraw.Draw(picture)
    pen.text((LEFT, 4), title, fill=INK, font=font)
    for row, (name, numbers) in enumerate(zip(names, values, strict=True)):
        pen.text((LEFT - 6, TOP + cell * (row + 0.5)), name, fill=INK, font=font, anchor="rm")
        pen.text((LEFT + cell * (row + 0.5), TOP - 6), name, fill=INK, font=font, anchor="mb")
        for column, value in enumerate(numbers):
            share = value / highest
            shade = tuple(round(255 - share * (255 - part)) for part in (42, 111, 219))
            corner = (LEFT + cell * column, TOP + cell * row)
            pen.rectangle((*corner, corner[0] + cell - 2, corner[1] + cell - 2), fill=shade)
            pen.text((corner[0] + cell / 2, corner[1] + cell / 2), f"{value:.2f}", font=font, anchor="mm",
                     fill="white" if share > 0.6 else INK)
    return picture


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures below one another."""
    whole = Image.new("RGB", (max(picture.width for picture in pictures), sum(picture.height for picture in pictures)),
                      PAPER)
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    return whole


def as_image(picture: Image.Image) -> torch.Tensor:
    """The host's IMAGE [1, H, W, 3] in 0..1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).float()[None] / 255


def _span(values: Sequence[float], from_zero: bool) -> tuple[float, float]:
    """The ends of an axis, never equal."""
    low, high = min(values), max(values)
    low = min(0.0, low) if from_zero else low
    margin = 0.06 * (high - low) if from_zero else 0.0
    return low, high + margin if high > low else low + 1
