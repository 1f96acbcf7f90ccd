"""Attention that can be differentiated, for the host's override: some of the host's own kernels have no derivative."""
from __future__ import annotations

import comfy.model_management
import torch
import torch.nn.functional as F
from torch import Tensor

QUERIES, LEAST_QUERIES = 1024, 32   # of plain attention at once: it keeps queries x keys x heads numbers


def attend(default, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None,
           **kwargs) -> Tensor:
    """Attention by torch for the host's override: some of the host's own kernels have no backward pass."""
    if mask is not None or kwargs.get("skip_reshape"):
        return default(q, k, v, heads, mask=mask, **kwargs)
    return attention(q, k, v, heads)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **_) -> Tensor:
    """softmax(q k^T / sqrt d + mask) v of [B, N, heads d], with a derivative."""
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def attend_plainly(default, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None,
                   **kwargs) -> Tensor:
    """softmax(q k^T / sqrt d) v for the host's override. q, k, v [B, N, heads d] -> [B, N, heads d]"""
    if mask is not None or kwargs.get("skip_reshape"):
        return default(q, k, v, heads, mask=mask, **kwargs)
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))      # [B, heads, N, d]
    queries = QUERIES
    while True:
        try:
            parts = [attend_chunk(part, k, v) for part in q.split(queries, dim=2)]
            return torch.cat(parts, 2).transpose(1, 2).flatten(2)
        except comfy.model_management.OOM_EXCEPTION:
            if queries <= LEAST_QUERIES:
                raise
        queries //= 2
        comfy.model_management.soft_empty_cache()


def attend_chunk(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [B, heads, n, d], k and v [B, heads, N, d] -> [B, heads, n, d]"""
    return (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1) @ v
