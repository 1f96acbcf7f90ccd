"""Scores of single pictures, in words and as a map."""
from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..pictures.plot import INK, PAPER, as_image
from .report_picture import LITTLE, MUCH
from .trajectory import trajectory, trajectory_plot

NAMED, ROWS, COLUMNS = 4, 24, 16        # attributes a sentence names, of a map; pictures of a map
CELL, LEFT, TOP = 52, 150, 60
BELOW = "HCS: above 0 more of it than the mean reference picture, below 0 less."


def scores_text(scores: Tensor, names: Sequence[str], as_clip: bool) -> str:
    """A line a picture with its strongest attributes, or the drift of a clip."""
    if as_clip:
        return trajectory(scores, names).text()
    lines = []
    for number, row in enumerate(scores[:ROWS]):
        order = row.argsort(descending=True)[:NAMED].tolist()
        lines.append(f"picture {number + 1}: " + ", ".join(f"{names[column]} {float(row[column]):+.0f}"
                                                           for column in order))
    if len(scores) > ROWS:
        lines.append(f"and {len(scores) - ROWS} more, in the csv")
    return "\n".join([*lines, BELOW])


def scores_picture(scores: Tensor, names: Sequence[str], as_clip: bool) -> Tensor:
    """IMAGE [1, H, W, 3]: curves of a clip, or a map of the attributes that differ most between the pictures."""
    if as_clip:
        return trajectory_plot(trajectory(scores, names))
    shown = scores[:COLUMNS]
    order = shown.abs().amax(0).argsort(descending=True)[:ROWS].tolist()
    picture = Image.new("RGB", (LEFT + CELL * max(len(shown), 6) + 20, TOP + 26 * len(order) + 20), PAPER)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    pen.text((12, 8), "HCS of each picture: red more, blue less than the reference", fill=INK, font=font)
    highest = max(1.0, float(shown[:, order].abs().max()))
    for line, column in enumerate(order):
        y = TOP + 26 * line
        pen.text((LEFT - 8, y + 12), names[column][:18], fill=INK, font=font, anchor="rm")
        for number, row in enumerate(shown):
            value = float(row[column])
            share = abs(value) / highest
            colour = tuple(int((MUCH if value > 0 else LITTLE)[at:at + 2], 16) for at in (1, 3, 5))
            x = LEFT + CELL * number
            shade = tuple(round(255 - share * (255 - part)) for part in colour)
            pen.rectangle((x, y, x + CELL - 3, y + 23), fill=shade)
            pen.text((x + CELL / 2, y + 12), f"{value:.0f}", fill="white" if share > 0.6 else INK, font=font,
                     anchor="mm")
    for number in range(len(shown)):
        pen.text((LEFT + CELL * (number + 0.5), TOP - 6), str(number + 1), fill=INK, font=font, anchor="mb")
    return as_image(picture)
