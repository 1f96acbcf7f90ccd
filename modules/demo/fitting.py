"""Sprite world read backwards: backgrounds and sprites fitted to pixels by least squares, for the oracle."""
from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F

from .renderer import SIDE, accent, background, place_sprites
from .world import COLOURS, RGB, SPRITES, TEXTURES

FINE, COARSE = 64, 32       # pixels across a picture when fitting and when searching
BORDER = 8                  # pixels of margin around the search, for sprites that reach out of the frame
ANGLES = 12                 # angles of the search
WIDTHS = tuple(27 * 1.275 ** step for step in range(7))     # of the search, in pixels of a 128-pixel picture
LOG_WIDTHS = math.log(20), math.log(130)                    # what a fit may reach; the world has 26 to 116


def shrink(pixels: torch.Tensor, side: int) -> torch.Tensor:
    """Area average of [N, C, H, H] down to [N, C, side, side]."""
    return F.avg_pool2d(pixels, pixels.shape[-1] // side)


def soften(pixels: torch.Tensor) -> torch.Tensor:
    """Two box filters of 3. Fits compare softened pictures: an autoencoder's soft edges then cost next to nothing,
    where sharp ones make a faint wrong sprite look better than a crisp right one."""
    for _ in range(2):
        pixels = F.avg_pool2d(pixels, 3, stride=1, padding=1, count_include_pad=False)
    return pixels


@functools.cache
def _shade(side: int) -> torch.Tensor:
    """[3, 1, side, side]: how much of the second shade each texture has at each pixel."""
    white = torch.ones(len(TEXTURES), 3)
    picture = background(white, torch.arange(len(TEXTURES)))[:, :1]
    return shrink((1 - picture) / (1 - accent(white)[0, 0]), side)


def backdrop(colour: torch.Tensor, texture: torch.Tensor, side: int) -> torch.Tensor:
    """The renderer's background, averaged: [..., 3] colours, [...] textures -> [..., 3, side, side]."""
    return colour[..., None, None] + _shade(side)[texture] * (accent(colour) - colour)[..., None, None]


def fit_backgrounds(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit all 24 backgrounds to [N, 3, s, s]: base colours [N, 24, 3] and mean truncated errors [N, 24].

    Hypothesis h is colour h // 3 with texture h % 3. A pixel costs its squared error but never more than
    `reach` squared, as the sprite's pixels do: the hypothesis wins that explains most pixels.
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


class Search:
    """How well each sprite at each angle, width and place explains a picture, against its background alone.

    With background B, residual R = picture - B and a template of premultiplied colour S and alpha a, the
    picture S + (1 - a) B lowers the squared error by
        |R|^2 - |R - (S - a B)|^2 = 2 R.S - 2 (R.B) a - |S|^2 + 2 B.(S a) - |B|^2 a^2
    summed over the frame: nine planes of the picture, correlated with nine planes of the template.
    """

    def __init__(self):
        side, scale = COARSE + BORDER, COARSE / SIDE
        canvas = round(side / scale)
        poses = torch.cartesian_prod(*(torch.arange(count) for count in (len(SPRITES), ANGLES, len(WIDTHS))))
        planes = []
        for sprite, turn, step in (part.unbind(1) for part in poses.split(168)):
            middle, width = torch.full((len(sprite), 2), canvas / 2), torch.tensor(WIDTHS)[step]
            rgba = place_sprites(sprite, middle, width, turn * (2 * math.pi / ANGLES), canvas, canvas)
            colour, alpha = shrink(rgba, side).split((3, 1), 1)
            square = colour.square().sum(1, keepdim=True)
            stack = torch.cat([colour, alpha, square, colour * alpha, alpha ** 2], 1)   # [168, 9, side, side]
            planes.append(torch.fft.rfft2(stack.roll((-side // 2, -side // 2), (2, 3))).conj())
        self.bank = torch.cat(planes).flatten(2).permute(2, 1, 0).contiguous()          # [frequency, 9, pose]

    def __call__(self, pictures: torch.Tensor,
                 backgrounds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Two [N, 3, 32, 32] -> best gain of each sprite and angle [N, 24, 12], its pose [N, 24, 12, 4].

        A pose is x, y, log width and angle, in pixels of a 128-pixel picture and radians.
        """
        side, steps = COARSE + BORDER, COARSE + 1
        residual, ones = pictures - backgrounds, torch.ones_like(pictures[:, :1])
        planes = torch.cat([2 * residual, -2 * (residual * backgrounds).sum(1, keepdim=True), -ones,
                            2 * backgrounds, -backgrounds.square().sum(1, keepdim=True)], 1)
        spectrum = torch.fft.rfft2(planes, s=(side, side)).flatten(2).permute(2, 0, 1)  # [frequency, N, 9]
        product = (spectrum @ self.bank).permute(1, 2, 0).unflatten(2, (side, -1))      # [N, pose, side, 21]
        gain = torch.fft.irfft2(product, s=(side, side))[..., :steps, :steps]           # [N, pose, 33, 33]
        best, index = gain.reshape(len(pictures), len(SPRITES), ANGLES, -1).max(-1)     # [N, 24, 12]
        width, y, x = torch.unravel_index(index, (len(WIDTHS), steps, steps))
        angle = (torch.arange(ANGLES) * (2 * math.pi / ANGLES)).expand_as(best)
        pixel = SIDE / COARSE
        return best, torch.stack([x * pixel, y * pixel, torch.tensor(WIDTHS).log()[width], angle], -1)


@functools.cache
def search_bank() -> Search:
    """The one `Search`: 120 MB and some seconds, made when first needed."""
    return Search()


def compose(sprite: torch.Tensor, pose: torch.Tensor, backgrounds: torch.Tensor) -> torch.Tensor:
    """[M] sprites in [M, 4] poses before [M, 3, s, s] -> pictures [M, 3, s, s]."""
    rgba = shrink(place_sprites(sprite, pose[:, :2], pose[:, 2].exp(), pose[:, 3]), backgrounds.shape[-1])
    return rgba[:, :3] + (1 - rgba[:, 3:]) * backgrounds


def refine(pictures: torch.Tensor, backgrounds: torch.Tensor, sprite: torch.Tensor, pose: torch.Tensor,
           turn: bool = True, steps: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Levenberg-Marquardt: better poses [M, 4] and their squared errors [M].

    `pictures` [M, 3, 64, 64] are softened, `backgrounds` are not. `turn` False keeps the angles as given.
    """
    probe = torch.diag(torch.tensor([1.0, 1.0, 0.03, 0.05]))[:4 if turn else 3]         # finite differences
    free = len(probe)
    damping = torch.full((len(pose),), 0.01)
    fit = soften(compose(sprite, pose, backgrounds))
    error = (pictures - fit).square().sum((1, 2, 3))
    for _ in range(steps):
        moved = (pose[:, None] + probe).flatten(0, 1)                                   # [M * free, 4]
        slope = soften(compose(sprite.repeat_interleave(free), moved, backgrounds.repeat_interleave(free, 0)))
        slope = (slope.unflatten(0, (-1, free)) - fit[:, None]).flatten(2)              # [M, free, pixels]
        normal = slope @ slope.mT                                                       # [M, free, free]
        normal = normal + torch.diag_embed(normal.diagonal(dim1=1, dim2=2) * damping[:, None] + 1e-4)
        change = torch.linalg.solve(normal, slope @ (pictures - fit).flatten(1)[..., None])[..., 0]
        trial = pose + change.clamp(-6, 6) @ probe
        trial[:, 2].clamp_(*LOG_WIDTHS)
        trial_fit = soften(compose(sprite, trial, backgrounds))
        trial_error = (pictures - trial_fit).square().sum((1, 2, 3))
        better = trial_error < error
        pose = torch.where(better[:, None], trial, pose)
        fit = torch.where(better[:, None, None, None], trial_fit, fit)
        error = torch.where(better, trial_error, error)
        damping = torch.where(better, damping / 3, damping * 8)
    return pose, error
