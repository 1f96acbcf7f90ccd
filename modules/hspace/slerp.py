"""Blending of bottleneck features (specification: h-space injection, 2.3 and 2.6)."""
from __future__ import annotations

import torch
from torch import Tensor

COLINEAR = 1e-6         # 1 - |cos| below which two features count as one direction


def slerp(u: Tensor, v: Tensor, weight: Tensor | float) -> Tensor:
    """Spherical interpolation of each row, from u (weight 0) to v (weight 1), over all but the first dimension.

        sin((1 - w) th) / sin(th) u + sin(w th) / sin(th) v,   th = angle between u and v

    Rows that are zero, of one direction or opposite keep u. u, v [B, ...]; weight a number or [B].
    Source: InjectFusion, section "content injection"; the released code has no guard and gives NaN there.
    """
    a, b = _wide(u).flatten(1), _wide(v).flatten(1)
    cos = _cos(a, b)
    weight = torch.as_tensor(weight, dtype=a.dtype, device=a.device).expand(len(a))
    angle = cos.acos()
    of_u, of_v = (((1 - weight) * angle).sin() / angle.sin(), (weight * angle).sin() / angle.sin())
    apart = (1 - cos.abs() >= COLINEAR) & (weight != 0) & a.any(1) & b.any(1)
    blend = of_u[:, None] * a + of_v[:, None] * b
    return torch.where(apart[:, None], blend, a).view(u.shape).to(u.dtype)


def inject(h: Tensor, content: Tensor, gamma: Tensor | float, mask: Tensor | None = None, match: bool = True) -> Tensor:
    """h~ = Slerp(h, content |h| / |content|, gamma), row by row: |h~| = |h| and the angle to h is gamma's share.

    Args:
        h: bottleneck features of the original [B, C, H, W].
        content: those of the content [B, C, H, W].
        gamma: weight of the content, 0 to 1; a number or [B].
        mask: [B or 1, 1, H, W] in 0..1: where it acts. Norms and angle are those inside; outside h stays exactly.
        match: bring the content to h's norm inside the mask; False as the released code does with masks.
    """
    if mask is None:
        return slerp(h, _matched(content, h), gamma)
    inside = (mask > 0).expand_as(h)
    own, other = h * inside, content * inside
    blend = slerp(own, _matched(other, own) if match else other, gamma)
    return torch.where(inside, (mask * _wide(blend) + (1 - mask) * _wide(h)).to(h.dtype), h)


def spherical_mean(contents: Tensor, weights: Tensor, steps: int = 20) -> Tensor:
    """Weighted mean of directions on the sphere, row by row, with the weighted mean of the norms.

    The Karcher mean: the point whose weighted tangents towards all contents add up to nothing, by fixed-point steps
    from the normalised sum. contents [K, B, ...]; weights [K], not negative, not all zero. Returns [B, ...].
    Raises ValueError for weights that name no mean.
    """
    weights = weights.to(_wide(contents))
    if (weights < 0).any() or not weights.sum() > 0:
        raise ValueError(f"The weights of a mean are not negative and not all zero; given: {weights.tolist()}.")
    weights = (weights / weights.sum()).view(-1, 1, 1)
    flat = _wide(contents).flatten(2)                                                   # [K, B, N]
    norms = flat.norm(dim=2, keepdim=True)
    points = flat / norms.clamp(min=1e-12)
    mean = torch.nn.functional.normalize((weights * points).sum(0), dim=-1)             # [B, N]
    for _ in range(steps):
        cos = (points * mean).sum(-1, keepdim=True).clamp(-1, 1)
        away = points - cos * mean
        tangent = (weights * away * (cos.acos() / away.norm(dim=-1, keepdim=True).clamp(min=1e-12))).sum(0)
        length = tangent.norm(dim=-1, keepdim=True)
        mean = length.cos() * mean + length.sin() * tangent / length.clamp(min=1e-12)
    return (mean * (weights * norms).sum(0)).view(contents.shape[1:]).to(contents.dtype)


def angles(u: Tensor, v: Tensor) -> Tensor:
    """Angle of each row of u and v in degrees [B]; 90 where one is zero."""
    return torch.rad2deg(_cos(_wide(u).flatten(1), _wide(v).flatten(1)).acos())


def norms(x: Tensor) -> Tensor:
    """Euclidean norm of each row [B]."""
    return _wide(x).flatten(1).norm(dim=1)


def _cos(a: Tensor, b: Tensor) -> Tensor:
    """[B] of rows; 0 where one of them is zero."""
    return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-30)).clamp(-1, 1)


def _matched(content: Tensor, h: Tensor) -> Tensor:
    """`content` with the norms of h, row by row; zero stays zero."""
    scale = norms(h) / norms(content).clamp(min=1e-30)
    return _wide(content) * scale.view(-1, *[1] * (h.ndim - 1))


def _wide(x: Tensor) -> Tensor:
    """At least float32: sums over a whole feature map overflow half precision."""
    return x if x.dtype == torch.float64 else x.float()
