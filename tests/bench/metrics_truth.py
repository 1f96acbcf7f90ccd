"""Do the metrics find what is really different? Sets of sprite world's true pictures, whose attributes are known.

2000 pictures a set, the shipped list. `hcs_auc`, `worst_auc`: finding the true attribute, mean and worst of 40;
`clipscore_auc` with plain CLIPScore. `monotone`: of 8 attributes, SaD rises with a share of 50 to 90 % and ranks first.
`pair_first`: of 8 pairs coupled the other way round at equal marginals, PaD ranks the pair first and at ten times its
floor or more (an opposite of two values is the same finding).
Half of the pictures have each value: (large, blue) comes second there, behind (small, red). With each value at its
share of the world it comes first, and (green, plain) second, behind (pink, plain): a colour shows in its opposite too.
`sign_right` of both ways of all injections. `false_alarms`: share of attributes that are called significant between two
sets of one law, 200 pictures each; `raw_alarms` before Benjamini and Hochberg. `power`: one attribute's share moved
from 1/8 to 1/4 is found; `power_alone` and nothing else. FROZEN_BENCH_QUICK=1: a fifth of the pictures and repetitions.
About 15 minutes. Name: metrics-truth.
"""
from __future__ import annotations

import os
import sys
from dataclasses import replace

import torch
from bench._metrics import INDEX, NAMES, Laboratory, drawn, opposite, truth, without

from frozen_diffusion.modules.demo.attributes import holds
from frozen_diffusion.modules.metrics.compare import usable_pairs
from frozen_diffusion.modules.metrics.density import without_variance
from frozen_diffusion.modules.metrics.divergence import GENERAL, fitted_range, pad, sad
from frozen_diffusion.modules.metrics.hcs import clip_scores
from frozen_diffusion.modules.metrics.report import detectability
from frozen_diffusion.modules.metrics.significance import LEVEL, attribute_null, pair_null
from frozen_diffusion.modules.seeding import stream

QUICK = bool(os.environ.get("FROZEN_BENCH_QUICK"))
COUNT, REPETITIONS, SMALL = (400, 10, 100) if QUICK else (2000, 50, 200)
SHARES = (0.5, 0.6, 0.7, 0.8, 0.9)
INJECTED = [("sprite", "dog"), ("sprite", "fish"), ("colour", "red"), ("colour", "black"), ("size", "large"),
            ("place", "left"), ("texture", "stripes"), ("texture", "dots")]
COUPLED = [(("sprite", "dog"), ("colour", "red")), (("sprite", "fish"), ("size", "small")),
           (("sprite", "car"), ("texture", "dots")), (("sprite", "moon"), ("place", "left")),
           (("size", "large"), ("colour", "blue")), (("size", "small"), ("texture", "stripes")),
           (("size", "large"), ("place", "middle")), (("colour", "green"), ("texture", "plain"))]


def tell(*words) -> None:
    print(*words, file=sys.stderr, flush=True)


def same_finding(found: tuple[str, str], wanted: tuple[str, str]) -> bool:
    return found == wanted or found == opposite(wanted)


def injections(laboratory: Laboratory, base) -> tuple[list[bool], list[bool]]:
    """Whether each rises and ranks first; whether its sign is right, injected and left out."""
    monotone, signs = [], []
    for name in INJECTED:
        kind, value = name
        own, column = laboratory.features(drawn(COUNT, 1, **{kind: value}), 11), INDEX[name]
        values, first = [], True
        for share in SHARES:
            much = round(share * COUNT)
            mixed = torch.cat([own[:much], base[1][:COUNT - much]])
            scores = laboratory.scores(base[0], base[0]), laboratory.scores(mixed, base[0])
            found = sad(*scores, fitted_range(*scores, GENERAL)[0]).kl
            values.append(float(found[column]))
            first &= same_finding(NAMES[int(found.argmax())], name)
            back = laboratory.scores(mixed, mixed), laboratory.scores(base[0], mixed)
            signs += [float((scores[1].mean(0) - scores[0].mean(0))[column]) > 0,
                      float((back[1].mean(0) - back[0].mean(0))[column]) < 0]
        monotone.append(first and all(later > sooner for sooner, later in zip(values, values[1:], strict=False)))
        tell(name, [round(value) for value in values], "first" if first else "not first")
    return monotone, signs


def couplings(laboratory: Laboratory) -> list[bool]:
    """Whether each inverted coupling is found as a pair, far above its floor."""
    found = []
    for (kind, value), (other_kind, other) in COUPLED:
        half, fixed = COUNT // 2, {kind: value, other_kind: other}
        both, neither = drawn(half, 2, **fixed), without(half, 3, **fixed)
        first_only = [replace(scene, **{kind: value}) for scene in without(half, 4, **fixed)]
        second_only = [replace(scene, **{other_kind: other}) for scene in without(half, 5, **fixed)]
        reference, generated = (laboratory.features([*one, *two], seed) for one, two, seed in (
            (both, neither, 21), (first_only, second_only, 22)))
        scores = laboratory.scores(reference, reference), laboratory.scores(generated, reference)
        settings, _ = fitted_range(*scores, GENERAL)
        pairs, _ = usable_pairs(*scores, without_variance(scores[0]), [value for _, value in NAMES])
        values = pad(*scores, pairs, settings).kl
        worst = int(values.argmax())
        here = [NAMES[number] for number in pairs[worst].tolist()]
        wanted = ((kind, value), (other_kind, other))
        first = any(same_finding(here[0], a) and same_finding(here[1], b) for a, b in (wanted, wanted[::-1]))
        floor = pair_null(*scores, pairs[worst:worst + 1], replace(settings, pair_draws=10)).floor
        found.append(first and float(values[worst] / floor) >= 10)
        tell(wanted, "first" if first else f"behind {here}", f"{float(values[worst] / floor):.0f} times its floor")
    return found


def chances(laboratory: Laboratory, base) -> dict[str, float]:
    """False alarms, and what is found of one share moved from 1/8 to 1/4."""
    pool, red = torch.cat(base), laboratory.features(drawn(COUNT, 6, colour="red"), 61)
    others, column = laboratory.features(without(COUNT, 7, colour="red"), 71), INDEX["colour", "red"]
    alarms, raw, power, alone = [], [], [], []
    for number in range(REPETITIONS):
        picked = torch.randperm(len(pool), generator=stream("repetition", number))[:2 * SMALL]
        one, two = pool[picked[:SMALL]], pool[picked[SMALL:]]
        null = null_of(laboratory, one, two)
        alarms.append(float((null.adjusted <= LEVEL).double().mean()))
        raw.append(float((null.p <= LEVEL).double().mean()))
        start, quarter = number * SMALL // 4 % (COUNT // 2), SMALL // 4
        moved = torch.cat([red[start:start + quarter], others[start:start + SMALL - quarter]])
        null = null_of(laboratory, one, moved)
        called = set((null.adjusted <= LEVEL).nonzero().flatten().tolist())
        power.append(column in called)
        alone.append(called == {column})
    tell("alarms", sum(alarms) / len(alarms), "power", sum(power) / len(power))
    return {"false_alarms": sum(alarms) / len(alarms), "raw_alarms": sum(raw) / len(raw),
            "power": sum(power) / len(power), "power_alone": sum(alone) / len(alone)}


def null_of(laboratory: Laboratory, one: torch.Tensor, two: torch.Tensor):
    scores = laboratory.scores(one, one), laboratory.scores(two, one)
    return attribute_null(*scores, fitted_range(*scores, GENERAL)[0])


def run() -> dict:
    laboratory = Laboratory()
    scenes = drawn(COUNT, 0)
    base = laboratory.features(scenes, 1), laboratory.features(drawn(COUNT, 8), 2)
    there = truth(scenes, holds)
    auc = detectability(laboratory.scores(base[0], base[0]), there)
    plain = detectability(clip_scores(base[0], laboratory.templated), there)
    figures = {"hcs_auc": float(auc.mean()), "worst_auc": float(auc.min()), "clipscore_auc": float(plain.mean())}
    tell(figures)
    monotone, signs = injections(laboratory, base)
    found = couplings(laboratory)
    figures |= {"monotone": sum(monotone) / len(monotone), "pair_first": sum(found) / len(found),
                "sign_right": sum(signs) / len(signs), **chances(laboratory, base)}
    return {"figures": figures, "context": {"pictures": COUNT, "repetitions": REPETITIONS, "small": SMALL}}
