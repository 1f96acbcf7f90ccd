"""Sets of sprite world's true pictures as features of its own CLIP pair, for benchmarks of the metrics."""
from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from frozen_diffusion.modules.demo.attributes import KINDS, attribute_names, attribute_text
from frozen_diffusion.modules.demo.scenes import pictures_of
from frozen_diffusion.modules.demo.world import Scene, random_scene
from frozen_diffusion.modules.host.demo import load_sprite_world
from frozen_diffusion.modules.host.folders import SHIPPED
from frozen_diffusion.modules.host.metrics.clip_pair import HostPair
from frozen_diffusion.modules.host.metrics.image_sets import set_of_images
from frozen_diffusion.modules.host.metrics.report import encoded_list, scores_of_images
from frozen_diffusion.modules.host.metrics.rulers import find_ruler
from frozen_diffusion.modules.metrics.attributes import AttributeList, parse_attributes
from frozen_diffusion.modules.metrics.hcs import TEMPLATED, hcs, text_directions
from frozen_diffusion.modules.metrics.ruler_file import read_ruler
from frozen_diffusion.modules.seeding import seed_for

NAMES = attribute_names()
TITLES = [value for _, value in NAMES]
INDEX = {name: number for number, name in enumerate(NAMES)}


class Laboratory:
    """The pair, the shipped list, and the scores of scenes seen from the mean of a reference."""

    def __init__(self):
        _, clip, _, vision = load_sprite_world()
        self.pair = HostPair(clip, vision)
        self.list: AttributeList = parse_attributes(attribute_text())
        self.templated, bare = encoded_list(self.pair, self.list)
        self.directions = text_directions(self.templated, bare, self.list.groups, TEMPLATED)

    def features(self, scenes: Sequence[Scene], seed: int) -> Tensor:
        """[N, D] of the scenes' true pictures."""
        return set_of_images(pictures_of(list(scenes), seed), self.pair).features

    def scores(self, features: Tensor, reference: Tensor) -> Tensor:
        """HCS [N, 40] from the mean of a reference's features."""
        return hcs(features, reference.double().mean(0), self.directions)


def drawn(count: int, seed: int, **fixed: str) -> list[Scene]:
    """Random scenes, some attributes of all of them fixed."""
    rng = random.Random(seed_for("metrics", seed, *fixed.values()))
    return [replace(random_scene(rng), **fixed) for _ in range(count)]


def without(count: int, seed: int, **left_out: str) -> list[Scene]:
    """Random scenes, each named attribute drawn among the others of its kind."""
    rng = random.Random(seed_for("metrics without", seed, *left_out.values()))
    return [replace(random_scene(rng), **{kind: rng.choice([other for other in KINDS[kind] if other != value])
                                          for kind, value in left_out.items()}) for _ in range(count)]


def opposite(name: tuple[str, str]) -> tuple[str, str] | None:
    """The other value of a two-valued attribute: the same finding."""
    kind, value = name
    others = [other for other in KINDS[kind] if other != value]
    return (kind, others[0]) if len(others) == 1 else None


def shares_of_change(scores: Sequence[Tensor], seen: Sequence[Sequence[Scene]], kinds: Sequence[str]
                     ) -> tuple[float, float]:
    """How much of an edit's change lies in some kinds of attribute, from before to after: (by HCS, by the oracle)."""
    shift = (scores[1] - scores[0]).abs().mean(0)
    own = torch.tensor([kind in kinds for kind, _ in NAMES])
    inside, outside = float(shift[own].mean()), float(shift[~own].mean())
    changed = {kind: sum(getattr(one, kind) != getattr(two, kind) for one, two in zip(*seen, strict=True))
               for kind in KINDS}
    total = sum(changed.values())
    return inside / (inside + outside), sum(changed[kind] for kind in kinds) / total if total else 0.0


def ruler_scores(pair: HostPair, pixels: Tensor) -> Tensor:
    """HCS [N, 40] of pictures [N, 3, H, W] by the shipped ruler."""
    return scores_of_images(pixels.movedim(1, -1), pair, read_ruler(find_ruler(f"{SHIPPED}sprite_world")))


def truth(scenes: Sequence[Scene], holds: Callable) -> Tensor:
    """[N, 40] bool."""
    return torch.tensor([[holds(*name)(scene) for name in NAMES] for scene in scenes])
