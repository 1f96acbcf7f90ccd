"""The picture of the node Clip Report: how much each pair of neighbouring frames differs, over the frame sheet."""
from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..pictures.frame_sheet import GAP, frame_sheet, to_image
from ..pictures.plot import FAINT, INK, PAPER, as_image, stacked
from .flicker import ClipFigures

NARROWEST, WIDEST, HEIGHT, MARGIN = 480, 1600, 240, 44      # pixels of the plot
LINE, WORST = "#2a6fdb", "#d1342f"


def report_text(figures: ClipFigures, fps: float) -> str:
    """The figures in lines, each with what it means."""
    first, second = figures.worst_pair
    flicker, of_change = ": a clip of two frames has none", ""
    if len(figures.curve) > 1:
        flicker = f" r = {figures.r:.2f} (d2 / d1; noise about 1.7, even motion near 0)"
        of_change = f", of the change d2 = {figures.d2:.2f}"
    return "\n".join([
        f"flicker{flicker}",
        f"change d1 = {figures.d1:.2f}{of_change} (mean over pixels, 0..255)",
        f"motion span = {figures.span:.2f} (first against last frame, 0..255)",
        f"texture = {figures.texture:.2f} (mean absolute Laplacian of the luma)",
        f"most different neighbours: frames {first} and {second} ({figures.curve.max():.2f}), at {second / fps:.2f} s"])


def report_picture(clip: Tensor, figures: ClipFigures, columns: int) -> Tensor:
    """Plot and frame sheet [1, H, W, 3] of a clip [F, H, W, 3] in 0..1; the worst pair is framed in red."""
    sheet = to_image(frame_sheet(clip[..., :3], columns)[0])
    height, width = (size + GAP for size in clip.shape[1:3])
    pen = ImageDraw.Draw(sheet)
    for frame in figures.worst_pair:
        row, column = divmod(frame, min(columns, len(clip)))
        left, top = column * width, row * height
        pen.rectangle((left, top, left + width - GAP - 1, top + height - GAP - 1), outline=WORST, width=2)
    plot = draw_plot(figures, min(WIDEST, max(NARROWEST, sheet.width)))
    if sheet.width > plot.width:        # enlarged, its words stay readable where the whole picture is shown small
        plot = plot.resize((sheet.width, round(HEIGHT * sheet.width / plot.width)), Image.Resampling.LANCZOS)
    return as_image(stacked([plot, sheet]))


def draw_plot(figures: ClipFigures, width: int) -> Image.Image:
    """The curve of differences over the pairs of neighbours, from 0 upwards."""
    plot, font = Image.new("RGB", (width, HEIGHT), PAPER), ImageFont.load_default(14)
    pen = ImageDraw.Draw(plot)
    curve, top = figures.curve.tolist(), max(1.0, 1.15 * figures.curve.max().item())
    left, right, low, high = MARGIN, width - MARGIN // 2, HEIGHT - MARGIN, MARGIN
    for tick in range(5):
        y = low - (low - high) * tick / 4
        pen.line((left, y, right, y), fill=FAINT)
        pen.text((left - 6, y), f"{top * tick / 4:.3g}", fill=INK, font=font, anchor="rm")
    points = [(left + (right - left) * (pair + 0.5) / len(curve), low - (low - high) * value / top)
              for pair, value in enumerate(curve)]
    pen.line(points, fill=LINE, width=2)
    for pair, (x, y) in enumerate(points):
        worst = pair == figures.worst_pair[0]
        size = 5 if worst else 3
        pen.ellipse((x - size, y - size, x + size, y + size), fill=WORST if worst else LINE)
        if len(points) <= 40 or pair % 5 == 0:
            pen.text((x, low + 8), str(pair), fill=INK, font=font, anchor="mt")
    flicker = f"   r {figures.r:.2f}" if len(curve) > 1 else ""
    pen.text((left, 10), f"mean |difference| of frame f and f + 1, 0..255   {flicker}   d1 {figures.d1:.2f}   span "
                         f"{figures.span:.2f}", fill=INK, font=font)
    return plot
