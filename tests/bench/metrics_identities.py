"""The identities of attribute metrics (sad_pad.md 8.2), each by the tests of the suite that prove it.

`hold` is the share of items whose tests all pass; `templated` the residual of the zero-sum identity on sprite world's
own pair. Name: metrics-identities.
"""
from __future__ import annotations

import torch
from bench._metrics import Laboratory, drawn
from bench.guide_proofs import passes

from frozen_diffusion.modules.metrics.hcs import TEMPLATED, hcs, text_directions

UNIT, HOST = "tests/unit/test_metrics.py", "tests/host/test_metrics_sets.py"
ITEMS = {
    "zero sum, and antisymmetry of two": [UNIT, "zero_sum"],
    "scale and common shift": [UNIT, "common_shift"],
    "the analytic divergence": [UNIT, "analytic"],
    "a flipped correlation is of pairs only": [UNIT, "equal_marginals or golden_numbers_of_pairs"],
    "a pair is at least as far as its attributes": [UNIT, "at_least_as_far"],
    "order, batches, an appended set": [f"{UNIT} {HOST}", "order_and_parts or a_grown_set"],
    "the unit does not depend on points": [UNIT, "literal_unit"],
    "bins and scipy": [UNIT, "bins_series_and_scipy or golden_numbers"],
}


def run() -> dict:
    found = {item: passes(*tests) for item, tests in ITEMS.items()}
    laboratory = Laboratory()
    features = laboratory.features(drawn(50, 0), 0)
    vectors = text_directions(laboratory.templated, laboratory.templated, [""] * 40, TEMPLATED)
    sums = (vectors.norm(dim=1) * hcs(features, features.double().mean(0), vectors)).sum(1)
    return {"figures": {"hold": sum(found.values()) / len(found),
                        "templated": float(sums.abs().max() / (100 * torch.linalg.norm(vectors)))},
            "context": {"items": found}}
