"""Attributes over the frames of a clip: their curves, how they drift, how they flicker."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..pictures.plot import as_image, line_plot
from ..seeding import stream
from .density import FLOOR
from .divergence import gaussian_1d

SHOWN = 5               # curves of a plot
LEAST = 6               # frames of which a third is a set
ORDERS = 20             # random orders of the frames, for the floor


@dataclass(frozen=True)
class Trajectory:
    """Scores [F, M] of a clip's frames.

    Attributes:
        flicker: [M] mean |change| from frame to frame, in HCS.
        drift: [M] last third minus first third, in HCS.
        temporal_sad: [M] divergence of the last third from the first, one normal each: frames are few and alike.
        floor: mean temporal SaD of the same frames in random order.
    """
    names: tuple[str, ...]
    scores: Tensor
    flicker: Tensor
    drift: Tensor
    temporal_sad: Tensor
    floor: float

    def text(self) -> str:
        """In words."""
        order = self.drift.abs().argsort(descending=True)[:3].tolist()
        unsteady = self.flicker.argsort(descending=True)[:3].tolist()
        return "\n".join([
            f"{len(self.scores)} frames; drifts most: "
            + ", ".join(f"{self.names[row]} {float(self.drift[row]):+.1f}" for row in order) + " (last third minus "
            "first, HCS)",
            "flickers most: " + ", ".join(f"{self.names[row]} {float(self.flicker[row]):.1f}" for row in unsteady)
            + " (mean change from frame to frame, HCS)",
            f"temporal SaD {float(self.temporal_sad.mean()):.0f} (the same frames in random order: {self.floor:.0f}): "
            "how far the end of the clip lies from its beginning"])


def trajectory(scores: Tensor, names: Sequence[str]) -> Trajectory:
    """Of scores [F, M]. Raises ValueError for fewer than six frames: a third of them is no set."""
    if len(scores) < LEAST:
        raise ValueError(f"The clip has {len(scores)} frames; curves of attributes need at least {LEAST}. Give a "
                         "longer clip, or switch as_clip off to score single pictures.")
    third, scores = len(scores) // 3, scores.double()
    first, last = scores[:third], scores[-third:]
    orders = (torch.randperm(len(scores), generator=stream("frames", number)) for number in range(ORDERS))
    floor = torch.stack([_apart(scores[order][:third], scores[order][-third:]).mean() for order in orders]).median()
    return Trajectory(tuple(names), scores, scores.diff(dim=0).abs().mean(0), last.mean(0) - first.mean(0),
                      _apart(first, last), float(floor))


def _apart(first: Tensor, last: Tensor) -> Tensor:
    """[M] divergence of two parts of a clip; 0 where nothing moves."""
    moves = (first.std(0) > FLOOR) | (last.std(0) > FLOOR) | ((last.mean(0) - first.mean(0)).abs() > FLOOR)
    return gaussian_1d(first, last).kl.where(moves, 0.0)


def trajectory_plot(found: Trajectory) -> Tensor:
    """The curves that move most, as IMAGE [1, H, W, 3]."""
    moving = (found.scores.amax(0) - found.scores.amin(0)).argsort(descending=True)[:SHOWN].tolist()
    series = {found.names[row]: list(enumerate(found.scores[:, row].tolist())) for row in moving}
    title = "HCS of each frame: the attributes that change most (0 is the mean reference picture)"
    return as_image(line_plot(series, title, "frame", width=960, height=420, from_zero=False))


def score_table(scores: Tensor, names: Sequence[str], pictures: Sequence[str]) -> str:
    """CSV: a row a picture, a column an attribute."""
    lines = [",".join(["picture", *(name.replace(",", " ") for name in names)])]
    lines += [",".join([picture.replace(",", " "), *(f"{value:.2f}" for value in row)])
              for picture, row in zip(pictures, torch.as_tensor(scores).tolist(), strict=True)]
    return "\n".join(lines) + "\n"
