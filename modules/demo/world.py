"""Sprite world: attributes, motions, captions and their grammar (specification: sprite world, section 1)."""
from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

SPRITES = (
    "dog", "cat", "car", "apple", "sunflower", "ball", "fish", "balloon", "butterfly", "rocket", "turtle",
    "banana", "house", "moon", "star", "bee", "guitar", "mushroom", "octopus", "tree", "fox", "frog", "panda",
    "watermelon",
)
GLYPHS = "🐶🐱🚗🍎🌻⚽🐟🎈🦋🚀🐢🍌🏠🌙⭐🐝🎸🍄🐙🌳🦊🐸🐼🍉"
SIZES = ("small", "large")
POSITIONS = ("left", "middle", "right")
COLOURS = ("red", "green", "blue", "yellow", "purple", "white", "black", "pink")
TEXTURES = ("plain", "stripes", "dots")
MOTIONS = ("still", "left", "right", "up", "down", "grow", "shrink", "spin", "bounce", "circle")

RGB = {
    "red": (0.86, 0.16, 0.16), "green": (0.20, 0.66, 0.27), "blue": (0.18, 0.36, 0.86),
    "yellow": (0.96, 0.85, 0.20), "purple": (0.54, 0.22, 0.70), "white": (0.96, 0.96, 0.96),
    "black": (0.07, 0.07, 0.08), "pink": (0.98, 0.60, 0.76),
}

# Never seen in training, on any command line: they measure generalisation to new (sprite, motion) pairs.
HELD_OUT = frozenset({
    ("dog", "right"), ("cat", "up"), ("car", "bounce"), ("apple", "left"), ("fish", "grow"), ("balloon", "down"),
    ("rocket", "spin"), ("turtle", "circle"), ("banana", "shrink"), ("house", "still"), ("star", "left"),
    ("bee", "bounce"), ("guitar", "up"), ("mushroom", "right"), ("tree", "circle"), ("fox", "spin"),
    ("frog", "grow"), ("panda", "down"), ("watermelon", "shrink"), ("butterfly", "still"),
})

SPRITE_WORDS = {
    "dog": ("puppy",), "cat": ("kitten",), "car": ("automobile",), "ball": ("football",), "moon": ("crescent",),
    "house": ("cottage",), "rocket": ("spaceship",), "turtle": ("tortoise",), "bee": ("honeybee",),
    "mushroom": ("toadstool",),
}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
PLACE_WORDS = {
    "left": ("on the left of", "at the left of"), "middle": ("in the middle of", "at the centre of"),
    "right": ("on the right of", "at the right of"),
}
TEXTURE_WORDS = {"plain": ("plain", "flat"), "stripes": ("striped",), "dots": ("dotted", "spotted")}
MOTION_WORDS = {
    "still": ("standing still", "not moving"), "left": ("moving left", "going left"),
    "right": ("moving right", "going right"), "up": ("moving up", "rising"), "down": ("moving down", "sinking"),
    "grow": ("growing", "getting bigger"), "shrink": ("shrinking", "getting smaller"),
    "spin": ("spinning", "rotating"), "bounce": ("bouncing", "jumping"), "circle": ("circling", "moving in a circle"),
}


@dataclass(frozen=True)
class Scene:
    """One picture or, with a motion, one clip of the world, named by its words."""

    sprite: str
    size: str
    place: str
    colour: str
    texture: str
    motion: str | None = None


def random_scene(rng: random.Random, clip: bool = False, held_out: bool = False,
                 motions: Sequence[str] = MOTIONS) -> Scene:
    """A scene drawn evenly; `held_out` draws a clip from the pairs that training never sees, else one it may see.

    motions: of a clip that is not held out; one that is named twice is drawn twice as often.
    """
    sprite, motion = rng.choice(SPRITES), rng.choice(motions) if clip else None
    if clip and held_out:
        sprite, motion = rng.choice(sorted(HELD_OUT))
    while not held_out and (sprite, motion) in HELD_OUT:
        sprite, motion = rng.choice(SPRITES), rng.choice(motions)
    return Scene(sprite, rng.choice(SIZES), rng.choice(POSITIONS), rng.choice(COLOURS), rng.choice(TEXTURES), motion)


def caption(scene: Scene, rng: random.Random | None = None) -> str:
    """The scene in words. Without `rng` the plain form; with it, synonyms are drawn as in training.

    >>> caption(Scene("dog", "small", "left", "blue", "stripes", "right"))
    'a small dog on the left of a blue striped background, moving right'
    """
    def pick(words: tuple[str, ...]) -> str:
        return rng.choice(words) if rng else words[0]

    sprite = pick((scene.sprite, scene.sprite, *SPRITE_WORDS.get(scene.sprite, ())))
    text = (f"a {pick(SIZE_WORDS[scene.size])} {sprite} {pick(PLACE_WORDS[scene.place])} "
            f"a {scene.colour} {pick(TEXTURE_WORDS[scene.texture])} background")
    return f"{text}, {pick(MOTION_WORDS[scene.motion])}" if scene.motion else text


def _find(text: str, words: dict[str, tuple[str, ...]], what: str) -> str:
    hits = {key for key, forms in words.items() for form in forms if f" {form} " in f" {text} "}
    if len(hits) != 1:
        found = ", ".join(sorted(hits)) or "none"
        raise ValueError(f"The caption {text!r} names {found} as {what}; exactly one of {', '.join(words)} is needed.")
    return hits.pop()


def parse(text: str) -> Scene:
    """The scene that a caption of the grammar names; the inverse of `caption`.

    Raises ValueError when a part is missing or named twice.
    """
    still, _, motion = text.strip().rstrip(".").partition(",")
    scene = Scene(
        _find(still, {s: (s, *SPRITE_WORDS.get(s, ())) for s in SPRITES}, "sprite"),
        _find(still, SIZE_WORDS, "size"), _find(still, PLACE_WORDS, "place"),
        _find(still, {c: (c,) for c in COLOURS}, "colour"), _find(still, TEXTURE_WORDS, "texture"),
    )
    return replace(scene, motion=_find(motion.strip(), MOTION_WORDS, "motion")) if motion else scene
