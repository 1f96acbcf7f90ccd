"""Sprite world: its grammar, what training may draw, and whether the truth is what the pixels show."""
from __future__ import annotations

import random
from collections import Counter
from itertools import product

import pytest
import torch

from frozen_diffusion.modules.demo.renderer import FRAMES, SIDE, TILE, WIDTH, atlas, background, render
from frozen_diffusion.modules.demo.world import (
    COLOURS,
    HELD_OUT,
    MOTIONS,
    POSITIONS,
    RGB,
    SIZES,
    SPRITES,
    TEXTURES,
    Scene,
    caption,
    parse,
    random_scene,
)


def scenes(count: int, seed: int = 0, **kwargs) -> list[Scene]:
    rng = random.Random(seed)
    return [random_scene(rng, **kwargs) for _ in range(count)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_plain_captions_of_all_scenes_differ_and_parse_back():
    every = [Scene(*words) for words in product(SPRITES, SIZES, POSITIONS, COLOURS, TEXTURES)]
    captions = [caption(scene) for scene in every]
    assert len(set(captions)) == len(every) == 24 * 2 * 3 * 8 * 3
    assert [parse(text) for text in captions] == every


@pytest.mark.parametrize("clip", [False, True])
def test_captions_with_synonyms_parse_back(clip):
    rng, texts = random.Random(1), set()
    for scene in scenes(1500, clip=clip):
        text = caption(scene, rng)
        assert parse(text) == scene
        texts.add(text)
    assert any("puppy" in text for text in texts) and any("spotted" in text for text in texts)


@pytest.mark.parametrize(("text", "named"), [
    ("a small unicorn on the left of a red plain background", "none as sprite"),
    ("a small dog and a cat on the left of a red plain background", "cat, dog as sprite"),
    ("a dog on the left of a red plain background", "none as size"),
    ("a small dog on the left of a red plain background, flying", "none as motion"),
])
def test_a_caption_outside_the_grammar_is_refused_by_name(text, named):
    with pytest.raises(ValueError, match=named):
        parse(text)


def test_held_out_pairs_are_drawn_only_on_request():
    trained = Counter((scene.sprite, scene.motion) for scene in scenes(6000, clip=True))
    assert not HELD_OUT & trained.keys()
    assert len(trained) == len(SPRITES) * len(MOTIONS) - len(HELD_OUT)
    assert {(s.sprite, s.motion) for s in scenes(600, clip=True, held_out=True)} == HELD_OUT
    assert {motion for _, motion in HELD_OUT} == set(MOTIONS), "every motion is measured on new pairs"
    assert all(scene.motion is None for scene in scenes(50))


def test_the_seed_decides_everything():
    some = scenes(3, clip=True)
    first, truth = render(some, generator(7), FRAMES)
    again, truth_again = render(some, generator(7), FRAMES)
    other, _ = render(some, generator(8), FRAMES)
    assert torch.equal(first, again) and torch.equal(truth.centre, truth_again.centre)
    assert not torch.equal(first, other)
    assert first.shape == (3, FRAMES, 3, SIDE, SIDE) and 0 <= first.min() and first.max() <= 1


def centroid(alpha: torch.Tensor) -> torch.Tensor:
    """[N, H, W] -> [N, 2] x, y in pixels."""
    axis = torch.arange(alpha.shape[-1]) + 0.5
    return torch.stack([(alpha.sum(1) * axis).sum(1), (alpha.sum(2) * axis).sum(1)], -1) / alpha.sum((1, 2))[:, None]


def test_truth_agrees_with_the_pixels():
    """A sprite's weight is where centre and width put it, and outside of its mask there is only background."""
    some = scenes(64)
    pixels, truth = render(some, generator(2))
    alpha = truth.alpha[:, 0, 0]                                                        # [N, H, W]
    tiles = atlas()[[SPRITES.index(scene.sprite) for scene in some], 3]                 # [N, 128, 128]
    expected = truth.centre[:, 0] + (centroid(tiles) / TILE - 0.5) * truth.width[:, 0, None]
    assert (centroid(alpha) - expected).norm(dim=1).max() < 0.5
    nearest = torch.tensor([WIDTH[scene.size] for scene in some])
    assert ((truth.width[:, 0] / nearest).log().abs() < 0.07).all()
    for scene, picture, mask in zip(some, pixels[:, 0], alpha, strict=True):
        outside = (mask == 0).expand(3, -1, -1)
        base = background(torch.tensor([RGB[scene.colour]]), torch.tensor([TEXTURES.index(scene.texture)]))[0]
        assert (picture - base)[outside].abs().max() < 0.05


def test_sprites_stay_visible_in_all_motions():
    """Never less than half of a sprite is in the frame, for every place, size and motion."""
    for motion in MOTIONS:
        some = [Scene("ball", size, place, "blue", "plain", motion) for size in SIZES for place in POSITIONS]
        _, truth = render(some, generator(3), FRAMES)
        whole = 0.66 * truth.width.square()                     # a ball fills about two thirds of its tile
        assert (truth.alpha.sum((2, 3, 4)) / whole).min() > 0.5, motion


def test_motions_move_as_they_are_called():
    def change(motion: str) -> torch.Tensor:
        _, truth = render([Scene("fox", "small", "middle", "red", "plain", motion)], generator(4), FRAMES)
        path = torch.cat([truth.centre[0], truth.width[0, :, None], truth.angle[0, :, None]], 1)
        return (path[-1] - path[0]).sign() * ((path[-1] - path[0]).abs() > 1e-3)

    directions = {"still": (0, 0, 0, 0), "left": (-1, 0, 0, 0), "right": (1, 0, 0, 0), "up": (0, -1, 0, 0),
                  "down": (0, 1, 0, 0), "grow": (0, 0, 1, 0), "shrink": (0, 0, -1, 0), "spin": (0, 0, 0, 1)}
    for motion, direction in directions.items():
        assert change(motion).tolist() == list(direction), motion
