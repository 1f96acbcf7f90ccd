"""A whole comparison of two sets of scores: attributes, pairs, what chance would give, and what cannot be told."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import density
from .divergence import (
    GAUSSIAN,
    GENERAL,
    Divergence,
    Settings,
    all_pairs,
    check_scores,
    fitted_range,
    pad,
    sad,
    wasserstein,
)
from .significance import LEVEL, Null, attribute_null, bootstrap, pair_null

USUAL, LEAST = 1000, 200      # pictures below which the floor matters, and below which it is most of the score
UNSEEN = 0.25                   # of the median spread: an attribute that hardly varies is not seen by the encoder
MANY_PAIRS = 1300               # pairs above which their draws are left out: minutes, and memory
SOME_PAIRS, DRAWS_OF_MANY = 300, 25     # above so many pairs fewer draws, still enough to find one at 5 %
FLAT, DULL = "no variance", "hardly varies"


@dataclass(frozen=True)
class Comparison:
    """How a generated set differs from a reference, by M attributes and P pairs; scores in published units.

    Attributes:
        names: of the attributes.
        counts: pictures of reference and generated set.
        settings: as used: the range may have been widened.
        sad: divergences [M].
        difference: [M] mean of generated minus mean of reference, in HCS: + is too much of it, - too little.
        wasserstein: [M] in HCS.
        spread: [M] standard deviation over the reference, in HCS.
        flags: [M] "" or why an attribute is to be read with care; those without variance are in no mean.
        null: the permutation test of the attributes, None without.
        interval: (low, high) [M] of SaD at 95 %, None without.
        pairs: [P, 2] of attributes.
        pad: divergences [P].
        pair_null: the permutation test of the pairs, None without.
        coupling: [P] correlation in the generated set minus that in the reference: + come together more than they
            should.
        notes: in words, what a reader has to know.
    """
    names: tuple[str, ...]
    counts: tuple[int, int]
    settings: Settings
    sad: Divergence
    difference: Tensor
    wasserstein: Tensor
    spread: Tensor
    flags: tuple[str, ...]
    null: Null | None
    interval: tuple[Tensor, Tensor] | None
    pairs: Tensor
    pad: Divergence
    pair_null: Null | None
    coupling: Tensor
    notes: tuple[str, ...]

    @property
    def counted(self) -> Tensor:
        """[M] bool: attributes that are in the means."""
        return torch.tensor([flag != FLAT for flag in self.flags])

    @property
    def mean_sad(self) -> float:
        return float(self.sad.kl[self.counted].mean())

    @property
    def mean_pad(self) -> float:
        """nan without pairs."""
        return float(self.pad.kl.mean())

    @property
    def reliable(self) -> list[int]:
        """Attributes that differ by more than chance, the furthest first."""
        order = self.sad.kl.argsort(descending=True).tolist()
        return [] if self.null is None else [row for row in order if self.null.adjusted[row] <= LEVEL]

    @property
    def coupled_pairs(self) -> list[int]:
        """Reliable pairs that differ by more than their attributes do by themselves, the furthest first."""
        by_themselves = self.sad.kl[self.pairs].amax(1) if len(self.pairs) else torch.zeros(0)
        return [row for row in self.reliable_pairs if self.pad.kl[row] > by_themselves[row] + self.pair_null.floor[row]]

    @property
    def reliable_pairs(self) -> list[int]:
        """Pairs that differ by more than chance, the furthest first."""
        order = self.pad.kl.argsort(descending=True).tolist()
        return [] if self.pair_null is None else [row for row in order if self.pair_null.adjusted[row] <= LEVEL]


def compare(reference: Tensor, generated: Tensor, names: Sequence[str], settings: Settings = GENERAL, seed: int = 0,
            tick: Callable[[str], None] = lambda part: None) -> Comparison:
    """Compare scores [N, M] and [N', M] of the attributes `names`. numpy arrays are taken too.

    `tick` is called before each part with its name and may raise to stop. Raises ValueError for sets that cannot be
    compared: other attributes, fewer than two pictures, numbers that are not finite.
    """
    reference, generated = (torch.as_tensor(values).double() for values in (reference, generated))
    check_scores(reference, generated, least=2)
    if len(names) != reference.shape[1]:
        raise ValueError(f"{len(names)} names are given for scores of {reference.shape[1]} attributes.")
    settings, outside = fitted_range(reference, generated, settings)
    if settings.method == GAUSSIAN:         # chance is tested by other densities, on another scale
        settings = without_chance(settings)
    spread = reference.std(0)
    flat = density.without_variance(reference) | density.without_variance(generated)
    dull = spread < UNSEEN * spread[~flat].median() if bool((~flat).any()) else torch.zeros_like(flat)
    flags = tuple(FLAT if flat[row] else DULL if dull[row] else "" for row in range(len(names)))
    tick("attributes")
    found = sad(reference, generated, settings)
    null = interval = None
    chance, chance_of_pairs = "what chance gives for attributes", "what chance gives for pairs"
    if settings.draws:
        null = attribute_null(reference, generated, settings, seed, lambda: tick(chance))
    if settings.resamples:
        interval = bootstrap(reference, generated, settings, seed, lambda: tick(chance))
    pairs, notes = usable_pairs(reference, generated, flat, names)
    notes = [*([outside] if outside else []), *_notes_on_size(len(reference), len(generated)), *notes]
    pad_found, pair_test = Divergence(*[torch.zeros(0)] * 3), None
    if len(pairs):
        pad_found = pad(reference, generated, pairs, settings, lambda: tick("pairs"))
    if settings.pair_draws and len(pairs) > MANY_PAIRS:
        notes.append(f"{len(pairs)} pairs are too many to test what chance gives for them: only attributes are tested")
    elif settings.pair_draws and len(pairs):
        fewer = replace(settings, pair_draws=min(settings.pair_draws, DRAWS_OF_MANY if len(pairs) > SOME_PAIRS else
                                                 settings.pair_draws))
        pair_test = pair_null(reference, generated, pairs, fewer, seed, lambda: tick(chance_of_pairs))
        if pair_test is None:
            notes.append("the sets are too large, or some pairs too alike, to test what chance gives for pairs: only "
                         "attributes are tested")
    if bool(flat.any()):
        notes.append(f"{FLAT}, in no mean: {_listed(names, flat)}")
    if bool((dull & ~flat).any()):
        notes.append(f"{DULL} over the reference, so the encoder may not see it: {_listed(names, dull & ~flat)}")
    return Comparison(tuple(names), (len(reference), len(generated)), settings, found,
                      generated.mean(0) - reference.mean(0), wasserstein(reference, generated), spread, flags, null,
                      interval, pairs, pad_found, pair_test,
                      correlations(generated, pairs) - correlations(reference, pairs), tuple(notes))


def correlations(scores: Tensor, pairs: Tensor) -> Tensor:
    """[P] of pairs of scores [N, M]."""
    return torch.corrcoef(scores.T).reshape(scores.shape[1], -1)[pairs[:, 0], pairs[:, 1]]


def without_chance(settings: Settings) -> Settings:
    """The same without draws: scores alone, at once."""
    return replace(settings, draws=0, pair_draws=0, resamples=0)


def usable_pairs(reference: Tensor, generated: Tensor, flat: Tensor, names: Sequence[str]) -> tuple[Tensor, list[str]]:
    """The pairs that have a density in two dimensions, and notes about the others."""
    pairs, notes = all_pairs(len(names)), []
    if min(len(reference), len(generated)) < 3:
        return pairs[:0], ["pairs need 3 pictures a set: no PaD"]
    pairs = pairs[~flat[pairs].any(1)]
    if not len(pairs):
        return pairs, ["no pair of attributes that vary: no PaD"]
    one = density.singular_pairs(reference, pairs) | density.singular_pairs(generated, pairs)
    if bool(one.any()):
        told = ", ".join(f"{names[i]} and {names[j]}" for i, j in pairs[one][:5].tolist())
        notes.append(f"one tells the other, so that they are no pair: {told}{', ...' if int(one.sum()) > 5 else ''}")
    return pairs[~one], notes


def _notes_on_size(first: int, second: int) -> list[str]:
    least = min(first, second)
    if least < LEAST:
        return [f"only {least} pictures in a set: most of every score is chance, read the floor beside it"]
    return [f"{least} pictures in a set: differences near the floor are chance"] if least < USUAL else []


def _listed(names: Sequence[str], mask: Tensor) -> str:
    return ", ".join(name for name, chosen in zip(names, mask.tolist(), strict=True) if chosen)
