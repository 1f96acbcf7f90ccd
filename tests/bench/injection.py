"""Content injection in figures: what a picture takes from the content and what it keeps of the original.

Pairs of true pictures that have no attribute in common. `content` is the share of sprite, size and place that are the
content's, `style` the share of background colour and texture that are the original's; `quality` is the oracle's
confidence in the sprite it sees. The curves go over gamma for h alone and with the deep skips, which get the same
gamma. A content is inverted with its caption; an original's prompt names its background, in inversion and sampling.
"""
from __future__ import annotations

import statistics
import sys

import torch
from bench._h_space import CONTENT, DEEP, STYLE, h_alone, injected, pairs, read, settings, share
from bench._sprite_world import JUDGE, context, load_world, prompts

STEPS, SEED = 50, 420
GAMMAS, T_EDIT = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), 100
ENOUGH = 0.80               # of the style, for a setting to count


@torch.inference_mode()
def run() -> dict:
    """`content` and `style` at the best setting: the most content among those that keep enough style."""
    world, marks, count = load_world(), {}, prompts(200)
    for number, batch in enumerate(pairs(world, count, SEED, STEPS)):
        for kind, trace, skips in (("h alone", h_alone(batch.trace), 0.0), ("deep skips", batch.trace, 1.0)):
            for gamma in GAMMAS:
                samples = injected(world, batch, settings(gamma, t_edit=T_EDIT), skips * gamma, trace)
                seen = read(world, samples)
                marks.setdefault((kind, gamma), []).append(
                    (share(batch.contents, seen, CONTENT), share(batch.originals, seen, STYLE),
                     seen.confidence.mean().item(), len(samples)))
        print(f"batch {number + 1} of pairs", file=sys.stderr, flush=True)
    curve = {key: [weighted(rows, column) for column in range(3)] for key, rows in marks.items()}
    good = [key for key, (_, style, _) in curve.items() if style >= ENOUGH]
    best = max(good or curve, key=lambda key: curve[key][0])
    content, style, quality = curve[best]
    rising = all(later >= sooner - 0.02 for sooner, later in
                 zip(*(lambda values: (values[:-1], values[1:]))([curve["deep skips", g][0] for g in GAMMAS]),
                     strict=True))
    return {"figures": {"content": content, "style": style, "quality": quality,
                        "quality_plain": curve["h alone", 0.0][2], "content_h_alone": max(
                            curve["h alone", gamma][0] for gamma in GAMMAS), "content_rises": float(rising)},
            "context": context(judge=JUDGE, seeds=[SEED], steps=STEPS, cfg=1.0, pairs=count, t_edit=T_EDIT, omega=0.0,
                               deep_skips=DEEP, setting={"kind": best[0], "gamma": best[1]},
                               curve={f"{kind}, gamma {gamma}": dict(zip(("content", "style", "quality"), values,
                                                                         strict=True))
                                      for (kind, gamma), values in curve.items()})}


def weighted(rows: list[tuple[float, ...]], column: int) -> float:
    """Mean over batches of a mark, by their sizes."""
    return statistics.fmean([row[column] for row in rows], weights=[row[-1] for row in rows])
