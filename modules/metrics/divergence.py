"""SaD and PaD: how far two sets of pictures lie apart in single attributes and in pairs of attributes.

Kim, Kwon, Uh (arXiv 2310.17261): KL(reference || generated) of the densities of HCS, on a grid, mean over attributes or
pairs. The official code takes the mean over grid points where a KL is a sum, and prints it times 1e7: with its 10 000
points that is 1000 times the KL in nats, which is the unit here, whatever the number of points.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from . import density
from .hcs import OFFICIAL_BARE, TEMPLATED
from .series import series_2d

UNIT = 1000.0               # published units in a nat
OUTSIDE = 1e-3              # share of a density outside of the range from which the range is widened
RANGES = (35.0, 50.0, 70.0, 110.0)      # half widths that are tried: HCS ends at 100
AUTO, EXACT, BINNED, GAUSSIAN = "auto", "exact", "binned", "gaussian"
METHODS = (AUTO, EXACT, BINNED, GAUSSIAN)


@dataclass(frozen=True)
class Settings:
    """How densities are estimated and compared. `GENERAL` and `PAPER_PARITY` are the two usual ones."""

    text_centre: str = TEMPLATED
    method: str = AUTO              # see METHODS: pairs by series while they fit into memory, all else by bins; exact:
    #                                 scipy's gaussian_kde; gaussian: one normal a set, closed form
    half_range: float = 35.0        # of the grid, in HCS
    widen: bool = True              # while more than 0.1 % of a density is outside
    nodes: int = 10_000             # of the grid in one dimension
    cells: int = 100                # a side, in two dimensions
    finer: int = 8                  # bins in a cell's side, at most
    epsilon: float = 1e-10          # added to every cell's mass, never renormalised: bounds the KL
    official_weight: bool = False   # 70 / n a node, as in the code, where the nodes are 70 / (n - 1) apart
    draws: int = 200                # of the permutation test; 0 = none
    pair_draws: int = 50            # of the same for pairs
    resamples: int = 200            # of the bootstrap

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}; expected one of {', '.join(METHODS)}.")

    @property
    def grid(self) -> Tensor:
        return torch.linspace(-self.half_range, self.half_range, self.nodes, dtype=torch.float64)

    @property
    def pair_nodes(self) -> Tensor:
        return torch.linspace(-self.half_range, self.half_range, self.cells + 1, dtype=torch.float64)


GENERAL = Settings()
PAPER_PARITY = Settings(text_centre=OFFICIAL_BARE, method=EXACT, widen=False, official_weight=True, draws=0,
                        pair_draws=0, resamples=0)
PRESETS = {"general": GENERAL, "paper parity": PAPER_PARITY}


@dataclass(frozen=True)
class Divergence:
    """How two densities differ, in published units; tensors of one shape.

    Attributes:
        kl: KL(reference || generated), the paper's: missing modes count most.
        reverse: KL(generated || reference): invented modes count most.
        js: Jensen-Shannon, at most 693.
    """
    kl: Tensor
    reverse: Tensor
    js: Tensor

    @property
    def symmetric(self) -> Tensor:
        return (self.kl + self.reverse) / 2


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of masses [..., n] over their last dimension, in published units; each has its epsilon in it."""
    return UNIT * (p * (p / q).log()).sum(-1).clamp(min=0)


def divergence(p: Tensor, q: Tensor) -> Divergence:
    """Of masses [..., n] over their last dimension, as `kl`."""
    middle = (p + q) / 2
    return Divergence(kl(p, q), kl(q, p), (kl(p, middle) + kl(q, middle)) / 2)


def sad(reference: Tensor, generated: Tensor, settings: Settings = GENERAL) -> Divergence:
    """Single-attribute divergences [M] of scores [N, M] and [N', M] (equation 3 of the paper).

    Raises ValueError for fewer than two pictures in a set, and for scores that are not finite.
    """
    check_scores(reference, generated, least=2)
    if settings.method == GAUSSIAN:
        return gaussian_1d(reference, generated)
    grid = settings.grid
    estimate = density.exact_1d if settings.method == EXACT else density.binned_1d
    width = 2 * settings.half_range / (settings.nodes if settings.official_weight else settings.nodes - 1)
    return divergence(*(estimate(values, grid) * width + settings.epsilon for values in (reference, generated)))


def pad(reference: Tensor, generated: Tensor, pairs: Tensor, settings: Settings = GENERAL,
        tick: Callable[[], None] = lambda: None) -> Divergence:
    """Paired-attribute divergences [P] of the pairs [P, 2] of attributes, sorted (equation 4 of the paper).

    `tick` is called now and then and may raise to stop. Raises ValueError for fewer than three pictures in a set. Pairs
    of which one score tells the other have none: leave them out (`density.singular_pairs`).
    """
    check_scores(reference, generated, least=3)
    if settings.method == GAUSSIAN:
        return gaussian_2d(reference, generated, pairs)
    nodes = settings.pair_nodes
    area = (2 * settings.half_range / settings.cells) ** 2
    singly = [_singly(_densities_2d(values, pairs, nodes, settings), tick) for values in (reference, generated)]
    return _joined([divergence(*(cell_masses(one, area, settings.epsilon) for one in both))
                    for both in zip(*singly, strict=True)])


def _singly(parts: Iterable[Tensor], tick: Callable[[], None]) -> Iterator[Tensor]:
    """Parts [P, ...] of either length as single ones [1, ...]."""
    for part in parts:
        tick()
        yield from part.split(1)


def _densities_2d(values: Tensor, pairs: Tensor, nodes: Tensor, settings: Settings) -> Iterable[Tensor]:
    if settings.method == EXACT:
        return (density.exact_2d(values[:, i], values[:, j], nodes)[None] for i, j in pairs.tolist())
    series = series_2d(values, pairs, nodes) if settings.method == AUTO else None
    return density.binned_2d(values, pairs, nodes, settings.finer) if series is None else series


def cell_masses(nodes: Tensor, area: float, epsilon: float) -> Tensor:
    """Densities [P, b + 1, b + 1] at nodes -> masses [P, b * b] of cells: the mean of their corners, times the area."""
    corners = (nodes[:, 1:, 1:] + nodes[:, 1:, :-1] + nodes[:, :-1, 1:] + nodes[:, :-1, :-1]) / 4
    return corners.flatten(1) * area + epsilon


def _joined(parts: Sequence[Divergence]) -> Divergence:
    empty = torch.zeros(0, dtype=torch.float64)
    return Divergence(*(torch.cat([getattr(part, name) for part in parts] or [empty])
                        for name in ("kl", "reverse", "js")))


def gaussian_1d(reference: Tensor, generated: Tensor) -> Divergence:
    """Of one normal distribution a set: no kernel, so useful for few pictures. JS has no closed form: nan."""
    mean, mean_y = reference.double().mean(0), generated.double().mean(0)
    var, var_y = (values.double().var(0).clamp(min=density.FLOOR ** 2) for values in (reference, generated))

    def normal(m, v, m_y, v_y) -> Tensor:
        return UNIT * ((v_y / v).log() + (v + (m - m_y) ** 2) / v_y - 1) / 2

    forward = normal(mean, var, mean_y, var_y)
    return Divergence(forward, normal(mean_y, var_y, mean, var), torch.full_like(forward, math.nan))


def gaussian_2d(reference: Tensor, generated: Tensor, pairs: Tensor) -> Divergence:
    """`gaussian_1d` for pairs, with the full covariance."""
    means, covariances = [], []
    for values in (reference, generated):
        table = torch.cov(values.double().T).reshape(values.shape[1], -1)
        means.append(values.double().mean(0)[pairs])                            # [P, 2]
        covariances.append(torch.stack([table[pair][:, pair] for pair in pairs]))

    def normal(x: int, y: int) -> Tensor:
        inverse, shift = torch.linalg.inv(covariances[y]), (means[y] - means[x])[..., None]
        trace = (inverse @ covariances[x]).diagonal(dim1=1, dim2=2).sum(1)
        distance = (shift.mT @ inverse @ shift)[:, 0, 0]
        return UNIT * (trace + distance - 2 + torch.logdet(covariances[y]) - torch.logdet(covariances[x])) / 2

    forward = normal(0, 1)
    return Divergence(forward, normal(1, 0), torch.full_like(forward, math.nan))


def wasserstein(reference: Tensor, generated: Tensor) -> Tensor:
    """Wasserstein-1 [M] of scores, in HCS: without a kernel or a grid."""
    from scipy.stats import wasserstein_distance
    return torch.tensor([wasserstein_distance(x.numpy(), y.numpy())
                         for x, y in zip(reference.T.double(), generated.T.double(), strict=True)])


def all_pairs(count: int) -> Tensor:
    """[M (M - 1) / 2, 2], i < j."""
    return torch.tensor(list(combinations(range(count), 2)), dtype=torch.long).view(-1, 2)


def outside(values: Tensor, half_range: float) -> Tensor:
    """Share [M] of each density of scores [N, M] that lies outside of the range."""
    width = (density.scott(len(values), 1) * values.double().std(0)).clamp(min=density.FLOOR) * math.sqrt(2)
    inside = ((half_range - values.double()) / width).erf() - ((-half_range - values.double()) / width).erf()
    return 1 - inside.mean(0) / 2


def fitted_range(reference: Tensor, generated: Tensor, settings: Settings) -> tuple[Settings, str | None]:
    """Settings whose range holds all but 0.1 % of every density, if it may be widened; a warning where it may not."""
    def lost(half_range: float) -> float:
        return max(float(outside(values, half_range).max()) for values in (reference, generated))

    if settings.widen:
        wider = [half for half in RANGES if half > settings.half_range]
        fits = (half for half in (settings.half_range, *wider) if lost(half) <= OUTSIDE)
        return replace(settings, half_range=next(fits, max(RANGES[-1], settings.half_range))), None
    share = lost(settings.half_range)
    told = (f"up to {share:.1%} of an attribute's scores lie outside of the paper's range, +-{settings.half_range:g}, "
            "and are not compared; the preset general widens it")
    return settings, told if share > OUTSIDE else None


def check_scores(reference: Tensor, generated: Tensor, least: int) -> None:
    """Raises ValueError for sets that cannot be compared."""
    if reference.shape[1:] != generated.shape[1:]:
        raise ValueError(f"The two sets have scores of {reference.shape[1]} and {generated.shape[1]} attributes; "
                         "expected the same list for both.")
    for name, values in (("reference", reference), ("generated", generated)):
        if len(values) < least:
            raise ValueError(f"The {name} set has {len(values)} pictures; a density needs at least {least}. Give more "
                             "pictures, hundreds for figures that tell something.")
        if not values.isfinite().all():
            raise ValueError(f"The {name} set has scores that are not finite. Leave out the pictures they come from.")
