"""Content injection in figures: what a picture takes from the content and what it keeps of the original.

Pairs of true pictures that have no attribute in common. `content` is the share of sprite, size and place that are the
content's, `style` the share of background colour and texture that are the original's; `quality` is the oracle's
confidence in the sprite it sees. The curves go over gamma for h alone and with the deep skips, which get the same
gamma. Both are inverted with their captions; the prompt of sampling names the original's background alone.
`purity`: how much of the change that HCS sees lies in what is content, at the best setting; `purity_oracle` as the
oracle sees it; `purity_rank`: rank correlation of the two over all settings.
"""
from __future__ import annotations

import statistics
import sys
from itertools import pairwise, product

import torch
from bench._h_space import CONTENT, DEEP, STYLE, h_alone, injected, pairs, pictures, settings, share
from bench._metrics import ruler_scores, shares_of_change
from bench._sprite_world import JUDGE, context, load_world, prompts

from frozen_diffusion.modules.demo.oracle import read_pictures
from frozen_diffusion.modules.host.metrics.clip_pair import HostPair
from frozen_diffusion.modules.metrics.disentanglement import rank_correlation

STEPS, SEED = 50, 420
GAMMAS = (0.2, 0.4, 0.6, 0.8, 1.0)
HOW = {"t_edit": 200, "t_boost": 200, "lead": 200}
ALONE, DEEPER = "h alone", "deep skips"
ENOUGH = 0.80               # of the style, for a setting to count
SLACK = 0.02                # of content, by which a later point of a rising curve may lie lower: the draw of pairs


@torch.inference_mode()
def run() -> dict:
    """`content` and `style` at the best setting: the most content among those that keep enough style."""
    world, marks, count, changes = load_world(), {}, prompts(200), {}
    pair = HostPair(world.clip, world.vision)
    for batch in pairs(world, count, SEED, STEPS):
        for kind, gamma in ((DEEPER, 0.0), *product((ALONE, DEEPER), GAMMAS)):
            trace, skips = (batch.trace, gamma) if kind == DEEPER else (h_alone(batch.trace), 0.0)
            samples = injected(world, batch, settings(gamma, **HOW), skips, trace)
            pixels = pictures(world, samples)
            seen = read_pictures(pixels)
            if (kind, gamma) == (DEEPER, 0.0):
                before = ruler_scores(pair, pixels), seen.scenes
            else:
                changes.setdefault((kind, gamma), []).append((*shares_of_change(
                    (before[0], ruler_scores(pair, pixels)), (before[1], seen.scenes), CONTENT), len(samples)))
            marks.setdefault((kind, gamma), []).append(
                (share(batch.contents, seen, CONTENT), share(batch.originals, seen, STYLE),
                 seen.confidence.mean().item(), len(samples)))
        done = sum(rows[-1] for rows in marks[DEEPER, 1.0])
        print(f"{done} of {count} pairs; gamma 1: content {weighted(marks[DEEPER, 1.0], 0):.3f}, style "
              f"{weighted(marks[DEEPER, 1.0], 1):.3f}", file=sys.stderr, flush=True)
    curve = {key: [weighted(rows, column) for column in range(3)] for key, rows in marks.items()}
    best = max([key for key, (_, style, _) in curve.items() if style >= ENOUGH] or curve, key=lambda key: curve[key][0])
    content, style, quality = curve[best]
    pure = {key: [weighted(rows, column) for column in range(2)] for key, rows in changes.items()}
    rising = [curve[DEEPER, gamma][0] for gamma in (0.0, *GAMMAS)]
    figures = {"content": content, "style": style, "quality": quality, "quality_plain": curve[DEEPER, 0.0][2],
               "content_h_alone": max(curve[ALONE, gamma][0] for gamma in GAMMAS),
               "purity": pure.get(best, [0.0])[0], "purity_oracle": pure.get(best, [0.0, 0.0])[1],
               "purity_rank": rank_correlation(*zip(*pure.values(), strict=True)),
               "content_rises": float(all(later >= sooner - SLACK for sooner, later in pairwise(rising)))}
    told = {f"{kind}, gamma {gamma}": dict(zip(("content", "style", "quality"), values, strict=True))
            for (kind, gamma), values in curve.items()}
    return {"figures": figures, "context": context(
        judge=JUDGE, seeds=[SEED], steps=STEPS, cfg=1.0, pairs=count, omega=0.0, deep_skips=DEEP, **HOW,
        setting={"kind": best[0], "gamma": best[1]}, curve=told)}


def weighted(rows: list[tuple[float, ...]], column: int) -> float:
    """Mean over batches of a mark, by their sizes."""
    return statistics.fmean([row[column] for row in rows], weights=[row[-1] for row in rows])
