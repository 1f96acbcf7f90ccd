"""Where in a clip a motion is learned: everywhere, from the subject alone, or from all but the subject
(customize_a_video.md 9, masked loss).
"""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .meters import small, subject_weights

WHOLE, SUBJECT, REST = "whole frame", "the subject alone", "all but the subject"
FOCUSES = (WHOLE, SUBJECT, REST)
EDGE = 5                    # width of an automatic mask around what moves, in the pixels that it is made at


def subject_mask(pixels: Tensor) -> Tensor:
    """[F, 64, 64] of 0 and 1: what differs from the median frame of a clip [F, 3, H, W] uint8, and a little more."""
    away = subject_weights(small(pixels.movedim(1, -1) / 255))
    near = (away > 0).float()[:, None]
    return functional.max_pool2d(near, EDGE, 1, EDGE // 2)[:, 0]


def focus_weights(mask: Tensor, size: tuple[int, int], focus: str, clip: str = "the clip") -> Tensor:
    """Weights [F, 1, h, w] of a loss over latents of that size, with mean 1 over the clip.

    mask [F, H, W] in 0..1: 1 where the subject is. Raises ValueError for one that leaves nothing to learn from.
    """
    weights = functional.interpolate(mask.float()[:, None].clamp(0, 1), size, mode="area")
    if focus == REST:
        weights = 1 - weights
    if float(weights.mean()) < 1e-3:
        what = "nothing" if focus == SUBJECT else "everything"
        raise ValueError(f"The mask marks {what} in {clip} as the subject, so that there is nothing left to learn "
                         f"from. Connect a mask, or set learn_from to {WHOLE}.")
    return weights / weights.mean()


class Focus:
    """The weights of a batch's loss.

    Args:
        focus: one of FOCUSES.
        masks: of each clip [F, H, W], 1 where the subject is.
        size: (h, w) of the latents.

    Raises ValueError, see `focus_weights`.
    """

    def __init__(self, focus: str, masks: list[Tensor], size: tuple[int, int]):
        self.weights = [focus_weights(mask, size, focus, f"clip {number}") for number, mask in enumerate(masks, 1)]

    def __call__(self, batch) -> Tensor:
        """[B, F, 1, h, w] for a `ClipBatch`."""
        return torch.stack([self.weights[clip][frames] for clip, frames in zip(batch.clips, batch.drawn, strict=True)])


def masks_for(mask: Tensor, clips: int, frames: int) -> list[Tensor]:
    """A user's MASK [N, H, W] for clips of so many frames: one for all frames, for each of a clip, or for each of all
    clips. Raises ValueError for another number.
    """
    mask = mask.reshape(-1, *mask.shape[-2:])
    if len(mask) == 1:
        return [mask.expand(frames, -1, -1)] * clips
    if len(mask) == frames:
        return [mask] * clips
    if len(mask) == clips * frames:
        return list(mask.split(frames))
    raise ValueError(f"The mask has {len(mask)} frames; expected 1, {frames} (for each frame of a clip) or "
                     f"{clips * frames} (for each frame of all {clips} clips).")
