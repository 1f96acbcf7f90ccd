"""The chunks of cond and uncond that the host puts into one call of the U-Net."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Chunk:
    """Rows of one call of the U-Net: whether they follow the prompt, and which pictures of the batch they are."""
    cond: bool
    rows: slice
    items: tuple[int, ...]


def chunks_of(rows: int, options: Mapping) -> list[Chunk]:
    """The chunks of a call with so many rows, in their order. Knows the context windows of the host and of ADE."""
    kinds = options.get("cond_or_uncond") or [0]
    each = rows // len(kinds)
    window = options.get("context_window")
    other = (options.get("ad_params") or {}).get("sub_idxs")
    index = other if window is None else window.index_list
    items = tuple(index) if index is not None and len(index) == each else tuple(range(each))
    return [Chunk(kind == 0, slice(number * each, (number + 1) * each), items) for number, kind in enumerate(kinds)]
