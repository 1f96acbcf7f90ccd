"""The oracle proves itself on small samples: truth read back, noise not believed (sprite_world.md 4)."""
from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from frozen_diffusion.modules.demo.motion_oracle import classify_path, read_clips
from frozen_diffusion.modules.demo.oracle import read_pictures
from frozen_diffusion.modules.demo.renderer import FRAMES, SIDE, render, trajectory
from frozen_diffusion.modules.demo.vae import SpriteVAE
from frozen_diffusion.modules.demo.world import (
    COLOURS,
    MOTIONS,
    POSITIONS,
    SIZES,
    SPRITES,
    TEXTURES,
    Scene,
    random_scene,
)

WEIGHTS = Path(__file__).parents[2] / "weights"
ATTRIBUTES = ("sprite", "size", "place", "colour", "texture")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def accuracy(asked, seen, attribute: str) -> float:
    return sum(getattr(a, attribute) == getattr(b, attribute) for a, b in zip(asked, seen, strict=True)) / len(asked)


@pytest.fixture(scope="module")
def pictures():
    """48 scenes, every sprite twice; pixels [48, 3, 128, 128] and truth."""
    rng = random.Random(1)
    scenes = [Scene(sprite, rng.choice(SIZES), rng.choice(POSITIONS), rng.choice(COLOURS), rng.choice(TEXTURES))
              for sprite in SPRITES * 2]
    pixels, truth = render(scenes, generator(1))
    return scenes, pixels[:, 0], truth


@pytest.fixture(scope="module")
def reading(pictures):
    return read_pictures(pictures[1])


def test_true_pictures_are_read_without_a_mistake(pictures, reading):
    scenes, _, truth = pictures
    assert {name: accuracy(scenes, reading.scenes, name) for name in ATTRIBUTES} == dict.fromkeys(ATTRIBUTES, 1.0)
    assert (reading.centre - truth.centre).norm(dim=-1).median() < 0.1
    assert (reading.width / truth.width).log().abs().median() < 0.01
    overlap = torch.minimum(reading.alpha, truth.alpha).sum((2, 3, 4)) / torch.maximum(
        reading.alpha, truth.alpha).sum((2, 3, 4))
    assert overlap.median() > 0.98
    assert reading.confidence.min() > 0.6


def test_pictures_through_the_autoencoder_are_read():
    rng = random.Random(2)
    scenes = [random_scene(rng) for _ in range(144)]        # many, since the bar is a share close to 1
    pixels = render(scenes, generator(2))[0][:, 0]
    vae = SpriteVAE()
    vae.load_state_dict({key: value.float() for key, value in
                         load_file(WEIGHTS / "sprite_vae.safetensors").items()})
    with torch.no_grad():
        back = (vae.decode(vae.encode(pixels * 2 - 1)) / 2 + 0.5).clamp(0, 1)
    seen = read_pictures(back)
    for name in ATTRIBUTES:
        assert accuracy(scenes, seen.scenes, name) >= 0.97, name
    assert seen.confidence.median() > 0.8


def test_confidence_falls_on_noise(pictures, reading):
    some = pictures[1][:8]
    noise = torch.randn(some.shape, generator=generator(2))
    noisy = [read_pictures((some + level * noise).clamp(0, 1)).confidence.mean() for level in (0.1, 0.4)]
    nothing = read_pictures(torch.rand(4, 3, SIDE, SIDE, generator=generator(3))).confidence
    assert reading.confidence[:8].mean() > noisy[0] > noisy[1]
    assert noisy[1] < 0.2 and nothing.max() < 0.05


def test_every_motion_is_recognised():
    rng = random.Random(4)
    scenes = []
    while len(scenes) < len(MOTIONS):
        scene = random_scene(rng, clip=True)
        if scene.motion == MOTIONS[len(scenes)]:
            scenes.append(scene)
    pixels, truth = render(scenes, generator(4), FRAMES)
    seen = read_clips(pixels)
    assert seen.scenes == tuple(scenes)
    assert seen.sprite_constant.all()
    assert (seen.centre - truth.centre).norm(dim=-1).median() < 0.2


def test_a_symmetric_sprite_that_spins_in_another_style():
    """A ball's turn is seen by its pattern only, also where a style and its undoing have left rounding errors."""
    scene = Scene("ball", "small", "right", "green", "dots", "spin")
    pixels, _ = render([scene], generator(5), FRAMES)
    assert read_clips(1 - (1 - pixels)).scenes == (scene,)


def test_a_clip_that_changes_its_sprite_is_not_constant():
    dog, star = (Scene(sprite, "large", "middle", "green", "plain", "still") for sprite in ("dog", "star"))
    clip = torch.cat([render([scene], generator(6), FRAMES)[0][:, :part] for scene, part in ((dog, 5), (star, 3))], 1)
    seen = read_clips(clip)
    assert seen.scenes[0].sprite == "dog" and not seen.sprite_constant.any()
    assert seen.frame_sprites[0].tolist() == [SPRITES.index("dog")] * 5 + [SPRITES.index("star")] * 3


def test_paths_are_told_apart_in_spite_of_measuring_errors():
    rng, noise, right = random.Random(7), generator(7), []
    for motion in MOTIONS:
        for _ in range(20):
            scene = Scene(rng.choice(SPRITES), rng.choice(SIZES), rng.choice(POSITIONS), "red", "plain", motion)
            centre, width, _ = trajectory(scene, FRAMES, noise)
            path = torch.cat([centre, width.log()[:, None]], 1)
            path += torch.randn(path.shape, generator=noise) * torch.tensor([1.5, 1.5, 0.04])
            named, middle = classify_path(path)
            right.append(named == ("still" if motion == "spin" else motion))
            assert abs(middle[0] - {"left": 38, "middle": 64, "right": 90}[scene.place]) < 9
    assert sum(right) / len(right) >= 0.99


def test_pixels_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"expected \[N 3 H W\] with 3 channels and 128 x 128"):
        read_pictures(torch.zeros(2, 64, 64, 3))
    with pytest.raises(ValueError, match="read_pictures"):
        read_clips(torch.zeros(1, 1, 3, SIDE, SIDE))
