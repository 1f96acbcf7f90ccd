"""SaD and PaD on the specification's golden data (sad_pad.md 8.1), which has no randomness.

`worst_relative`: of all its numbers by the exact path. `binned_relative`: the same by bins. `series_relative`: pairs by
the series that sets of usual size take. `n_independence`: of the published unit, 1000 against 10 000 points. Name:
metrics-golden.
"""
from __future__ import annotations

from dataclasses import replace

from metrics_golden_data import LITERAL, PAIRS, SINGLE, correlated, normal

from frozen_diffusion.modules.metrics.divergence import GENERAL, PAPER_PARITY, all_pairs, pad, sad


def worst(settings) -> float:
    """The largest relative difference from all golden numbers."""
    found = [abs(value / wanted - 1) for (one, other), both in SINGLE.items()
             for value, wanted in zip((float(part) for part in (lambda d: (d.kl, d.reverse))(
                 sad(normal(*one), normal(*other), settings))), both, strict=True)]
    return max(*found, worst_pair(settings))


def worst_pair(settings) -> float:
    return max(abs(float(pad(correlated(*one), correlated(*other), all_pairs(2), settings).kl) / wanted - 1)
               for (one, other), wanted in PAIRS.items())


def run() -> dict:
    literal = [abs(float(sad(normal(0, 4), normal(1, 4), replace(PAPER_PARITY, nodes=nodes)).kl) * 1e4 / nodes / wanted
                   - 1) for nodes, wanted in LITERAL.items()]
    few, many = (float(sad(normal(0, 4), normal(1, 4), replace(GENERAL, nodes=nodes)).kl) for nodes in (1000, 10_000))
    figures = {"worst_relative": max(worst(PAPER_PARITY), *literal),
               "binned_relative": worst(replace(PAPER_PARITY, method="binned")), "series_relative": worst_pair(GENERAL),
               "n_independence": abs(few / many - 1)}
    return {"figures": figures, "context": {}}
