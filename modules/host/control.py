"""A ControlNet on chosen frames of a clip, each with its own strength."""
from __future__ import annotations

from collections.abc import Sequence

import comfy.controlnet
import torch

from .context_windows import frames_of_call


def parse_frames(text: str, count: int, name: str = "frames") -> list[int]:
    """Frame numbers such as "0, 7, -1" for a clip of `count` frames; negative ones count from the end.

    `name` is the input's, for the error. Raises ValueError on anything else, on a frame outside the clip, and on one
    named twice.
    """
    try:
        given = [int(part) for part in text.replace(";", ",").split(",") if part.strip()]
    except ValueError:
        given = []
    frames = [frame + count if frame < 0 else frame for frame in given]
    if not frames or any(not 0 <= frame < count for frame in frames) or len(set(frames)) != len(frames):
        raise ValueError(f"{name} is {text!r}; the clip has {count} frames, so it must list different numbers between "
                         f"{-count} and {count - 1}, for example 0, -1 for the first and the last frame.")
    return frames


def parse_strengths(text: str, count: int) -> list[float]:
    """One strength for all of `count` frames, or one for each. Raises ValueError otherwise."""
    try:
        given = [float(part) for part in text.replace(";", ",").split(",") if part.strip()]
    except ValueError:
        given = []
    if len(given) not in (1, count):
        raise ValueError(f"strengths is {text!r}; give one number for all frames, or {count} numbers, one for each "
                         "frame that is listed, for example 1.0, 0.5")
    return given * count if len(given) == 1 else given


class FrameControl(comfy.controlnet.ControlBase):
    """Runs another ControlNet and lets it act on some frames only.

    Frames are absolute: inside the host's context windows each window gets the hints of its own frames. `hints`
    [K, C, H, W] belong to the K frames of `strengths`, in its order.
    """

    def __init__(self, inner: comfy.controlnet.ControlBase, hints: torch.Tensor, strengths: dict[int, float],
                 frames: int):
        super().__init__()
        self.inner, self.hints, self.strengths, self.frames = inner, hints, strengths, frames
        self.shown: tuple | None = None     # the frames whose hints the inner ControlNet holds, and how many times

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        previous = None
        if self.previous_controlnet is not None:
            previous = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number, transformer_options)
        rows = x_noisy.shape[0] // batched_number
        numbers = [frame % self.frames for frame in frames_of_call(rows, transformer_options)]
        strengths = torch.tensor([self.strengths.get(number, 0.0) for number in numbers])
        if not strengths.any():
            return previous
        self.show(tuple(numbers), batched_number)
        control = self.inner.get_control(x_noisy, t, cond, batched_number, transformer_options)
        if control is None:
            return previous
        scale = strengths.repeat(batched_number).to(x_noisy).view(-1, 1, 1, 1)
        control = {key: [None if x is None else x * scale.to(x.dtype) for x in parts] for key, parts in control.items()}
        return self.control_merge(control, previous, output_dtype=None)

    def show(self, numbers: tuple[int, ...], times: int) -> None:
        """Hand the hints of these frames to the inner ControlNet; frames without one get black.

        Anew as well when it will repeat them another number of `times`: a T2I-Adapter keeps what it made of them.
        """
        if (numbers, times) != self.shown:
            hint_of = {frame: hint for frame, hint in zip(self.strengths, self.hints, strict=True)}
            black = torch.zeros_like(self.hints[0])
            self.inner.cond_hint_original = torch.stack([hint_of.get(number, black) for number in numbers])
            self.inner.cond_hint, self.shown = None, (numbers, times)

    def pre_run(self, model, percent_to_timestep_function):
        super().pre_run(model, percent_to_timestep_function)
        self.inner.pre_run(model, percent_to_timestep_function)

    def cleanup(self):
        super().cleanup()
        self.inner.cleanup()
        self.shown = None

    def get_models(self):
        return super().get_models() + self.inner.get_models()

    def get_extra_hooks(self):
        return super().get_extra_hooks() + self.inner.get_extra_hooks()

    def inference_memory_requirements(self, dtype):
        return super().inference_memory_requirements(dtype) + self.inner.inference_memory_requirements(dtype)

    def copy(self):
        copied = FrameControl(self.inner.copy(), self.hints, self.strengths, self.frames)
        self.copy_to(copied)
        return copied


def control_frames(conditionings: Sequence[list], control_net, images: torch.Tensor, frames: str, strengths: str,
                   clip_frames: int, start_percent: float, end_percent: float) -> list[list]:
    """Conditionings with the ControlNet added on the listed frames; what was given is not changed.

    Args:
        conditionings: the host's lists of [tensor, options], e.g. positive and negative.
        images: [K, H, W, C] hints, one for each listed frame, or one for all.
    Raises ValueError when frames, strengths and images do not belong together.
    """
    numbers = parse_frames(frames, clip_frames)
    weights = parse_strengths(strengths, len(numbers))
    if len(images) not in (1, len(numbers)):
        raise ValueError(f"{len(images)} hint images were given for {len(numbers)} frames ({frames}). Give one image "
                         "for each listed frame, in the same order, or a single one for all.")
    hints = images.movedim(-1, 1).expand(len(numbers), -1, -1, -1) if len(images) == 1 else images.movedim(-1, 1)
    added: dict[object, FrameControl] = {}      # positive and negative that shared a ControlNet share the new one
    results = []
    for conditioning in conditionings:
        result = []
        for tensor, options in conditioning:
            before = options.get("control")
            if before not in added:
                inner = control_net.copy().set_cond_hint(hints, 1.0, (start_percent, end_percent))
                added[before] = FrameControl(inner, hints, dict(zip(numbers, weights, strict=True)), clip_frames)
                added[before].set_previous_controlnet(before)
            result.append([tensor, {**options, "control": added[before], "control_apply_to_uncond": False}])
        results.append(result)
    return results
