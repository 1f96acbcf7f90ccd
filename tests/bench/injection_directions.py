"""Do the knobs of content injection turn the way the paper says: the directions (a) to (g) of the specification.

On sprite world, with the deep skips that its small bottleneck needs. Content is what the oracle reads; the distance to
the original is that of mean colours; quality is the oracle's confidence.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from bench._h_space import (
    CONTENT,
    Pairs,
    injected,
    latents,
    pairs,
    pictures,
    read,
    settings,
    share,
)
from bench._sprite_world import JUDGE, World, context, load_world, prompts

from frozen_diffusion.modules.host.hspace import capture
from frozen_diffusion.modules.host.hspace.inversion import invert
from frozen_diffusion.modules.hspace.slerp import inject, norms
from frozen_diffusion.modules.hspace.trace import masked

STEPS, SEED, T_EDIT, GAMMA = 25, 430, 300, 0.7


def matched(content: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    return content * (norms(h) / norms(content).clamp(min=1e-12)).view(-1, 1, 1, 1)


OPERATORS: dict[str, Callable] = {
    "slerp": inject,
    "lerp": lambda h, content, gamma, *_: (1 - gamma) * h + gamma * matched(content, h),
    "replacement": lambda h, content, gamma, *_: content,
    "addition": lambda h, content, gamma, *_: h + gamma * content}


@contextmanager
def blended_by(operator: str) -> Iterator[None]:
    """Another blend than Slerp inside the block."""
    capture.inject = OPERATORS[operator]
    try:
        yield
    finally:
        capture.inject = inject


class Bench:
    """One batch of pairs, and what comes out of it under a setting."""

    def __init__(self, world: World, batch: Pairs):
        self.world, self.batch = world, batch
        self.plain = injected(world, batch, settings(0.0))

    def sample(self, gamma: float = GAMMA, operator: str = "slerp", trace=None, **changes) -> torch.Tensor:
        with blended_by(operator):
            return injected(self.world, self.batch, settings(gamma, **{"t_edit": T_EDIT} | changes), gamma, trace)

    def content(self, samples: torch.Tensor) -> float:
        return share(self.batch.contents, read(self.world, samples), CONTENT)

    def quality(self, samples: torch.Tensor) -> float:
        return read(self.world, samples).confidence.mean().item()

    def colour(self, samples: torch.Tensor) -> float:
        """Distance of mean colours to the original's."""
        means = [pictures(self.world, x).mean((2, 3)) for x in (samples, self.plain)]
        return (means[0] - means[1]).norm(dim=1).mean().item()

    def away(self, samples: torch.Tensor) -> float:
        """Distance of the latents to the original's."""
        return (samples - self.plain).flatten(1).norm(dim=1).mean().item()


def a(bench: Bench) -> tuple[bool, dict]:
    """Content rises with gamma, and colours stay nearer to the original than with replacement and addition."""
    content = [bench.content(bench.sample(gamma)) for gamma in (0.2, 0.5, 1.0)]
    colour = {name: bench.colour(bench.sample(operator=name)) for name in ("slerp", "replacement", "addition")}
    rises = content[0] <= content[1] <= content[2] and content[2] > content[0]
    return (rises and colour["slerp"] < min(colour["replacement"], colour["addition"]),
            {"content": content, "colour": colour})


def b(bench: Bench) -> tuple[bool, dict]:
    """Slerp beats lerp and replacement in quality at the same gamma."""
    quality = {name: bench.quality(bench.sample(operator=name)) for name in ("slerp", "lerp", "replacement")}
    return quality["slerp"] > max(quality["lerp"], quality["replacement"]), quality


def c(bench: Bench) -> tuple[bool, dict]:
    """A longer interval gives more content and leads farther from the original."""
    rows = {t: bench.sample(t_edit=t) for t in (700, 500, 300)}
    content, away = ({t: mark(x) for t, x in rows.items()} for mark in (bench.content, bench.away))
    return (content[300] > content[700] and away[300] > away[500] > away[700], {"content": content, "away": away})


def d(bench: Bench) -> tuple[bool, dict]:
    """More omega keeps nearer to the original."""
    away = {omega: bench.away(bench.sample(omega=omega)) for omega in (0.01, 0.3, 0.7, 1.0)}
    return list(away.values()) == sorted(away.values(), reverse=True), away


def e(bench: Bench) -> tuple[bool, dict]:
    """The symmetric step is much weaker than the asymmetric one."""
    away = {mode: bench.away(bench.sample(mode=mode)) for mode in ("asymmetric", "symmetric")}
    content = {mode: bench.content(bench.sample(mode=mode)) for mode in ("asymmetric", "symmetric")}
    return away["symmetric"] < 0.7 * away["asymmetric"], {"away": away, "content": content}


def f(bench: Bench) -> tuple[bool, dict]:
    """|h| goes with the |skip| of its own picture, not of another's; Slerp keeps that, replacement breaks it."""
    world = bench.world
    found = invert(world.model, bench.batch.kept, latents(world, bench.batch.originals, SEED + 1), STEPS,
                   deep_skips=1, way_back=False).trace
    step = found.nearest(900)
    h, skip, content = (x[step].float() for x in (found.features["h"], found.features["skip0"],
                                                  bench.batch.trace.features["h"]))
    own, other = correlation(norms(h), norms(skip)), correlation(norms(h).roll(1), norms(skip))
    slerp = correlation(norms(inject(h, content, GAMMA)), norms(skip))
    replaced = correlation(norms(content), norms(skip))
    return (own > other and abs(slerp - own) < 1e-4 and replaced < own,
            {"own": own, "other": other, "slerp": slerp, "replacement": replaced})


def g(bench: Bench) -> tuple[bool, dict]:
    """With a mask the change is concentrated in its region."""
    mask = torch.zeros(1, 128, 128)
    mask[:, :, 64:] = 1
    samples = bench.sample(trace=masked(bench.batch.trace, mask))
    change = (samples - bench.plain).square().mean((0, 1, 2))                   # over the columns
    inside = (change[8:].sum() / change.sum()).item()
    return inside > 0.6, {"share_inside": inside}


def correlation(x: torch.Tensor, y: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([x, y]))[0, 1].item()


DIRECTIONS = {"a content rises with gamma": a, "b slerp has the best quality": b, "c interval": c, "d omega": d,
              "e symmetric is weaker": e, "f norms of h and skip": f, "g mask": g}


@torch.inference_mode()
def run() -> dict:
    """`directions_hold`, with every row in the context."""
    world = load_world()
    batch = next(pairs(world, prompts(20), SEED, STEPS))
    bench = Bench(world, batch)
    rows = {name: test(bench) for name, test in DIRECTIONS.items()}
    told = {name: {"holds": holds, **figures} for name, (holds, figures) in rows.items()}
    return {"figures": {"directions_hold": sum(holds for holds, _ in rows.values()) / len(rows)},
            "context": context(judge=JUDGE, seeds=[SEED], steps=STEPS, pairs=len(batch.contents), gamma=GAMMA,
                               t_edit=T_EDIT, rows=told)}
