"""A LoRA of another rank, another strength, or the sum of several: arithmetic on factors."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..training.lora_keys import Factors


def scaled(factors: Mapping[str, Factors], scale: float) -> dict[str, Factors]:
    """The same change times `scale`."""
    return {name: pair._replace(up=pair.up * scale) for name, pair in factors.items()}


def summed(parts: Sequence[Mapping[str, Factors]]) -> dict[str, Factors]:
    """One LoRA whose change is the sum of several: ranks are put beside each other, so that nothing is lost."""
    found: dict[str, Factors] = {}
    for factors in parts:
        for name, pair in factors.items():
            down, up = pair.down.float().flatten(1), pair.up.float().flatten(1) * (pair.alpha / len(pair.down))
            if name in found:
                down, up = torch.cat([found[name].down, down]), torch.cat([found[name].up, up], dim=1)
            found[name] = Factors(down, up, float(len(down)))
    return found


def reranked(factors: Mapping[str, Factors], rank: int) -> tuple[dict[str, Factors], float]:
    """(the nearest LoRA of this rank, the share of the change's energy that it keeps), by the SVD of each layer.

    A layer of smaller rank is left as it is. Raises ValueError for a rank below 1.
    """
    if rank < 1:
        raise ValueError(f"The rank must be at least 1, e.g. 4; {rank} was given.")
    found, kept, whole = {}, 0.0, 0.0
    for name, pair in factors.items():
        up, values, down = _svd(pair)
        energy = values.square()
        whole += float(energy.sum())
        kept += float(energy[:rank].sum())
        if len(pair.down) <= rank:
            found[name] = pair
            continue
        root = values[:rank].sqrt()
        found[name] = Factors((root[:, None] * down[:rank]).unflatten(1, pair.down.shape[1:]),
                              (up[:, :rank] * root).reshape(len(pair.up), rank, *[1] * (pair.up.ndim - 2)), float(rank))
    return found, kept / whole if whole else 1.0


def _svd(pair: Factors) -> tuple[Tensor, Tensor, Tensor]:
    """U, S, V^T of the change, from the factors: never a matrix larger than they are."""
    q_up, r_up = torch.linalg.qr(pair.up.double().flatten(1) * (pair.alpha / len(pair.down)))
    q_down, r_down = torch.linalg.qr(pair.down.double().flatten(1).T)
    u, values, v = torch.linalg.svd(r_up @ r_down.T)
    return (q_up @ u).float(), values.float(), (v @ q_down.T).float()
