"""What an appearance absorber is, what it learns from, and the captions it goes with (customize_a_video.md 2.3)."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from ..training.lora_keys import Factors
from .recipe import CROP_SIDES

PLACEHOLDER = "<look>"          # the word of a textual inversion in a caption
LEAST_SIDE = 64                 # pixels of a crop: the VAE's and the U-Net's smallest useful picture


@dataclass(frozen=True)
class Absorber:
    """A clip's look, learned away: put in while the motion is learned, thrown away afterwards.

    Attributes:
        factors: of the S-LoRA by diffusers' names of spatial layers; {} without.
        vectors: [n, D] of the textual inversion under PLACEHOLDER, None without.
        caption: of the look, that it was trained with.
    """
    factors: Mapping[str, Factors]
    vectors: Tensor | None
    caption: str
    source: str = "trained here"
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """In words."""
        parts = ["S-LoRA"] * bool(self.factors) + ["textual inversion"] * (self.vectors is not None)
        return " and ".join(parts)


def joined(*given: Absorber | tuple[Absorber, ...]) -> tuple[Absorber, ...]:
    """Absorbers, or some that are joined already, one for each clip in their order."""
    return tuple(each for part in given for each in ((part,) if isinstance(part, Absorber) else part))


def draw_crop(height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a part of a frame with the frame's aspect, its side a third to two thirds."""
    low, high = CROP_SIDES
    side = low + (high - low) * float(torch.rand((), generator=generator))
    tall, across = (max(min(LEAST_SIDE, whole), round(whole * side / 8) * 8) for whole in (height, width))
    top, left = (int(torch.randint(whole - part + 1, (), generator=generator))
                 for whole, part in ((height, tall), (width, across)))
    return top, left, tall, across


def cropped(frame: Tensor, box: tuple[int, int, int, int], resized: bool) -> Tensor:
    """The part of a frame [3, H, W] uint8; `resized`: back to the frame's size, bicubic."""
    top, left, tall, across = box
    part = frame[:, top:top + tall, left:left + across]
    if not resized:
        return part
    big = functional.interpolate(part[None].float(), frame.shape[1:], mode="bicubic", antialias=True)[0]
    return big.round().clamp(0, 255).to(torch.uint8)


def look_caption(caption: str, motion: str) -> str:
    """A caption without its motion clause. Raises ValueError where that is not in it."""
    if not motion.strip():
        return caption
    if motion not in caption:
        raise ValueError(f"The motion words {motion!r} are not in the caption {caption!r}. Give them as they stand in "
                         "the caption, or write the appearance caption yourself.")
    return " ".join(caption.replace(motion, " ").split()).strip(" ,")


def caption_notes(caption: str, absorber: Absorber | None) -> list[str]:
    """What a person should know about the captions of a training. Raises ValueError where they cannot work."""
    notes = []
    if absorber is None:
        notes.append("no absorber: the motion LoRA will learn the clip's look as well, as far as the captions do not "
                     "tell it")
    elif absorber.vectors is not None and PLACEHOLDER not in caption:
        raise ValueError(f"The absorber has a textual inversion, whose word {PLACEHOLDER} is not in the caption "
                         f"{caption!r}, so that it would do nothing. Write {PLACEHOLDER} into the caption, before or "
                         "after what it looks like.")
    if absorber is not None and absorber.caption.strip() == caption.strip():
        notes.append("the appearance caption is the caption: with the motion's words in it the absorber learns the "
                     "motion's poses too; leave them out")
    return notes
