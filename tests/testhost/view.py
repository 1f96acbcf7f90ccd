"""What a person sees of a workflow that has just been opened: where the page lets the graph be seen, and at which zoom.

Measured on page 1.32.9 in a window of 1600x900: over the canvas lie tabs, the workflow's name and the Run button at the
top, the side bar on the left, the minimap on the lower right.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence

WINDOW = (1600, 900)
FREE = (70, 140, 1580, 888)             # left, top, right, bottom on the screen
MINIMAP = (1335, 635, 1600, 900)
ZOOMS = (0.6, 0.8)                      # below 0.57 the page draws no text in nodes; above 0.8 nothing is gained
TITLE_BAR = 30


def box_of(nodes: Sequence[Mapping]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of some nodes, title bars included."""
    return (min(node["pos"][0] for node in nodes), min(node["pos"][1] - TITLE_BAR for node in nodes),
            max(node["pos"][0] + node["size"][0] for node in nodes),
            max(node["pos"][1] + node["size"][1] for node in nodes))


def fitting(box: Sequence[float]) -> float:
    """The zoom at which a box fills the free part of the window, at most the largest of ZOOMS."""
    wide, high = (FREE[2] - FREE[0]) / (box[2] - box[0]), (FREE[3] - FREE[1]) / (box[3] - box[1])
    return min(wide, high, ZOOMS[1])


def is_seen(box: Sequence[float], scale: float, offset: Sequence[float]) -> bool:
    """Whether a box of the graph lies in the window with nothing of the page over it."""
    left, top, right, bottom = ((box[side] + offset[side % 2]) * scale for side in range(4))
    inside = left >= FREE[0] - 1 and top >= FREE[1] - 1 and right <= FREE[2] + 1 and bottom <= FREE[3] + 1
    return inside and not (right > MINIMAP[0] and bottom > MINIMAP[1])


def opening_view(nodes: Sequence[Mapping], frames: Sequence[Mapping], wanted: Sequence[Mapping]) -> dict:
    """The page's `ds`: all nodes and frames if they can be read then, else from the upper left one what is wanted.

    Raises ValueError if the wanted nodes do not fit at the least zoom.
    """
    boxes = [box_of([node]) for node in nodes] + [
        (left, top, left + wide, top + high) for left, top, wide, high in (frame["bounding"] for frame in frames)]
    everything = [side(box[number] for box in boxes) for number, side in enumerate((min, min, max, max))]
    scale = fitting(everything)
    if scale < ZOOMS[0]:
        scale = max(ZOOMS[0], fitting((*everything[:2], *box_of(wanted)[2:])))
    scale = int(scale * 100) / 100
    offset = [round(FREE[axis] / scale - everything[axis]) for axis in (0, 1)]
    hidden = [node.get("title", node["type"]) for node in wanted if not is_seen(box_of([node]), scale, offset)]
    if hidden:
        raise ValueError(f"not seen when the workflow is opened, at zoom {scale}: {', '.join(hidden)}. Move the node's "
                         "stage to the left or up.")
    return {"scale": scale, "offset": offset}
