"""Many captions and latents of sprite world as one batch for the host's samplers."""
from __future__ import annotations

from collections.abc import Sequence

import comfy.model_management
import torch

SIDE = 16       # of a latent


def conditioning_of(clip, captions: Sequence[str]) -> list:
    """CONDITIONING with one row for each caption."""
    rows, pooled = [], []
    for text in captions:
        comfy.model_management.throw_exception_if_processing_interrupted()
        tokens, whole = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)
        rows.append(tokens)
        pooled.append(whole)
    return [[torch.cat(rows), {"pooled_output": torch.cat(pooled)}]]


def empty_latent(count: int) -> dict:
    """LATENT of that many pictures."""
    return {"samples": torch.zeros(count, 4, SIDE, SIDE, device=comfy.model_management.intermediate_device())}
