"""How much of a clip's motion and of its look a sample has, told from pixels alone (customize_a_video.md 5, 8).

Both are relative: motion to the reference's, look to what the model draws without the LoRA. No oracle, no other
network: the subject is what differs from a clip's median frame, the camera what shifts a frame as a whole.
"""
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

SIDE = 64                       # pixels that clips are looked at
BINS = 6                        # of each colour channel
RISE = 0.05                     # of fidelity: a snapshot this near to the best is as good


def small(clip: Tensor) -> Tensor:
    """[F, H, W, 3] in 0..1 -> [F, 3, SIDE, SIDE]."""
    return functional.interpolate(clip.movedim(-1, 1).float(), (SIDE, SIDE), mode="area")


def subject_weights(clip: Tensor) -> Tensor:
    """[F, H, W] >= 0 with sum 1 in each frame: where a small clip [F, 3, H, W] differs from its median frame."""
    away = (clip - clip.median(0).values).square().sum(1)                       # [F, H, W]
    away = (away - 0.1 * away.amax((1, 2), keepdim=True)).clamp(min=0)
    return away / away.sum((1, 2), keepdim=True).clamp(min=1e-8)


def centroids(clip: Tensor) -> Tensor:
    """The subject's path [F, 2] (x, y) in sides of the frame, of a clip [F, H, W, 3]."""
    weights = subject_weights(small(clip))
    axis = (torch.arange(SIDE) + 0.5) / SIDE
    return torch.stack([(weights.sum(1) * axis).sum(1), (weights.sum(2) * axis).sum(1)], dim=1)


def camera_path(clip: Tensor) -> Tensor:
    """How frames shift as a whole, [F, 2] in sides of the frame, added up from phase correlation of neighbours."""
    grey = small(clip).mean(1)
    spectrum = torch.fft.fft2(grey - grey.mean((1, 2), keepdim=True))
    cross = spectrum[1:] * spectrum[:-1].conj()
    peak = torch.fft.ifft2(cross / cross.abs().clamp(min=1e-8)).real.flatten(1).argmax(1)
    y, x = peak // SIDE, peak % SIDE
    steps = torch.stack([x, y], 1).float()
    steps = torch.where(steps > SIDE / 2, steps - SIDE, steps) / SIDE
    return torch.cat([torch.zeros(1, 2), steps.cumsum(0)])


def fidelity(clip: Tensor, reference: Tensor) -> float:
    """Cosine of the velocities of a clip and of the reference, 1 = moves alike: of the subject or, where that does not
    move, of the camera.
    """
    found = [cosine(track(clip).diff(dim=0), track(reference).diff(dim=0)) for track in (centroids, camera_path)
             if moves(track(reference))]
    return max(found, default=0.0)


def moves(path: Tensor) -> bool:
    """Whether a path leaves its middle by more than a fiftieth of the frame."""
    return float((path - path.mean(0)).norm(dim=1).max()) > 0.02


def cosine(one: Tensor, other: Tensor) -> float:
    return float((one * other).sum() / (one.norm() * other.norm()).clamp(min=1e-8))


def palette(clip: Tensor) -> Tensor:
    """Colours of the subject and of what is around it, [2, BINS^3], each with sum 1: of a clip [F, H, W, 3]."""
    pixels = small(clip)
    weights = subject_weights(pixels)
    near = weights / weights.amax((1, 2), keepdim=True).clamp(min=1e-8)
    index = (pixels.clamp(0, 0.999) * BINS).long()
    flat = (index[:, 0] * BINS + index[:, 1]) * BINS + index[:, 2]              # [F, H, W]
    found = torch.stack([torch.bincount(flat.flatten(), part.flatten(), BINS ** 3)
                         for part in (near, (1 - near))])
    return found / found.sum(1, keepdim=True).clamp(min=1e-8)


def leakage(clip: Tensor, reference: Tensor, base: Tensor) -> float:
    """How far the look went from `base` (the same prompt and noise without LoRA) towards the reference: 0 = not at all,
    1 = all the way; the worse of subject and surroundings.
    """
    own, there, before = palette(clip), palette(reference), palette(base)
    whole = (there - before).square().sum(1).clamp(min=1e-4)
    return float((((own - before) * (there - before)).sum(1) / whole).max())


def diversity(clips: Tensor) -> float:
    """Mean squared distance of clips [N, F, H, W, 3] of one prompt from each other; small: all seeds give one clip."""
    if len(clips) < 2:
        return 0.0
    flat = torch.stack([small(clip).flatten() for clip in clips])
    return float(torch.pdist(flat).square().mean() / flat.shape[1])


def best_snapshot(fidelities: list[float]) -> int:
    """The earliest of the snapshots within RISE of the best: later ones only learn more of the look. -1 of none."""
    if not fidelities:
        return -1
    best = max(fidelities)
    return next(number for number, value in enumerate(fidelities) if value >= best - RISE)
