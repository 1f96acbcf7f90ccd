"""What the densities of attribute metrics cost, at the paper's size and at a user's.

N = 50 000 and 20 attributes of random scores: `pairs_seconds` of all 190 pairs by bins, `over_scipy` = scipy's
gaussian_kde on the same grid, one pair, over ours. N = 2000: `null_seconds` of the draws that tell chance, 200 or more
of all attributes and 50 of all pairs. `peak_gib` of the process. Name: metrics-speed.
"""
from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

import torch

from frozen_diffusion.modules.metrics import density
from frozen_diffusion.modules.metrics.divergence import GENERAL, all_pairs, pad
from frozen_diffusion.modules.metrics.significance import attribute_null, pair_null
from frozen_diffusion.modules.seeding import stream

LARGE, USUAL, ATTRIBUTES, SPREAD = 50_000, 2000, 20, 8.0


def scores(count: int, seed: int) -> torch.Tensor:
    return SPREAD * torch.randn(count, ATTRIBUTES, generator=stream("speed", seed), dtype=torch.float64)


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    found = time.perf_counter() - began
    print(f"{found:.2f} s", file=sys.stderr, flush=True)
    return found


def run() -> dict:
    pairs = all_pairs(ATTRIBUTES)
    one, other = scores(LARGE, 1), scores(LARGE, 2)
    ours = seconds(lambda: pad(one, other, pairs, GENERAL))
    scipys = seconds(lambda: density.exact_2d(one[:, 0], one[:, 1], GENERAL.pair_nodes))
    few, fewer = scores(USUAL, 3), scores(USUAL, 4)
    null = seconds(lambda: attribute_null(few, fewer, GENERAL)) + seconds(lambda: pair_null(few, fewer, pairs, GENERAL))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    figures = {"pairs_seconds": ours, "over_scipy": 2 * scipys / (ours / len(pairs)), "null_seconds": null,
               "peak_gib": peak}
    return {"figures": figures, "context": {"scipy_seconds_a_density": scipys,
                                            "attribute_draws": attribute_null(few[:50], fewer[:50], GENERAL).draws}}
