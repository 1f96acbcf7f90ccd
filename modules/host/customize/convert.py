"""Convert LoRA: read, add up, scale, shrink, and write one part of LoRA files."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...customize.files import KOHYA, LoraFileError, write_lora
from ...customize.names import SPATIAL, TEMPORAL, TEXT
from ...customize.rerank import reranked, scaled, summed
from ..files import next_file
from .files import load_lora, load_report, told


def convert(paths: Sequence[Path], scales: Sequence[float], rank: int, layout: str, prefix: str) -> tuple[Path, str]:
    """(the new file, what was done in words).

    Args:
        paths: one file, or two whose changes are added, times their `scales`.
        rank: 0 = as it is.
        layout: of the new file, which decides which part is kept.

    Raises LoraFileError, ValueError, OSError.
    """
    files = [load_lora(path) for path in paths]
    lines = [load_report(file) for file in files]
    if any(file.list_base for file in files):
        raise LoraFileError(f"{files[0].source} is a MotionDirector list for ModelScope; no other layout has its "
                            "layers.")
    scopes = (SPATIAL, TEXT) if layout == KOHYA else (TEMPORAL,)
    found, kept = {}, {}
    for scope in scopes:
        parts = [scaled(file.scopes[scope], scale) for file, scale in zip(files, scales, strict=False)]
        parts = [part for part in parts if part]
        factors = parts[0] if len(parts) == 1 else summed(parts)
        if factors and rank:
            factors, kept[scope] = reranked(factors, rank)
        if factors:
            found[scope] = factors
    if not found:
        other = "AnimateDiff or diffusers" if layout == KOHYA else KOHYA
        raise LoraFileError(f"{files[0].source} has no {' or '.join(scopes)} layers, which are all that the layout "
                            f"{layout} holds. Choose {other}.")
    path = next_file(prefix)
    write_lora(path, found, layout, told({**files[0].metadata, "converted_from": ", ".join(
        file.source for file in files)}))
    lines += [f"rank {rank} keeps {share:.1%} of the change's energy ({scope} layers)" for scope, share in kept.items()]
    layers = sum(len(part) for part in found.values())
    return path, "\n".join([*lines, f"saved: {path} ({layers} layers, {path.stat().st_size / 1e6:.2f} MB)"])
