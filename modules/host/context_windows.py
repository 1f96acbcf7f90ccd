"""The host's context windows, which cut a long clip along the batch: the frames of a call, and our copy of them."""
from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import replace

import torch
from torch import Tensor

TOLERANCE = 1e-4            # relative, within which the host takes two noise levels for the same


def frames_of_call(rows: int, options: Mapping) -> tuple[int, ...]:
    """The frame number of each of the `rows` rows of a chunk of a U-Net call.

    Inside a context window of the host, or of AnimateDiff-Evolved, these are the window's frames of the whole clip;
    hosts may put one more in front of them, the anchor. Elsewhere they are 0 to rows - 1.

    Raises ValueError when the call has another number of rows than the window has frames.
    """
    frames = window_frames(options)
    if frames is None:
        return tuple(range(rows))
    if len(frames) != rows:
        raise ValueError(f"The U-Net was called with {rows} frames inside a context window of {len(frames)} (frames "
                         f"{', '.join(map(str, frames))} of the clip), so it cannot be told which frame is which. "
                         "Another node changes the batch inside the window; take it or the context windows away.")
    return frames


def window_frames(options: Mapping) -> tuple[int, ...] | None:
    """The frames of the window at hand, in the order of its rows, from transformer_options; None outside of windows."""
    window = options.get("context_window")
    if window is None:
        frames = (options.get("ad_params") or {}).get("sub_idxs")
        return None if frames is None else tuple(frames)
    if getattr(window, "dim", 0) != 0:              # along another side of the latents: the batch is whole
        return None
    anchor = getattr(window, "causal_anchor_index", None)
    return (*(() if anchor is None or anchor < 0 else (anchor,)), *window.index_list)


def window_length(model_options: Mapping, batch: int) -> int:
    """Frames that the U-Net sees at once in a context window, the anchor counted; 0 if the batch is sampled whole."""
    handler = model_options.get("context_handler")
    length = getattr(handler, "context_length", 0) if getattr(handler, "dim", None) == 0 else 0
    return length + bool(getattr(handler, "causal_window_fix", False)) if length and batch > length else 0


def windows_over_batch(handler):
    """A copy of the host's context handler for frames as the batch, where the frames of a window are a clip.

    - The host looks for its step by comparing its list of noise levels with the batch's, whose lengths differ then. A
      sampler may also evaluate between two steps: such a call keeps the windows of the last whole step.
    - Of a conditioning with a row for every frame each window gets its own rows, not the first ones.
    - No anchor: newer hosts put the frame before a window in front of it, which is right for causal video models and
      one frame too many here (`causal_window_fix`).
    - A last window that is shorter than the others is moved back until it is as long.
    """
    handler, kind = copy(handler), type(handler)
    handler._step = 0                   # not that of an earlier run of the same MODEL

    def set_step(timestep: Tensor, model_options: Mapping) -> None:
        levels = model_options["transformer_options"]["sample_sigmas"]
        if torch.isclose(levels, timestep[:1].to(levels), rtol=TOLERANCE).any():
            kind.set_step(handler, timestep[:1], model_options)

    def get_resized_cond(conds, x, window, *args, **kwargs):
        resized = kind.get_resized_cond(handler, conds, x, window, *args, **kwargs)
        return resized and [rows_of_window(cond, len(x), window) for cond in resized]

    handler.set_step = set_step
    if handler.dim == 0:
        handler.get_resized_cond = get_resized_cond
        if hasattr(handler, "context_schedule"):
            handler.context_schedule = without_short_windows(handler.context_schedule)
        if hasattr(handler, "causal_window_fix"):
            handler.causal_window_fix = False
    return handler


def rows_of_window(cond: Mapping, frames: int, window) -> dict:
    """A conditioning with those rows of its inputs to the U-Net that belong to a window, where it has one a frame."""
    def rows(value):
        found = getattr(value, "cond", None)
        if not isinstance(found, Tensor) or len(found) != frames:
            return value
        return value._copy_with(window.get_tensor(found, found.device))

    return {**cond, "model_conds": {name: rows(value) for name, value in cond["model_conds"].items()}}


def without_short_windows(schedule):
    """A copy of the host's context schedule whose windows all have the full length."""
    def windows(frames: int, handler, *args, **kwargs) -> list[list[int]]:
        length = min(handler.context_length, frames)
        return [window if len(window) >= length else moved_back(window, length, frames)
                for window in schedule.func(frames, handler, *args, **kwargs)]

    return replace(schedule, func=windows)


def moved_back(window: list[int], length: int, frames: int) -> list[int]:
    """`length` frames in a row out of 0 to frames - 1 that hold a shorter row, whose end stays where it can."""
    start = max(0, min(window[-1], frames - 1) - length + 1)
    return list(range(start, start + length))
