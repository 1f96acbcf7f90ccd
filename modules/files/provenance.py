"""What a file of ours tells of how it was made."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

ORIGIN = ("prompt", "latent")
SAME_SIZE = 0.01            # relative difference of two models' sizes that rounding makes at most


def same_model(one: str, other: str) -> bool:
    """Whether two identities of a model's weights may be of the same weights (host/weights.py says what they hold).

    Precision changes neither signs, but for those of the smallest numbers, nor the size by more than rounding. Those of
    files of an older version were others, which differed with the precision: one of them may be of any new one.
    """
    if not (tells_weights(one) and tells_weights(other)):
        return one == other or tells_weights(one) or tells_weights(other)
    parts, others = one.split("+"), other.split("+")        # the weights, and what changes them
    return len(parts) == len(others) and all(map(same_sketch, parts, others))


def same_sketch(one: str, other: str) -> bool:
    """Whether one of two digests of signs is the same, and the size."""
    (signs, size), (its_signs, its_size) = (name.split(":") for name in (one, other))
    return (any(a == b for a, b in zip(signs.split("."), its_signs.split("."), strict=True))
            and abs(float(size) - float(its_size)) <= SAME_SIZE * float(size))


def tells_weights(name: str) -> bool:
    """Whether an identity can be compared with that of a MODEL."""
    return ":" in name


def different_models(provenances: Sequence[Mapping[str, str]]) -> bool:
    """Whether files tell of more than one model, as far as they say."""
    names = [provenance["model"] for provenance in provenances if "model" in provenance]
    return not all(same_model(one, other) for one, other in combinations(names, 2))


def merged_provenance(provenances: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What the first tells, but of prompt and latent only what is true of all: for what is made of several."""
    first = provenances[0]
    return {key: told for key, told in first.items()
            if key not in ORIGIN or all(provenance.get(key) == told for provenance in provenances)}
