"""Sprite world's oracle: pictures to what is in them, by the truth of the world. For tests and benchmarks only.

Three steps, each of them least squares on pixels:
1. the background, by a truncated fit of every colour and texture (`fit_backgrounds`);
2. the best place and size of every sprite at every angle, by one exact correlation in Fourier space (`Search`);
3. analysis by synthesis: the best few sprites are moved, scaled and turned until they fit best (`refine`).
"""
from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .renderer import CENTRE, SIDE, WIDTH, accent, background, place_sprites
from .world import COLOURS, PLACES, RGB, SIZES, SPRITES, TEXTURES, Scene

FINE, COARSE, BORDER = 64, 32, 8        # pixels across a picture when fitting and searching; margin of the search
ANGLES = 12                             # angles of the search
WIDTHS = tuple(27 * 1.275 ** step for step in range(7))     # of the search, in pixels of a 128-pixel picture
LOG_WIDTHS = math.log(20), math.log(130)                    # what a fit may reach; the world has 26 to 116
CANDIDATES = 4                          # sprites fitted finely in each picture
TRUST = 0.12                            # rms error of a picture at which confidence has fallen to 1/e
EVIDENCE, FLOOR = 40, 0.01              # independent pixels that a picture counts for; least rms error


@dataclass(frozen=True)
class Reading:
    """What the oracle sees: the renderer's `Truth`, read back. N pictures (F = 1) or clips of F frames."""

    scenes: tuple[Scene, ...]       # a clip's scene has a motion
    centre: torch.Tensor            # [N, F, 2] x, y in pixels
    width: torch.Tensor             # [N, F]    pixels across the sprite's tile
    angle: torch.Tensor             # [N, F]    radians, clockwise
    alpha: torch.Tensor             # [N, F, 1, 128, 128]
    confidence: torch.Tensor        # [N, F]    0..1, of the sprite
    frame_sprites: torch.Tensor     # [N, F]    index of the sprite that each frame shows when read by itself

    @property
    def sprite_constant(self) -> torch.Tensor:
        """[N] bool: every frame by itself shows the clip's sprite."""
        clip_sprite = torch.tensor([SPRITES.index(scene.sprite) for scene in self.scenes])
        return (self.frame_sprites == clip_sprite[:, None]).all(1)


def check_pixels(pixels: torch.Tensor, dims: str) -> None:
    """Raise ValueError unless `pixels` has the named dimensions and the world's size."""
    if pixels.ndim != len(dims.split()) or pixels.shape[-3:] != (3, SIDE, SIDE):
        raise ValueError(f"The oracle got pixels of shape {tuple(pixels.shape)}; expected [{dims}] with 3 channels "
                         f"and {SIDE} x {SIDE} pixels in 0..1. Resize them, or put the channels before the height.")


def shrink(pixels: torch.Tensor, side: int) -> torch.Tensor:
    """Area average of [N, C, H, H] down to [N, C, side, side]."""
    return F.avg_pool2d(pixels, pixels.shape[-1] // side)


# ------------------------------------------------------------------------------------------------ 1 background

@functools.cache
def _shade(side: int) -> torch.Tensor:
    """[3, 1, side, side]: how much of the second shade each texture has at each pixel."""
    white = torch.ones(len(TEXTURES), 3)
    picture = background(white, torch.arange(len(TEXTURES)))[:, :1]
    return shrink((1 - picture) / (1 - accent(white)[0, 0]), side)


def backdrop(colour: torch.Tensor, texture: torch.Tensor, side: int) -> torch.Tensor:
    """[..., 3] colours and [...] texture indices -> [..., 3, side, side]: the renderer's background, averaged."""
    return colour[..., None, None] + _shade(side)[texture] * (accent(colour) - colour)[..., None, None]


def fit_backgrounds(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit all 24 backgrounds to [N, 3, s, s]: base colours [N, 24, 3] and truncated mean squared errors [N, 24].

    Hypothesis h is colour h // 3 with texture h % 3. A pixel costs its squared error but never more than `reach`
    squared, as the sprite's pixels do: the hypothesis wins that explains most pixels.
    """
    nominal = torch.tensor([RGB[name] for name in COLOURS]).repeat_interleave(len(TEXTURES), 0)     # [24, 3]
    texture = torch.arange(len(TEXTURES)).repeat(len(COLOURS))                                      # [24]
    base = nominal.expand(len(pictures), -1, -1)
    for reach in (0.25, 0.15, 0.12, 0.12):
        residual = pictures[:, None] - backdrop(base, texture, pictures.shape[-1])      # [N, 24, 3, s, s]
        square = residual.square().sum(2)                                               # [N, 24, s, s]
        inlier = (square < reach ** 2).float()
        shift = torch.einsum("nhcyx,nhyx->nhc", residual, inlier) / inlier.sum((2, 3)).clamp(min=1)[..., None]
        base = nominal + (base + shift - nominal).clamp(-0.1, 0.1)
    return base, square.clamp(max=reach ** 2).mean((2, 3))


# ---------------------------------------------------------------------------------------------------- 2 search

class Search:
    """How well every sprite at every angle, width and place explains a picture, against its background alone.

    With background B, residual R = picture - B and a template of premultiplied colour S and alpha a, the picture
    S + (1 - a) B lowers the squared error by
        |R|^2 - |R - (S - a B)|^2 = 2 R.S - 2 (R.B) a - |S|^2 + 2 B.(S a) - |B|^2 a^2
    summed over the frame: nine planes of the picture, correlated with nine planes of the template.
    """

    def __init__(self):
        side, scale = COARSE + BORDER, COARSE / SIDE
        poses = torch.cartesian_prod(torch.arange(len(SPRITES)), torch.arange(ANGLES), torch.arange(len(WIDTHS)))
        planes = []
        for sprite, turn, step in (part.unbind(1) for part in poses.split(168)):
            middle = torch.full((len(sprite), 2), side / 2 / scale)
            rgba = shrink(place_sprites(sprite, middle, torch.tensor(WIDTHS)[step], turn * (2 * math.pi / ANGLES),
                                        round(side / scale), round(side / scale)), side)
            colour, alpha = rgba[:, :3], rgba[:, 3:]
            stack = torch.cat([colour, alpha, colour.square().sum(1, keepdim=True), colour * alpha, alpha ** 2], 1)
            planes.append(torch.fft.rfft2(stack.roll((-side // 2, -side // 2), (2, 3))).conj())
        self.bank = torch.cat(planes).flatten(2).permute(2, 1, 0).contiguous()          # [frequencies, 9, poses]

    def __call__(self, pictures: torch.Tensor, backgrounds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Two [N, 3, 32, 32] -> the best gain of each sprite and angle [N, 24, 12] and its pose [N, 24, 12, 4].

        A pose is x, y, log width and angle, in pixels of a 128-pixel picture and radians.
        """
        side, steps = COARSE + BORDER, COARSE + 1
        residual, ones = pictures - backgrounds, torch.ones_like(pictures[:, :1])
        planes = torch.cat([2 * residual, -2 * (residual * backgrounds).sum(1, keepdim=True), -ones,
                            2 * backgrounds, -backgrounds.square().sum(1, keepdim=True)], 1)
        spectrum = torch.fft.rfft2(planes, s=(side, side)).flatten(2).permute(2, 0, 1)  # [frequencies, N, 9]
        product = (spectrum @ self.bank).permute(1, 2, 0).unflatten(2, (side, -1))      # [N, poses, side, half]
        gain = torch.fft.irfft2(product, s=(side, side))[..., :steps, :steps]           # [N, poses, 33, 33]
        best, index = gain.reshape(len(pictures), len(SPRITES), ANGLES, -1).max(-1)     # [N, 24, 12]
        width, y, x = torch.unravel_index(index, (len(WIDTHS), steps, steps))
        angle = (torch.arange(ANGLES) * (2 * math.pi / ANGLES)).expand_as(best)
        pixel = SIDE / COARSE
        return best, torch.stack([x * pixel, y * pixel, torch.tensor(WIDTHS).log()[width], angle], -1)


_search = functools.cache(Search)       # 120 MB and two seconds, made when first needed


# ---------------------------------------------------------------------------------------------------- 3 refine

def compose(sprite: torch.Tensor, pose: torch.Tensor, backgrounds: torch.Tensor) -> torch.Tensor:
    """[M] sprites in [M, 4] poses before [M, 3, 64, 64] -> pictures [M, 3, 64, 64]."""
    rgba = shrink(place_sprites(sprite, pose[:, :2], pose[:, 2].exp(), pose[:, 3]), FINE)
    return rgba[:, :3] + (1 - rgba[:, 3:]) * backgrounds


def refine(pictures: torch.Tensor, backgrounds: torch.Tensor, sprite: torch.Tensor, pose: torch.Tensor,
           turn: bool = True, steps: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Levenberg-Marquardt on [M, 3, 64, 64]: better poses [M, 4] and their squared errors [M].

    `turn` False keeps the angles as given.
    """
    probe = torch.diag(torch.tensor([1.0, 1.0, 0.03, 0.05]))[:4 if turn else 3]         # finite differences
    damping = torch.full((len(pose),), 0.01)
    fit = compose(sprite, pose, backgrounds)
    error = (pictures - fit).square().sum((1, 2, 3))
    for _ in range(steps):
        moved = (pose[:, None] + probe).flatten(0, 1)                                   # [4M, 4]
        slope = compose(sprite.repeat_interleave(len(probe)), moved, backgrounds.repeat_interleave(len(probe), 0))
        slope = (slope.unflatten(0, (-1, len(probe))) - fit[:, None]).flatten(2)        # [M, 4, pixels]
        normal = slope @ slope.mT                                                       # [M, 4, 4]
        normal = normal + torch.diag_embed(normal.diagonal(dim1=1, dim2=2) * damping[:, None] + 1e-4)
        change = torch.linalg.solve(normal, slope @ (pictures - fit).flatten(1)[..., None])[..., 0]
        trial = pose + change.clamp(-6, 6) @ probe
        trial[:, 2].clamp_(*LOG_WIDTHS)
        trial_fit = compose(sprite, trial, backgrounds)
        trial_error = (pictures - trial_fit).square().sum((1, 2, 3))
        better = trial_error < error
        pose = torch.where(better[:, None], trial, pose)
        fit = torch.where(better[:, None, None, None], trial_fit, fit)
        error = torch.where(better, trial_error, error)
        damping = torch.where(better, damping / 3, damping * 8)
    return pose, error


# ----------------------------------------------------------------------------------------------- reading frames

@dataclass(frozen=True)
class Frames:
    """M frames taken apart: everything that the decisions are made from."""

    fine: torch.Tensor          # [M, 3, 64, 64] the frames
    backgrounds: torch.Tensor   # [M, 3, 64, 64]
    gain: torch.Tensor          # [M, 24, 12] of the search, by sprite and angle
    found: torch.Tensor         # [M, 24, 12, 4] its poses
    error: torch.Tensor         # [M, 24] squared error of each sprite at its best pose
    pose: torch.Tensor          # [M, 24, 4]


def read_frames(pixels: torch.Tensor, colour: torch.Tensor, texture: torch.Tensor) -> Frames:
    """Search and refine in [M, 3, 128, 128], whose backgrounds are [M, 3] base colours and [M] texture indices."""
    fine, coarse = shrink(pixels, FINE), shrink(pixels, COARSE)
    backgrounds, behind = backdrop(colour, texture, FINE), backdrop(colour, texture, COARSE)
    parts = [_search()(*part) for part in zip(coarse.split(4), behind.split(4), strict=True)]
    gain, found = (torch.cat(part) for part in zip(*parts, strict=True))
    best, turn = gain.max(-1)                                                           # [M, 24]
    pose = found.gather(2, turn[..., None, None].expand(-1, -1, 1, 4))[:, :, 0].clone()
    error = (FINE / COARSE) ** 2 * ((coarse - behind).square().sum((1, 2, 3))[:, None] - best)
    for row in range(len(pixels)):
        sprite = best[row].topk(CANDIDATES).indices
        pose[row, sprite], error[row, sprite] = refine(
            fine[row].expand(CANDIDATES, -1, -1, -1), backgrounds[row].expand(CANDIDATES, -1, -1, -1), sprite,
            pose[row, sprite])
    return Frames(fine, backgrounds, gain, found, error, pose)


def confidence(frames: Frames, error: torch.Tensor) -> torch.Tensor:
    """How sure the best of [M, 24] squared errors is, [M] in 0..1: it must explain the picture, and alone.

    The posterior of the best sprite among all sprites and an empty background, under noise of the size of its own
    error, times the trust in such an error.
    """
    empty = (frames.fine - frames.backgrounds).square().sum((1, 2, 3))
    mean_square = torch.cat([error, empty[:, None]], 1) / (3 * FINE ** 2)               # [M, 25]
    best = mean_square[:, :-1].amin(1)
    odds = (-EVIDENCE / 2 * mean_square / (best + FLOOR ** 2)[:, None]).softmax(1)
    return odds[:, :-1].amax(1) * (-best / TRUST ** 2).exp()


def nearest(value: float, names: dict[str, float]) -> str:
    """The name whose value is nearest."""
    return min(names, key=lambda name: abs(names[name] - value))


def size_and_place(x: float, log_width: float) -> tuple[str, str]:
    """The words for the middle of a path."""
    size = nearest(log_width, {name: math.log(WIDTH[name]) for name in SIZES})
    return size, nearest(x, {name: CENTRE[name] for name in PLACES})


def make_reading(scenes: list[Scene], pose: torch.Tensor, sure: torch.Tensor,
                 frame_sprites: torch.Tensor) -> Reading:
    """A `Reading` from [N, F, 4] poses, [N, F] confidence and the [N, F] sprites of single frames."""
    sprite = torch.tensor([SPRITES.index(scene.sprite) for scene in scenes]).repeat_interleave(pose.shape[1])
    flat, width = pose.flatten(0, 1), pose[..., 2].exp()
    alpha = place_sprites(sprite, flat[:, :2], width.flatten(), flat[:, 3])[:, 3:].unflatten(0, pose.shape[:2])
    return Reading(tuple(scenes), pose[..., :2], width, pose[..., 3], alpha, sure, frame_sprites)


@torch.no_grad()
def read_pictures(pixels: torch.Tensor) -> Reading:
    """Read [N, 3, 128, 128] in 0..1. Raises ValueError for another shape."""
    check_pixels(pixels, "N 3 H W")
    scenes, poses, sure, sprites = [], [], [], []
    for part in pixels.float().split(8):
        base, misfit = fit_backgrounds(shrink(part, FINE))
        behind, row = misfit.argmin(1), torch.arange(len(part))
        frames = read_frames(part, base[row, behind], behind % len(TEXTURES))
        sprite = frames.error.argmin(1)
        pose = frames.pose[row, sprite]
        for index, back, (x, _, log_width, _) in zip(sprite.tolist(), behind.tolist(), pose.tolist(), strict=True):
            colour, texture = divmod(back, len(TEXTURES))
            scenes.append(Scene(SPRITES[index], *size_and_place(x, log_width), COLOURS[colour], TEXTURES[texture]))
        poses.append(pose)
        sure.append(confidence(frames, frames.error))
        sprites.append(sprite)
    return make_reading(scenes, torch.cat(poses)[:, None], torch.cat(sure)[:, None], torch.cat(sprites)[:, None])
