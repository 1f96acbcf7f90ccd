"""Heterogeneous CLIPScore: the angle between a picture and an attribute, each seen from a centre of its own kind.

Kim, Kwon, Uh, "Attribute Based Interpretable Evaluation Metrics for Generative Models" (arXiv 2310.17261), figure 3.
Features are those of a CLIP pair with their projections, not normalised: all means are of raw features.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TEMPLATED, OFFICIAL_BARE = "templated", "official_bare"
TEXT_CENTRES = (TEMPLATED, OFFICIAL_BARE)
ALIKE = 0.95            # cosine of two attributes' vectors from which they are one attribute
CHUNK = 8192            # pictures at once
NO_LENGTH = 1e-6        # share of the features' size below which a vector is zero up to rounding


class AttributeListError(ValueError):
    """A list of attributes that gives no scores."""


@dataclass(frozen=True)
class Ruler:
    """All that a score depends on besides the picture. With one ruler, sets of different days stay comparable.

    Attributes:
        names: of the M attributes.
        groups: of each attribute, the heading of its group; "" without.
        directions: [M, D] V_a, attributes as seen from the text centre.
        centre: [D] C_X, the mean feature of the reference pictures.
        images: how many those were.
        encoder: identity of the CLIP pair.
        text_centre: one of TEXT_CENTRES.
        list_hash: of the attribute list, phrasings and template included.
        colour: [3] mean of the reference pictures, 0..1: what is put behind a subject that is scored alone.
    """
    names: tuple[str, ...]
    groups: tuple[str, ...]
    directions: Tensor
    centre: Tensor
    images: int
    encoder: str
    text_centre: str
    list_hash: str
    colour: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def scores(self, features: Tensor) -> Tensor:
        """HCS [N, M] of pictures' features [N, D]."""
        return hcs(features, self.centre, self.directions)


def text_directions(templated: Tensor, bare: Tensor, groups: Sequence[str], text_centre: str) -> Tensor:
    """V_a [M, D] = E_T(a) - C_A.

    Args:
        templated: [M, D] features of the attributes in their template; several phrasings already averaged.
        bare: [M, D] features of the names alone.
        groups: of each attribute; those of one group are centred on their own mean (text_centre `templated`).
        text_centre: `templated`: C_A is the mean of what V_a is made from, as the paper writes it. `official_bare`: the
            mean of the bare names, as the official code has it; groups are not used.

    Raises AttributeListError where an attribute is its own centre: a list, or a group, of one.
    """
    if text_centre not in TEXT_CENTRES:
        raise ValueError(f"text_centre is {text_centre!r}; expected one of {', '.join(TEXT_CENTRES)}.")
    features = templated.double()
    if text_centre == OFFICIAL_BARE:
        return features - bare.double().mean(0)
    directions = torch.empty_like(features)
    for group in dict.fromkeys(groups):
        rows = [row for row, name in enumerate(groups) if name == group]
        if len(rows) < 2:
            where = (f"The group {group!r} has" if group else "The list has" if len(groups) == 1 else
                     f"Outside of groups the list has, as line {rows[0] + 1},")
            raise AttributeListError(f"{where} one attribute. It is scored against the others, so at least 2 "
                                     "attributes are needed. Add one, e.g. its opposite.")
        directions[rows] = features[rows] - features[rows].mean(0)
    if bool((directions.norm(dim=1) < NO_LENGTH * features.norm(dim=1)).any()):
        raise AttributeListError("The text encoder gives the same for all attributes of a list or group. Write them "
                                 "with words that it knows.")
    return directions


def hcs(features: Tensor, centre: Tensor, directions: Tensor) -> Tensor:
    """100 cos(E_I(x) - C_X, V_a): [N, M] float64 in -100..100, for features [N, D], centre [D], directions [M, D].

    A picture at the centre has no direction and scores 0.
    """
    unit = torch.nn.functional.normalize(directions.double(), dim=1, eps=1e-300)
    parts = [torch.nn.functional.normalize(part.double() - centre.double(), dim=1, eps=1e-300) @ unit.T
             for part in features.split(CHUNK)]
    return 100 * torch.cat(parts) if parts else torch.zeros(0, len(directions), dtype=torch.float64)


def clip_scores(features: Tensor, templated: Tensor) -> Tensor:
    """Plain CLIPScore [N, M], 100 cos(E_I(x), E_T(a)), for comparison."""
    return hcs(features, torch.zeros(features.shape[1]), templated)


def alike_attributes(names: Sequence[str], directions: Tensor) -> list[tuple[str, str, float]]:
    """Pairs of attributes that a CLIP hardly tells apart, with the cosine of their vectors."""
    unit = torch.nn.functional.normalize(directions.double(), dim=1)
    cosine = (unit @ unit.T).triu(1)
    return [(names[i], names[j], float(cosine[i, j])) for i, j in (cosine > ALIKE).nonzero().tolist()]


def finite_rows(features: Tensor) -> Tensor:
    """[N] bool: pictures whose features are numbers; those of half precision that overflowed are not."""
    return features.isfinite().all(1)
