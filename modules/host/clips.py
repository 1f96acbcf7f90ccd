"""A batch of the host as clips, and back; and whether a MODEL takes it as clips."""
from __future__ import annotations

from torch import Tensor

MOTION = "frozen_motion"        # under this key a MODEL has a motion module, and a run its settings


def has_motion_module(model) -> bool:
    """Whether a MODEL carries a motion module, so that rows of a batch are frames of clips."""
    return model.get_injections(MOTION) is not None


def clips_of(x: Tensor, frames_per_clip: int) -> Tensor:
    """[(b f), C, H, W] -> [b, f, C, H, W]; latents of video models [b, C, f, H, W] likewise.

    `frames_per_clip` 0 takes the whole batch as one clip. Raises ValueError for a batch that is no whole clips.
    """
    if x.ndim == 5:
        return x.transpose(1, 2)
    frames = frames_per_clip or len(x)
    if len(x) % frames:
        raise ValueError(f"The batch has {len(x)} frames and frames_per_clip is {frames}: {len(x)} is not a multiple "
                         f"of {frames}. Change the batch size, or set frames_per_clip to 0 for one clip.")
    return x.unflatten(0, (-1, frames))


def rows_of(clips: Tensor, like: Tensor) -> Tensor:
    """The inverse of `clips_of`, to the layout of `like`."""
    return clips.transpose(1, 2) if like.ndim == 5 else clips.flatten(0, 1)
