"""A comparison as one picture that is read in ten seconds: bars of attributes, the worst pairs, extreme pictures."""
from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..pictures.frame_sheet import to_image
from ..pictures.plot import FAINT, INK, PAPER, as_image, stacked
from .compare import Comparison

WIDTH, MARGIN, ROW, BARS, NAMES = 1280, 24, 30, 14, 150
MUCH, LITTLE, CHANCE = "#d1342f", "#2a6fdb", "#b9bec6"      # too much, too little, not told from chance
CELLS = 9                   # attributes of the map of pairs
CELL, TILE = 52, 96
TITLE, TEXT, SMALL = 22, 16, 13


@dataclass(frozen=True)
class Extremes:
    """Pictures [S, S, 3] uint8 of a generated set with most and least of an attribute."""

    name: str
    most: Sequence[Tensor]
    least: Sequence[Tensor]


def report_picture(comparisons: Mapping[str, Comparison], sentence: str, extremes: Sequence[Extremes]) -> Tensor:
    """IMAGE [1, H, W, 3]: the sentence, then for each generated set bars and a map of pairs, then extreme pictures."""
    parts = [heading(sentence)]
    for name, found in comparisons.items():
        parts.append(_beside(bars(name, found), pair_map(found) if len(found.pairs) else None))
    if any(shown.most for shown in extremes):
        parts.append(strip(extremes))
    return as_image(stacked(parts))


def heading(sentence: str) -> Image.Image:
    """The conclusion, large."""
    lines = textwrap.wrap(sentence, 105)
    picture = Image.new("RGB", (WIDTH, 2 * MARGIN + 32 * len(lines)), PAPER)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(TITLE)
    for number, line in enumerate(lines):
        pen.text((MARGIN, MARGIN + 32 * number), line, fill=INK, font=font)
    return picture


def bars(name: str, found: Comparison) -> Image.Image:
    """Attributes ranked by SaD. A bar's colour tells its direction, a mark the score that chance alone would give."""
    order = found.sad.kl.argsort(descending=True).tolist()[:BARS]
    width, height = WIDTH - 2 * MARGIN - CELL * CELLS - NAMES, ROW * len(order) + 120
    picture = Image.new("RGB", (width, height), PAPER)
    pen, font, small = ImageDraw.Draw(picture), ImageFont.load_default(TEXT), ImageFont.load_default(SMALL)
    floor = f", chance {float(found.null.floor[found.counted].mean()):.1f}" if found.null is not None else ""
    pen.text((MARGIN, 4), f"{name}: SaD {found.mean_sad:.1f}{floor}", fill=INK, font=font)
    legend = [(MUCH, "too much of it"), (LITTLE, "too little"), (CHANCE, "no more than chance")]
    across = MARGIN
    for colour, words in legend if found.null is not None else legend[:2]:
        pen.rectangle((across, 34, across + 12, 46), fill=colour)
        pen.text((across + 18, 40), words, fill=INK, font=small, anchor="lm")
        across += 30 + pen.textlength(words, font=small)
    left, right = MARGIN + NAMES, width - 70
    top = max(float(found.sad.kl[order[0]]), 1e-6)
    reliable = set(found.reliable) if found.null is not None else set(range(len(found.names)))
    for place, row in enumerate(order):
        y, value = 62 + ROW * place, float(found.sad.kl[row])
        much = float(found.difference[row]) > 0
        colour = (MUCH if much else LITTLE) if row in reliable else CHANCE
        pen.text((left - 10, y + ROW // 2), _short(found.names[row]), fill=INK, font=font, anchor="rm")
        pen.rectangle((left, y + 4, left + max(1, (right - left) * value / top), y + ROW - 6), fill=colour)
        pen.text((left + (right - left) * value / top + 6, y + ROW // 2), f"{value:.1f}", fill=INK, font=small,
                 anchor="lm")
        if found.null is not None:
            at = left + (right - left) * min(1.0, float(found.null.floor[row]) / top)
            pen.line((at, y + 1, at, y + ROW - 3), fill=INK, width=2)
    below = f"the {len(order)} furthest of {len(found.names)} attributes"
    below += "; upright line: what chance alone gives" if found.null is not None else ""
    pen.text((MARGIN, height - 40), below, fill=INK, font=small)
    return picture


def pair_map(found: Comparison) -> Image.Image:
    """PaD among the attributes of the worst pairs, dark for far."""
    order, chosen = found.pad.kl.argsort(descending=True).tolist(), []
    for row in order:
        for attribute in found.pairs[row].tolist():
            if attribute not in chosen and len(chosen) < CELLS:
                chosen.append(attribute)
    values = {tuple(sorted(pair)): float(value) for pair, value in zip(found.pairs.tolist(), found.pad.kl, strict=True)}
    side, left, top = CELL * len(chosen), NAMES - 20, 130
    picture = Image.new("RGB", (left + side + MARGIN, top + side + 50), PAPER)
    pen, font, small = ImageDraw.Draw(picture), ImageFont.load_default(TEXT), ImageFont.load_default(SMALL)
    pen.text((0, 4), f"worst pairs: PaD {found.mean_pad:.1f}", fill=INK, font=font)
    highest = max((values.get(pair, 0.0) for pair in combinations(sorted(chosen), 2)), default=0.0) or 1.0
    for i, first in enumerate(chosen):
        pen.text((left - 8, top + CELL * i + CELL // 2), _short(found.names[first], 14), fill=INK, font=small,
                 anchor="rm")
        _upright(picture, (left + CELL * i + CELL // 2, top - 6), _short(found.names[first], 12), small)
        for j, second in enumerate(chosen):
            box = (left + CELL * j, top + CELL * i, left + CELL * j + CELL - 3, top + CELL * i + CELL - 3)
            value = values.get(tuple(sorted((first, second))))
            share = 0 if value is None else value / highest
            pen.rectangle(box, fill=tuple(round(255 - share * (255 - part)) for part in (138, 79, 191))
                          if value is not None else FAINT)
            if value is not None:
                pen.text((box[0] + CELL / 2 - 2, box[1] + CELL / 2 - 2), f"{value:.0f}", font=small, anchor="mm",
                         fill="white" if share > 0.55 else INK)
    return picture


def strip(extremes: Sequence[Extremes]) -> Image.Image:
    """Rows of pictures with most and least of an attribute."""
    height = (TILE + 14) * len(extremes) + 40
    picture = Image.new("RGB", (WIDTH, height), PAPER)
    pen, font, small = ImageDraw.Draw(picture), ImageFont.load_default(TEXT), ImageFont.load_default(SMALL)
    middle = MARGIN + NAMES + (TILE + 6) * 5
    pen.text((MARGIN + NAMES, 4), "most of it", fill=INK, font=small)
    pen.text((middle, 4), "least of it", fill=INK, font=small)
    for number, shown in enumerate(extremes):
        y = 26 + (TILE + 14) * number
        pen.text((MARGIN, y + TILE // 2), _short(shown.name), fill=INK, font=font, anchor="lm")
        for left, tiles in ((MARGIN + NAMES, shown.most), (middle, shown.least)):
            for column, tile in enumerate(tiles):
                picture.paste(to_image(tile.float() / 255).resize((TILE, TILE)), (left + (TILE + 6) * column, y))
    return picture


def _beside(left: Image.Image, right: Image.Image | None) -> Image.Image:
    whole = Image.new("RGB", (WIDTH, max(left.height, right.height if right else 0)), PAPER)
    whole.paste(left, (0, 0))
    if right:
        whole.paste(right, (left.width + 10, 0))
    return whole


def _short(name: str, most: int = 17) -> str:
    return name if len(name) <= most else name[:most - 1] + "…"


def _upright(picture: Image.Image, foot: tuple[int, int], words: str, font) -> None:
    """Text that runs upwards from a point."""
    length, height = round(font.getlength(words)) + 2, 18
    turned = Image.new("RGB", (length, height), PAPER)
    ImageDraw.Draw(turned).text((0, height // 2), words, fill=INK, font=font, anchor="lm")
    turned = turned.rotate(90, expand=True)
    picture.paste(turned, (foot[0] - height // 2, foot[1] - length))
