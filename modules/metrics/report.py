"""A comparison in words and as tables."""
from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping

from torch import Tensor

from .compare import Comparison
from .hcs import Ruler

NAMED = 4               # attributes and pairs that a sentence names
BELIEFS = ("Scores are what the encoder believes, not truth: they measure generator and encoder together, biases of "
           "either included.")
COLUMNS = ("kind", "name", "score", "reverse", "symmetric", "js", "mean_difference", "coupling", "wasserstein", "floor",
           "excess", "p", "p_adjusted", "low", "high", "spread", "flag")


def conclusion(found: Comparison, of: str = "the generated set") -> str:
    """One sentence that says what differs reliably."""
    first, second = found.counts
    told = f"With {first} reference and {second} generated pictures"
    if found.null is None:
        if not bool(found.counted.any()):
            return f"{told}, no attribute varies, so nothing can be compared."
        worst = max(range(len(found.names)), key=lambda row: float(found.sad.kl[row]))
        return (f"{told}, {of} differs most in {_directed(found, worst)}; whether that is more than chance was not "
                "tested.")
    rows = found.reliable
    named = ", ".join(_directed(found, row) for row in rows[:NAMED])
    more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    single = (f"{len(rows)} of {len(found.names)} attributes differ reliably: {named}{more}." if rows else
              f"no attribute of {of} differs from the reference by more than chance.")
    pairs = ", ".join(f"{pair_name(found, row)} ({'more' if found.coupling[row] > 0 else 'less'} often)"
                      for row in found.coupled_pairs[:2])
    return f"{told}, {single}" + (f" Attributes that come together as they should not: {pairs}." if pairs else "")


def _directed(found: Comparison, row: int) -> str:
    difference = float(found.difference[row])
    return f"{found.names[row]} ({'too much' if difference > 0 else 'too little'}, {difference:+.1f})"


def pair_name(found: Comparison, row: int) -> str:
    i, j = found.pairs[row].tolist()
    return f"{found.names[i]} with {found.names[j]}"


def report_text(found: Comparison, of: str = "the generated set") -> str:
    """The conclusion, the two means with their floors, the worst attributes, and notes."""
    floor = "" if found.null is None else f" (chance alone: {float(found.null.floor[found.counted].mean()):.1f})"
    pair_floor = "" if found.pair_null is None else f" (chance alone: {float(found.pair_null.floor.mean()):.1f})"
    lines = [conclusion(found, of), f"SaD {found.mean_sad:.1f}{floor}"]
    if len(found.pairs):
        lines.append(f"PaD {found.mean_pad:.1f}{pair_floor}")
    order = found.sad.kl.argsort(descending=True)[:8].tolist()
    lines.append("furthest: " + ", ".join(f"{found.names[row]} {float(found.sad.kl[row]):.1f}" for row in order))
    settings = found.settings
    lines.append(f"1000 x KL(reference || generated) in nats, HCS within +-{settings.half_range:g}, {settings.method} "
                 f"densities, text centre {settings.text_centre}. {BELIEFS}")
    return "\n".join([*lines, *found.notes])


def rows_of(found: Comparison) -> list[dict]:
    """A row for every attribute and pair."""
    rows = []
    for number, name in enumerate(found.names):
        low, high = (None, None) if found.interval is None else (float(end[number]) for end in found.interval)
        rows.append({"kind": "attribute", "name": name, **_scores(found.sad, number),
                     "mean_difference": float(found.difference[number]),
                     "wasserstein": float(found.wasserstein[number]), **_chance(found.null, number, found.sad),
                     "low": low, "high": high, "spread": float(found.spread[number]), "flag": found.flags[number]})
    for number in range(len(found.pairs)):
        rows.append({"kind": "pair", "name": pair_name(found, number), **_scores(found.pad, number),
                     **_chance(found.pair_null, number, found.pad),
                     "coupling": float(found.coupling[number])})
    return rows


def _scores(found, number: int) -> dict:
    values = {"score": found.kl, "reverse": found.reverse, "symmetric": found.symmetric, "js": found.js}
    return {name: float(value[number]) for name, value in values.items()}


def _chance(null, number: int, scores) -> dict:
    if null is None:
        return {}
    floor = float(null.floor[number])
    return {"floor": floor, "excess": float(scores.kl[number]) - floor, "p": float(null.p[number]),
            "p_adjusted": float(null.adjusted[number])}


def as_csv(comparisons: Mapping[str, Comparison]) -> str:
    """All rows, by the name of the generated set in the first column."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ("set", *COLUMNS), lineterminator="\n", restval="")
    writer.writeheader()
    for name, found in comparisons.items():
        for row in rows_of(found):
            writer.writerow({"set": name} | {key: f"{value:.6g}" if isinstance(value, float) else value
                                             for key, value in row.items() if value is not None})
    return text.getvalue()


def as_json(comparisons: Mapping[str, Comparison], ruler: Ruler, more: Mapping[str, object] | None = None) -> str:
    """All rows, means, settings, and what makes two reports comparable."""
    told = {"encoder": ruler.encoder, "list_hash": ruler.list_hash, "text_centre": ruler.text_centre,
            "attributes": list(ruler.names), "reference_images": ruler.images, **(more or {})}
    sets = {name: {"conclusion": conclusion(found, name), "sad": _number(found.mean_sad),
                   "pad": _number(found.mean_pad),
                   "counts": list(found.counts), "half_range": found.settings.half_range,
                   "method": found.settings.method, "notes": list(found.notes),
                   "rows": [{key: _number(value) for key, value in row.items()} for row in rows_of(found)]}
            for name, found in comparisons.items()}
    return json.dumps(told | {"unit": "1000 x nats", "sets": sets}, indent=1)


def _number(value):
    """What JSON has no word for as None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def versus(comparisons: Mapping[str, Comparison]) -> str:
    """Two generated sets against one reference: which is nearer, and where."""
    (first, one), (second, other) = comparisons.items()
    if one.null is not None and other.null is not None and not one.reliable and not other.reliable:
        return f"Neither {first} nor {second} differs from the reference by more than chance: no verdict between them."
    floors = [0.0 if found.null is None else found.null.floor for found in (one, other)]
    excess, its_excess = one.sad.kl - floors[0], other.sad.kl - floors[1]
    nearer = excess < its_excess
    flipped = [name for name, a, b in zip(one.names, one.difference, other.difference, strict=True) if a * b < 0]
    reliable = {*one.reliable, *other.reliable}
    flipped = [name for row, name in enumerate(one.names) if name in flipped and row in reliable]
    better, worse = (first, second) if excess[one.counted].mean() < its_excess[other.counted].mean() else (second,
                                                                                                           first)
    return (f"{better} is nearer to the reference than {worse}: SaD {one.mean_sad:.1f} of {first}, "
            f"{other.mean_sad:.1f} of {second}; {first} is nearer in {int(nearer.sum())} of {len(one.names)} "
            "attributes."
            + (f" From too much to too little, or back: {', '.join(flipped[:6])}." if flipped else ""))


def detectability(scores: Tensor, truth: Tensor) -> Tensor:
    """AUC [M] of scores [N, M] for what is truly there [N, M] bool: .5 is chance; nan where all or none have it."""
    ranks = scores.argsort(0).argsort(0).double() + 1
    with_it = truth.sum(0).double()
    without = len(truth) - with_it
    return ((ranks * truth).sum(0) - with_it * (with_it + 1) / 2) / (with_it * without)
