"""Sprite world's oracle for clips: one sprite followed through all frames, and which of the ten motions it makes."""
from __future__ import annotations

import functools
import math

import torch

from .oracle import (
    ANGLES,
    FINE,
    Frames,
    Reading,
    check_pixels,
    confidence,
    fit_backgrounds,
    make_reading,
    read_frames,
    refine,
    shrink,
    size_and_place,
)
from .world import COLOURS, SPRITES, TEXTURES, Scene

SPREAD = (2.5, 2.5, 0.06)               # expected error of x, y (pixels) and log width in a frame
OUTLIER = 16.0                          # no frame costs more than this many squared spreads
SPEEDS = [0.8 + 0.05 * step for step in range(9)]
MORPH = 1.25                            # a frame shows another sprite when the clip's fits it this much worse


@functools.cache
def paths(frames: int) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """Every family of `trajectory`: motions [K], shapes [K, F, 3] (x, y, log width) and amplitude limits [K, 2].

    A shape is relative to the middle of the path and has the renderer's amplitude at speed 1. `spin` is missing:
    its path is that of `still`.
    """
    t = torch.linspace(0, 1, frames)
    swing, rest = t ** 1.7 - 0.5, torch.zeros(frames)
    slide, free = (0.45, 1.7), (0.5, 1.6)
    rows = [("still", (rest, rest, rest), (0.0, 0.0))]
    for sign, (across, along, scale) in ((-1, ("left", "up", "shrink")), (1, ("right", "down", "grow"))):
        rows += [(across, (sign * 36 * swing, rest, rest), slide), (along, (rest, sign * 40 * swing, rest), slide),
                 (scale, (rest, rest, sign * math.log(2.1) * swing), slide)]
    rows += [("bounce", (rest, 16 - 34 * (2 * math.pi * t * speed).sin().abs(), rest), free) for speed in SPEEDS]
    for phase in torch.arange(24) * (2 * math.pi / 24):
        turn = 2 * math.pi * t + phase
        rows.append(("circle", (17 * turn.cos(), 17 * turn.sin(), rest), free))
    motions, shapes, limits = zip(*rows, strict=True)
    return list(motions), torch.stack([torch.stack(shape, -1) for shape in shapes]), torch.tensor(limits)


def classify_path(path: torch.Tensor) -> tuple[str, torch.Tensor]:
    """[F, 3] of x, y and log width -> the nearest motion other than spin, and the middle of the path [3].

    Least squares of offset and amplitude for every shape, then a truncated cost.
    """
    motions, shapes, limits = paths(len(path))
    spread = torch.tensor(SPREAD)
    data, centred = (path - path.mean(0)) / spread, (shapes - shapes.mean(1, keepdim=True)) / spread
    amplitude = (data * centred).sum((1, 2)) / centred.square().sum((1, 2)).clamp(min=1e-6)
    amplitude = torch.minimum(torch.maximum(amplitude, limits[:, 0]), limits[:, 1])             # [K]
    rest = path - amplitude[:, None, None] * shapes                                             # [K, F, 3]
    middle = rest.median(1).values                                                              # [K, 3]
    cost = ((rest - middle[:, None]) / spread).square().sum(2).clamp(max=OUTLIER).sum(1)
    best = int(cost.argmin())
    return motions[best], middle[best]


def spin_angles(profile: torch.Tensor) -> torch.Tensor:
    """The spinning angles [F], over the renderer's speeds, that agree best with the search's gains [F, 12]."""
    t = torch.linspace(0, 1, len(profile))
    candidates = 2 * math.pi * t * torch.tensor(SPEEDS)[:, None]                                # [9, F]
    place = candidates * (ANGLES / (2 * math.pi))
    low, part = place.floor().long(), place.frac()
    frame = torch.arange(len(profile))
    gain = (1 - part) * profile[frame, low % ANGLES] + part * profile[frame, (low + 1) % ANGLES]
    return candidates[gain.sum(1).argmax()]


def follow(frames: Frames, sprite: int, angles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit the sprite at given angles [F]: poses [F, 4] and squared errors [F]."""
    bins = (angles * (ANGLES / (2 * math.pi))).round().long() % ANGLES
    start = frames.found[torch.arange(len(angles)), sprite, bins].clone()                       # [F, 4]
    start[:, 3] = angles
    index = torch.full((len(angles),), sprite)
    parts = [refine(*part, turn=False) for part in
             zip(*(whole.split(4) for whole in (frames.fine, frames.backgrounds, index, start)), strict=True)]
    return torch.cat([pose for pose, _ in parts]), torch.cat([error for _, error in parts])


def read_clip(clip: torch.Tensor) -> tuple[Scene, torch.Tensor, torch.Tensor, torch.Tensor]:
    """[F, 3, 128, 128] -> scene, poses [F, 4], confidence [F] and the sprite of each frame by itself [F].

    Upright and spinning are told apart by which of the two turns explains the pixels; the others by their paths.
    """
    base, misfit = fit_backgrounds(shrink(clip, FINE))
    behind = int(misfit.mean(0).argmin())
    colour, texture = divmod(behind, len(TEXTURES))
    count = len(clip)
    frames = read_frames(clip, base[:, behind].median(0).values.expand(count, 3), torch.full((count,), texture))
    sprite = int(frames.error.sum(0).argmin())
    upright, error = follow(frames, sprite, torch.zeros(count))
    turning, turning_error = follow(frames, sprite, spin_angles(frames.gain[:, sprite]))
    spins = bool(turning_error.sum() < error.sum())
    pose, error = (turning, turning_error) if spins else (upright, error)
    motion, (x, _, log_width) = classify_path(pose[:, :3])
    scene = Scene(SPRITES[sprite], *size_and_place(x.item(), log_width.item()), COLOURS[colour], TEXTURES[texture],
                  "spin" if spins else motion)
    errors = frames.error.clone()
    errors[:, sprite] = torch.minimum(errors[:, sprite], error)
    shown = torch.where(errors[:, sprite] < MORPH * errors.amin(1), sprite, errors.argmin(1))
    return scene, pose, confidence(frames, errors), shown


@torch.no_grad()
def read_clips(pixels: torch.Tensor) -> Reading:
    """Read [N, F, 3, 128, 128] in 0..1; F >= 2. Raises ValueError for another shape."""
    check_pixels(pixels, "N F 3 H W")
    if pixels.shape[1] < 2:
        raise ValueError("The oracle got clips of one frame; a motion needs two or more. Use read_pictures.")
    scenes, poses, sure, shown = zip(*(read_clip(clip.float()) for clip in pixels), strict=True)
    return make_reading(list(scenes), torch.stack(poses), torch.stack(sure), torch.stack(shown))
