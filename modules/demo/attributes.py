"""The attributes of sprite world as a list for the metrics: the words of its grammar in groups, with captions."""
from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from .world import COLOURS, POSITIONS, SIZES, SPRITES, TEXTURES, Scene, caption, random_scene

PHRASINGS = 128         # captions of an attribute: the text model is small, and one short phrase is not enough for it
KINDS = {"sprite": SPRITES, "size": SIZES, "place": POSITIONS, "colour": COLOURS, "texture": TEXTURES}
PLURAL = {"sprite": "sprites", "size": "sizes", "place": "places", "colour": "colours", "texture": "textures"}


def attribute_names() -> list[tuple[str, str]]:
    """(kind, value) of all 40, in the order of the list."""
    return [(kind, value) for kind, values in KINDS.items() for value in values]


def holds(kind: str, value: str) -> Callable[[Scene], bool]:
    """Whether a scene has an attribute."""
    return lambda scene: getattr(scene, kind) == value


def attribute_text(phrasings: int = PHRASINGS, seed: int = 0) -> str:
    """The list as the node Attributes reads it: a heading a kind, and behind each value captions in which all else is
    drawn at random.
    """
    rng, lines = random.Random(seed), []
    for kind, values in KINDS.items():
        lines.append(f"{PLURAL[kind]}:")
        for value in values:
            captions = [caption(replace(random_scene(rng), **{kind: value}), rng) for _ in range(phrasings)]
            lines.append(f"{value}: {' | '.join(captions)}")
    return "\n".join(lines) + "\n"
