"""Edits judged by the attribute metrics: of pairs of pictures, and of the directions of a latent basis."""
from __future__ import annotations

from torch import Tensor

from ...metrics.disentanglement import Disentanglement, disentanglement
from ...metrics.hcs import Ruler
from .clip_pair import ClipPair
from .report import scores_of_images

NAMED = 5       # attributes that a report names


def edit_purity(before: Tensor, after: Tensor, pair: ClipPair, ruler: Ruler, target: str) -> tuple[float, str]:
    """(purity, report) of the same IMAGEs before and after. Raises ValueError for a target that is no attribute."""
    if len(before) != len(after):
        raise ValueError(f"{len(before)} pictures before and {len(after)} after the edit were given; expected the same "
                         "pictures, in the same order.")
    if target and target not in ruler.names:
        raise ValueError(f"The target {target!r} is not among the attributes: {', '.join(ruler.names)}.")
    found = disentanglement(*(scores_of_images(images, pair, ruler) for images in (before, after)),
                            ruler.names.index(target) if target else None, ruler.groups)
    order = found.shift.abs().argsort(descending=True)[:NAMED].tolist()
    moved = ", ".join(f"{ruler.names[row]} {float(found.shift[row]):+.1f}" for row in order)
    return found.purity, (f"{ruler.names[found.target]} {float(found.shift[found.target]):+.1f} HCS, purity "
                          f"{found.purity:.2f} (1: nothing outside of its group moves; .5: all as much)\nmoves most: "
                          f"{moved}")


def direction_purities(edits: Tensor, directions: int, pair: ClipPair, ruler: Ruler) -> list[Disentanglement]:
    """Of each direction, from its first picture to its last; edits [N, H, W, 3] come together for each direction.

    Raises ValueError where they do not.
    """
    count, rest = divmod(len(edits), directions)
    if rest or count < 2:
        raise ValueError(f"{len(edits)} edited pictures are no {directions} rows of two or more. Connect the decoded "
                         "pictures of Edit along Basis with direction -1.")
    scores = scores_of_images(edits[..., :3], pair, ruler).view(directions, count, -1)
    return [disentanglement(row[:1], row[-1:], groups=ruler.groups) for row in scores]


def direction_lines(edits: Tensor, directions: int, pair: ClipPair, ruler: Ruler) -> str:
    """`direction_purities` in words."""
    found = direction_purities(edits, directions, pair, ruler)
    return "what each direction changes most, from its first picture to its last (purity): " + ", ".join(
        f"{number} {ruler.names[one.target]} {float(one.shift[one.target]):+.0f} ({one.purity:.2f})"
        for number, one in enumerate(found))
