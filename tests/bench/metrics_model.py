"""What the metrics say of the sprite-world base, beside the oracle's verdict.

Samples at 4, 8 and 25 steps and cfg 1, 2 and 5 against true pictures of the same scenes: mean SaD and the oracle's mean
error of each setting; `settings_rank`: rank correlation of the two over settings; `share_rank` and `error_rank`: over
attributes, of SaD with the drift of the attribute's share as the oracle sees it, and with the oracle's error, mean over
settings; `worst_is_4_steps_cfg_5`. FROZEN_BENCH_PROMPTS sets the samples of a setting (1000). About 70 minutes on two
cores. The picture of the help page is made of the rows: `testhost.pictures metrics_model FILE`. Name: metrics-model.
"""
from __future__ import annotations

import math
import statistics
import sys

import torch
from bench._metrics import NAMES, TITLES, Laboratory, drawn, truth
from bench._sprite_world import JUDGE, context, generate_all, load_world, prompts

from frozen_diffusion.modules.demo.attributes import holds
from frozen_diffusion.modules.demo.oracle import read_pictures
from frozen_diffusion.modules.host.metrics.image_sets import set_of_images
from frozen_diffusion.modules.metrics.disentanglement import rank_correlation
from frozen_diffusion.modules.metrics.divergence import GENERAL, fitted_range, sad

SETTINGS = [(steps, cfg) for steps in (4, 8, 25) for cfg in (1.0, 2.0, 5.0)]
SEED, BATCH = 700, 50


def mean_rank(rows: dict, name: str) -> float:
    """Over the settings in which there are errors at all."""
    return statistics.fmean(row[name] for row in rows.values() if math.isfinite(row[name]))


def run() -> dict:
    laboratory, world, count = Laboratory(), load_world(), prompts(1000)
    scenes = drawn(count, SEED)
    reference, asked = laboratory.features(scenes, SEED), truth(scenes, holds)
    scores, rows = laboratory.scores(reference, reference), {}
    for steps, cfg in SETTINGS:
        with torch.inference_mode():
            made = generate_all(world, world.model, scenes, SEED, steps, BATCH, cfg)[:, 0]
        seen = truth(read_pictures(made).scenes, holds)
        its = laboratory.scores(set_of_images(made.movedim(1, -1), laboratory.pair).features, reference)
        found = sad(scores, its, fitted_range(scores, its, GENERAL)[0]).kl
        error = (seen != asked).double().mean(0)
        share = (seen.double().mean(0) - asked.double().mean(0)).abs()
        kinds = [[number for number, (kind, _) in enumerate(NAMES) if kind == this]
                 for this in dict.fromkeys(kind for kind, _ in NAMES)]
        wrong = statistics.fmean(float((seen[:, kind] != asked[:, kind]).any(1).double().mean()) for kind in kinds)
        rows[f"{steps} steps, cfg {cfg:g}"] = {
            "sad": float(found.mean()), "error": wrong, "error_rank": rank_correlation(found.tolist(), error.tolist()),
            "share_rank": rank_correlation(found.tolist(), share.tolist()),
            "attributes": dict(zip(TITLES, zip(found.tolist(), error.tolist(), strict=True), strict=True))}
        print(steps, cfg, {key: value for key, value in rows[f"{steps} steps, cfg {cfg:g}"].items()
                           if key != "attributes"}, file=sys.stderr, flush=True)
    figures = {"settings_rank": rank_correlation([row["sad"] for row in rows.values()],
                                                 [row["error"] for row in rows.values()]),
               "share_rank": mean_rank(rows, "share_rank"), "error_rank": mean_rank(rows, "error_rank"),
               "worst_is_4_steps_cfg_5": float(max(rows, key=lambda name: rows[name]["sad"]) == "4 steps, cfg 5")}
    figures |= {f"sad {name}": row["sad"] for name, row in rows.items()}
    figures |= {f"error {name}": row["error"] for name, row in rows.items()}
    return {"figures": figures, "context": context(judge=JUDGE, samples=count, rows=rows)}
