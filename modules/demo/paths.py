"""Motions that sprite world's modules have never seen: for learning a motion from one clip."""
from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..data.clips import ClipSettings
from .pool import as_bytes
from .renderer import CENTRE, FRAMES, WIDTH, background, place_sprites
from .world import RGB, SPRITES, TEXTURES, Scene, caption

GREEN = torch.tensor([0.55, 1.0, 0.6])         # tint of the odd look

# Each motion has a word of its own that the text encoder does not know, so that nothing else comes with it.
WORDS = {"zigzag": "zorbling", "sway": "fleppering", "diagonal": "quandering", "bob": "drobbing"}


def path_of(motion: str, frames: int = FRAMES) -> Tensor:
    """Displacement [F, 2] (x, y) in pixels. Raises ValueError for an unknown motion."""
    t = torch.linspace(0, 1, frames)
    match motion:
        case "zigzag":                          # across, up and down twice
            return torch.stack([44 * (t - 0.5), 16 * (4 * math.pi * t).sin()], 1)
        case "sway":                            # to and fro, twice
            return torch.stack([22 * (4 * math.pi * t).sin(), torch.zeros(frames)], 1)
        case "bob":                             # up and down, three times
            return torch.stack([torch.zeros(frames), 20 * (6 * math.pi * t).sin()], 1)
        case "diagonal":                        # down to the right, and back
            there = 1 - (2 * t - 1).abs()
            return torch.stack([40 * (there - 0.5), 32 * (there - 0.5)], 1)
    raise ValueError(f"The motions are {', '.join(WORDS)}; {motion!r} was given.")


def path_clip(scene: Scene, motion: str, frames: int = FRAMES, tint: Tensor | None = None, checks: bool = False
              ) -> Tensor:
    """A clip [F, 3, 128, 128] in 0..1 of a scene that moves along a path; see `drawn`."""
    return drawn(scene, torch.tensor([CENTRE[scene.place], 64.0]) + path_of(motion, frames), tint, checks)[0]


def drawn(scene: Scene, centre: Tensor, tint: Tensor | None = None, checks: bool = False) -> tuple[Tensor, Tensor]:
    """(clip [F, 3, 128, 128] in 0..1, where the sprite is [F, 1, 128, 128]) of a scene at centres [F, 2] in pixels.

    tint [3]: factors on the sprite's colours; checks: an orange chequer behind it. Both are a look that no caption of
    sprite world tells.
    """
    frames = len(centre)
    sprite = torch.full((frames,), SPRITES.index(scene.sprite))
    rgba = place_sprites(sprite, centre, torch.full((frames,), WIDTH[scene.size]), torch.zeros(frames))
    behind = background(torch.tensor([RGB[scene.colour]]), torch.tensor([TEXTURES.index(scene.texture)]))[0]
    if checks:
        y, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
        dark = ((x // 16 + y // 16) % 2).float()
        behind = torch.tensor([0.95, 0.55, 0.15])[:, None, None] * (1 - 0.45 * dark)
    colours = rgba[:, :3] if tint is None else rgba[:, :3] * tint[:, None, None]
    return (colours + (1 - rgba[:, 3:]) * behind).clamp(0, 1), rgba[:, 3:]


def moving(scene: Scene, motion: str) -> str:
    """The caption of a clip, with the motion's word."""
    return f"{caption(scene)}, {WORDS[motion]}"


@dataclass(frozen=True)
class PathClip:
    """One clip as a source to train on.

    Attributes:
        frames: [F, 3, H, W] in 0..1.
        text: its caption.
    """
    frames: Tensor
    text: str
    name: str
    fps: float = 8.0

    @property
    def settings(self) -> ClipSettings:
        return ClipSettings(len(self.frames), self.fps, self.frames.shape[3], self.frames.shape[2])

    def __len__(self) -> int:
        return 1

    def caption(self, index: int) -> str:
        return self.text

    def pixels(self, index: int) -> Tensor:
        return as_bytes(self.frames)

    def key(self, index: int) -> str:
        return f"sprite path|{self.name}|{len(self.frames)}"

    def video(self, index: int) -> str:
        return self.name

    def report(self) -> str:
        return f"1 clip of sprite world ({self.name}), {len(self.frames)} frames"


@dataclass(frozen=True)
class PathClips:
    """Several clips as a source to train on."""
    clips: tuple[PathClip, ...]

    @property
    def settings(self) -> ClipSettings:
        return self.clips[0].settings

    def __len__(self) -> int:
        return len(self.clips)

    def caption(self, index: int) -> str:
        return self.clips[index].text

    def pixels(self, index: int) -> Tensor:
        return self.clips[index].pixels(0)

    def key(self, index: int) -> str:
        return self.clips[index].key(0)

    def video(self, index: int) -> str:
        return self.clips[index].name

    def report(self) -> str:
        return "\n".join(clip.report() for clip in self.clips)


def odd_look(motion: str) -> PathClip:
    """A clip whose look no caption of sprite world tells: a green panda on an orange chequer, called yellow dotted."""
    scene = Scene("panda", "large", "middle", "yellow", "dots")
    frames = path_clip(scene, motion, tint=GREEN, checks=True)
    return PathClip(frames, moving(scene, motion), f"{motion}, odd look")


def plain_look(motion: str) -> PathClip:
    """A clip that its caption tells all of."""
    scene = Scene("panda", "large", "middle", "yellow", "dots")
    return PathClip(path_clip(scene, motion), moving(scene, motion), motion)


def two_looks(motion: str) -> PathClips:
    """Two clips of one motion, in each another look that no caption tells."""
    scene = Scene("star", "large", "middle", "blue", "plain")
    other = path_clip(scene, motion, tint=torch.tensor([1.0, 0.5, 0.9]))
    return PathClips((odd_look(motion), PathClip(other, moving(scene, motion), f"{motion}, another look")))


PATH_CLIPS = {f"sprite world: {motion}": partial(plain_look, motion) for motion in WORDS} | {
    "sprite world: zigzag, odd look": partial(odd_look, "zigzag"),
    "sprite world: sway, two looks": partial(two_looks, "sway")}
