"""Does the latent basis behave on sprite world as the papers say, where no real weights are needed.

`purity`, `purity_oracle`, `purity_rank`: how much of what a direction changes lies in one kind of attribute, by HCS and
by the oracle, and the rank correlation of the two. Rows: the behaviour of latent_basis.md 8 on a small trained
denoiser, and the ablations that a small one can show.
"""
from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from bench._h_space import empty
from bench._metrics import ruler_scores, shares_of_change
from bench._sprite_world import JUDGE, World, context, load_world, prompts
from bench.basis_solver import noisy_latent

from frozen_diffusion.modules.basis.basis import LatentBasis
from frozen_diffusion.modules.basis.geometry import (
    curvedness,
    geodesic_distance,
    largest_distance,
    lerp,
    low_frequency_share,
    random_distance,
    slerp,
    white_share,
)
from frozen_diffusion.modules.basis.lanczos import lanczos
from frozen_diffusion.modules.basis.products import Jacobian
from frozen_diffusion.modules.basis.transport import transport
from frozen_diffusion.modules.demo.attributes import KINDS
from frozen_diffusion.modules.demo.oracle import read_pictures
from frozen_diffusion.modules.host.basis.compute import BasisRequest, compute_basis, encoder_of
from frozen_diffusion.modules.host.basis.edit import EditRequest, edit
from frozen_diffusion.modules.host.basis.encoder import Encoder
from frozen_diffusion.modules.host.guiders import guider_of
from frozen_diffusion.modules.host.metrics.clip_pair import HostPair
from frozen_diffusion.modules.metrics.disentanglement import rank_correlation
from frozen_diffusion.modules.seeding import stream

RANK, SAMPLES, SEED = 8, 5, 450
LEVELS = {1.0: 14.61, 0.8: 5.2, 0.6: 2.45, 0.4: 1.16, 0.2: 0.57}        # t / T: the host's noise level
SEGMENTS, STRENGTH = 8, 4.0


@dataclass(frozen=True)
class Bench:
    """Bases of some pictures at every noise level, with fixed noise."""

    world: World
    bases: dict[tuple[int, float], LatentBasis]
    count: int


def latent_at(world: World, sample: int, level: float) -> torch.Tensor:
    return noisy_latent(world, SEED + sample, LEVELS[level])


def gather(world: World, count: int) -> Bench:
    bases = {}
    for sample in range(count):
        for level, sigma in LEVELS.items():
            bases[sample, level] = compute_basis(world.model, empty(world, 1), latent_at(world, sample, level),
                                                 torch.tensor([sigma, 0.0]), BasisRequest(RANK))[0]
        print(f"bases of picture {sample + 1} of {count}", file=sys.stderr, flush=True)
    return Bench(world, bases, count)


def same_picture_over_time(bench: Bench) -> tuple[bool, dict]:
    """D_geo to t = T grows with the distance in time."""
    rows = [[geodesic_distance(bench.bases[sample, 1.0].U, bench.bases[sample, level].U) for level in LEVELS]
            for sample in range(bench.count)]
    means = [sum(column) / len(column) for column in zip(*rows, strict=True)]
    return means == sorted(means), {"mean_distance": means, "random": random_distance(RANK, 1024),
                                    "most": largest_distance(RANK)}


def pictures_drift_apart(bench: Bench) -> tuple[bool, dict]:
    """Different pictures share more at early times than at late ones."""
    means = {}
    for level in LEVELS:
        found = [geodesic_distance(bench.bases[a, level].U, bench.bases[b, level].U)
                 for a in range(bench.count) for b in range(a)]
        means[level] = sum(found) / len(found)
    early, late = ([means[level] for level in levels] for levels in ((1.0, 0.8), (0.4, 0.2)))
    return sum(late) > sum(early), {"mean_distance": means}


def directions_are_smooth(bench: Bench) -> tuple[bool, dict]:
    """v is far smoother than noise: more than three times white noise's share of low frequencies."""
    shares = {level: low_frequency_share(torch.cat([bench.bases[sample, level].V for sample in range(bench.count)]))
              for level in LEVELS}
    white = white_share(16, 16)
    return min(shares.values()) > 3 * white, {"share": shares, "white": white}


def guidance_weakens_as_noise_falls(bench: Bench) -> tuple[bool, dict]:
    """|| J_eps v_1 || falls with t: what the released table of gamma makes up for.

    read_as_picture is <v, sqrt(abar) J_x0 v>; constant is the share of v_1 that is one value a channel.
    """
    told = {"gain": {}, "read_as_picture": {}, "constant": {}}
    for level, sigma in LEVELS.items():
        scale, found = (1 + sigma ** 2) ** 0.5, []
        for sample in range(bench.count):
            basis, latent = bench.bases[sample, level], latent_at(bench.world, sample, level)
            moved = edit(bench.world.model, empty(bench.world, 1), latent, torch.tensor([sigma, 0.0]), basis,
                         EditRequest(strength=1.0, count=1, steps=1))[0]
            change, v = (moved - latent) * 0.18215 / scale, basis.V[:1]
            found.append((change.norm(), 1 - sigma / scale * (change * v).sum(),
                          v.mean((2, 3)).square().sum() * v[0, 0].numel()))
        for row, value in zip(told.values(), torch.tensor(found).mean(0).tolist(), strict=True):
            row[level] = value
    values = list(told["gain"].values())
    return values == sorted(values, reverse=True), told


def transport_loses_coverage(bench: Bench) -> tuple[bool, dict]:
    """More of a direction exists in another picture at early times than at late ones."""
    coverage = {level: sum(transport(bench.bases[a, level].U[0], bench.bases[b, level]).coverage
                           for a in range(bench.count) for b in range(bench.count) if a != b)
                / (bench.count * (bench.count - 1)) for level in LEVELS}
    return coverage[1.0] > coverage[0.4], {"coverage": coverage}


def directions_beat_random_ones(bench: Bench) -> tuple[bool, dict]:
    """At an equal shift v_1 changes the picture more than a random direction, and the oracle trusts it no less."""
    world, level = bench.world, 0.6
    sigma, changes, trusted = LEVELS[level], {"v": [], "random": []}, {"v": [], "random": []}
    sigmas = torch.cat([torch.linspace(sigma, 0.1, 15), torch.zeros(1)])
    for sample in range(bench.count):
        latent, basis = latent_at(world, sample, level), bench.bases[sample, level]
        for name, used in (("v", basis), ("random", random_direction(basis, sample))):
            rows = edit(world.model, empty(world, 1), latent, sigmas, used,
                        EditRequest(strength=STRENGTH, count=3, method="addition"))[0]
            done = guider_of(world.model, empty(world, 3)).sample(torch.zeros_like(rows), rows, euler(), sigmas,
                                                                  disable_pbar=True, seed=0)
            pixels = world.vae.decode(done).movedim(-1, 1)
            changes[name].append((pixels[[0, 2]] - pixels[1]).abs().mean().item())
            trusted[name].append(read_pictures(pixels[[0, 2]]).confidence.mean().item())
    means = {kind: {name: sum(values) / len(values) for name, values in rows.items()}
             for kind, rows in (("change", changes), ("confidence", trusted))}
    return means["change"]["v"] > means["change"]["random"], means


def great_circles_are_shorter(bench: Bench) -> tuple[bool, dict]:
    """The semantic path between two latents is shorter on the great circle than on the straight line (t = T)."""
    world, sigma = bench.world, LEVELS[1.0]
    lengths = {"lerp": [], "slerp": []}
    for sample in range(max(1, bench.count // 2)):
        ends = [latent_at(world, 2 * sample + side, 1.0) for side in range(2)]
        encoders = [encoder_of(world.model, empty(world, 1), end, torch.tensor([sigma, 0.0]))[0] for end in ends]
        for name, path in (("lerp", lerp), ("slerp", slerp)):
            lengths[name].append(sum(curvedness(path(encoders[0].x, encoders[1].x, SEGMENTS), tangents(encoders[0]))))
    means = {name: sum(values) / len(values) for name, values in lengths.items()}
    return means["slerp"] < means["lerp"], {"length": means, "segments": SEGMENTS}


def purity(bench: Bench) -> dict[str, float]:
    """Of each direction, how much of its change lies in the kind of attribute that changes most: by HCS, by the oracle,
    and the rank correlation of the two over all directions.
    """
    world, level, rows = bench.world, 0.6, []
    pair, sigma = HostPair(world.clip, world.vision), LEVELS[level]
    sigmas = torch.cat([torch.linspace(sigma, 0.1, 15), torch.zeros(1)])
    for sample in range(bench.count):
        latent, basis = latent_at(world, sample, level), bench.bases[sample, level]
        moved = edit(world.model, empty(world, 1), latent, sigmas, basis,
                     EditRequest(direction=-1, strength=STRENGTH, count=2, method="addition"))[0]
        done = guider_of(world.model, empty(world, len(moved))).sample(torch.zeros_like(moved), moved, euler(), sigmas,
                                                                       disable_pbar=True, seed=0)
        pixels = world.vae.decode(done).movedim(-1, 1)
        scores, seen = ruler_scores(pair, pixels), read_pictures(pixels).scenes
        for start in range(0, len(pixels), 2):
            both = scores[start:start + 1], scores[start + 1:start + 2]
            ends = seen[start:start + 1], seen[start + 1:start + 2]
            kind = max(KINDS, key=lambda kind: shares_of_change(both, ends, [kind])[0])     # noqa: B023
            rows.append(shares_of_change(both, ends, [kind]))
    found, oracle = zip(*rows, strict=True)
    return {"purity": sum(found) / len(found), "purity_oracle": sum(oracle) / len(oracle),
            "purity_rank": rank_correlation(found, oracle)}


def random_direction(basis: LatentBasis, number: int) -> LatentBasis:
    """A basis of one random unit direction in the place of v_1."""
    noise = torch.randn(basis.V[:1].shape, generator=stream("random direction", number))
    return LatentBasis(noise / noise.norm(), basis.U[:1], basis.s[:1], basis.residuals[:1], basis.t, basis.sigma)


def tangents(encoder: Encoder) -> Callable[[torch.Tensor], torch.Tensor]:
    """x -> U [3, ...], the first directions in h at a latent."""
    def tangent(x: torch.Tensor) -> torch.Tensor:
        *_, last = lanczos(Jacobian(encoder.fused, x, push_f=encoder.plain, keep=True), 3)
        return last.found.U

    return tangent


def euler():
    import comfy.samplers
    return comfy.samplers.sampler_object("euler")


ROWS = (same_picture_over_time, pictures_drift_apart, directions_are_smooth, guidance_weakens_as_noise_falls,
        transport_loses_coverage, directions_beat_random_ones, great_circles_are_shorter)


@torch.inference_mode()
def run() -> dict:
    """`directions_hold`, with every row in the context."""
    bench = gather(load_world(), prompts(SAMPLES))
    rows = {row.__name__: row(bench) for row in ROWS}
    return {"figures": {"directions_hold": sum(holds for holds, _ in rows.values()) / len(rows), **purity(bench)},
            "context": context(judge=JUDGE, seeds=[SEED], rank=RANK, pictures=bench.count,
                               rows={name: {"holds": holds, **told} for name, (holds, told) in rows.items()})}
