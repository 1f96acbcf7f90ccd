"""Sprite world's oracle for clips: one sprite followed through all frames, and which motion it makes.

Spinning is told by which turn explains the pixels; the other motions by the path, as the nearest of the
families of paths that the renderer's `trajectory` draws from.
"""
from __future__ import annotations

import functools
import math

import torch

from .fitting import ANGLES, FINE, fit_backgrounds, refine, shrink
from .oracle import Frames, Reading, check_pixels, confidence, describe, make_reading, read_frames
from .world import TEXTURES, Scene

SPREAD = (2.5, 2.5, 0.06)           # expected error of x, y (pixels) and log width in a frame
OUTLIER = 16.0                      # no frame costs more than this many squared spreads
SPEEDS = tuple(0.8 + 0.05 * step for step in range(9))
MORPH = 1.25                        # a frame shows another sprite when the clip's fits it this much worse


@functools.cache
def paths(frames: int) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """Every family of `trajectory`: K motions, shapes [K, F, 3] (x, y, log width), amplitude limits [K, 2].

    A shape is relative to the middle of the path and has the renderer's amplitude at speed 1. `spin` is
    missing: its path is that of `still`.
    """
    t, rest = torch.linspace(0, 1, frames), torch.zeros(frames)
    swing = t ** 1.7 - 0.5
    slide, loop = (0.45, 1.7), (0.5, 1.6)
    rows = [("still", (rest, rest, rest), (0.0, 0.0))]
    for sign, (across, along, scale) in ((-1, ("left", "up", "shrink")), (1, ("right", "down", "grow"))):
        rows += [(across, (sign * 36 * swing, rest, rest), slide),
                 (along, (rest, sign * 40 * swing, rest), slide),
                 (scale, (rest, rest, sign * math.log(2.1) * swing), slide)]
    for speed in SPEEDS:
        rows.append(("bounce", (rest, 16 - 34 * (2 * math.pi * t * speed).sin().abs(), rest), loop))
    for phase in torch.arange(24) * (2 * math.pi / 24):
        turn = 2 * math.pi * t + phase
        rows.append(("circle", (17 * turn.cos(), 17 * turn.sin(), rest), loop))
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
    cost = ((rest - middle[:, None]) / spread).square().sum(2).clamp(max=OUTLIER).sum(1)        # [K]
    best = int(cost.argmin())
    return motions[best], middle[best]


def spin_angles(profile: torch.Tensor) -> torch.Tensor:
    """The angles [F] of a spin, at the renderer's speed that agrees best with the search's gains [F, 12]."""
    t, frame = torch.linspace(0, 1, len(profile)), torch.arange(len(profile))
    spins = 2 * math.pi * t * torch.tensor(SPEEDS)[:, None]                                     # [9, F]
    place = spins * (ANGLES / (2 * math.pi))
    low, part = place.floor().long(), place.frac()
    gain = (1 - part) * profile[frame, low % ANGLES] + part * profile[frame, (low + 1) % ANGLES]
    return spins[gain.sum(1).argmax()]


def follow(frames: Frames, sprite: int, angles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit the sprite at given angles [F]: poses [F, 4] and squared errors [F]."""
    bins = (angles * (ANGLES / (2 * math.pi))).round().long() % ANGLES
    start = frames.found[torch.arange(len(angles)), sprite, bins].clone()                       # [F, 4]
    start[:, 3] = angles
    given = (frames.fine, frames.backgrounds, torch.full((len(angles),), sprite), start)
    parts = zip(*(whole.split(4) for whole in given), strict=True)
    pose, error = zip(*(refine(*part, turn=False) for part in parts), strict=True)
    return torch.cat(pose), torch.cat(error)


def read_clip(clip: torch.Tensor) -> tuple[Scene, torch.Tensor, torch.Tensor, torch.Tensor]:
    """[F, 3, 128, 128] -> scene, poses [F, 4], confidence [F] and the sprite of each frame by itself [F]."""
    count = len(clip)
    base, misfit = fit_backgrounds(shrink(clip, FINE))
    behind = int(misfit.mean(0).argmin())
    colour = base[:, behind].median(0).values
    frames = read_frames(clip, colour.expand(count, 3), torch.full((count,), behind % len(TEXTURES)))
    sprite = int(frames.error.sum(0).argmin())
    upright, error = follow(frames, sprite, torch.zeros(count))
    turning, turning_error = follow(frames, sprite, spin_angles(frames.gain[:, sprite]))
    spins = bool(turning_error.sum() < error.sum())
    pose, error = (turning, turning_error) if spins else (upright, error)
    motion, middle = classify_path(pose[:, :3])
    scene = describe(sprite, middle.tolist(), behind, "spin" if spins else motion)
    errors = frames.error.clone()
    errors[:, sprite] = torch.minimum(errors[:, sprite], error)
    shown = torch.where(errors[:, sprite] < MORPH * errors.amin(1), sprite, errors.argmin(1))
    return scene, pose, confidence(frames, errors, torch.full((count,), sprite), pose), shown


@torch.no_grad()
def read_clips(pixels: torch.Tensor) -> Reading:
    """Read [N, F, 3, 128, 128] in 0..1; F >= 2. Raises ValueError for another shape."""
    check_pixels(pixels, "N F 3 H W")
    if pixels.shape[1] < 2:
        raise ValueError("The oracle got clips of one frame; a motion needs two or more. Use read_pictures.")
    scenes, poses, sure, shown = zip(*(read_clip(clip.float()) for clip in pixels), strict=True)
    return make_reading(list(scenes), torch.stack(poses), torch.stack(sure), torch.stack(shown))
