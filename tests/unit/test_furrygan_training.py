"""Training FurryGAN: updates and their optimizers, a resume bit for bit, the guard, pictures of the emoji world."""
from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from frozen_diffusion.modules.data.images import ImageSettings
from frozen_diffusion.modules.demo import emoji
from frozen_diffusion.modules.demo.emoji import EmojiPictures
from frozen_diffusion.modules.furrygan.losses import participation_loss
from frozen_diffusion.modules.furrygan.networks import Generator, NoiseMaps
from frozen_diffusion.modules.furrygan.recipe import DECAY, FurryRecipe
from frozen_diffusion.modules.furrygan.training import (
    GUARDED,
    FurrySubject,
    InvertedMaskError,
    Pictures,
    check_orientation,
    latent_means,
)
from frozen_diffusion.modules.seeding import stream
from frozen_diffusion.modules.training.driver import Driver

RECIPE = FurryRecipe(steps=5, batch_size=4, size=16, style=16, cap=16, budget=256, r1=0.1, ramp=4, checkpoint_every=2)


@dataclass(frozen=True)
class Squares:
    """Pictures with a bright square in the middle."""

    settings: ImageSettings = ImageSettings(16, 16)
    count: int = 64
    alpha: bool = False

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return f"square {index}"

    def pixels(self, index: int) -> torch.Tensor:
        picture = torch.randint(0, 90, (3, 16, 16), generator=stream("square", index), dtype=torch.uint8)
        picture[:, 3:13, 3:13] = 220
        return torch.cat([picture, torch.zeros(1, 16, 16, dtype=torch.uint8)]) if self.alpha else picture


def trained(path=None, steps=5, stop=None, **changes):
    driver = Driver(FurrySubject(Squares(), replace(RECIPE, steps=steps, **changes)), path)
    for record in driver.records():
        if record.step == stop:
            break
    return driver


def test_a_step_changes_both_networks_and_says_what_it_sees():
    driver = Driver(FurrySubject(Squares(), RECIPE))
    records = list(driver.records())
    assert len(records) == 5 and all(torch.isfinite(torch.tensor(driver.losses)))
    assert {"real", "fake", "mask", "unsure", "generator loss"} <= set(records[1].extras)
    assert "penalty loss" in records[0].extras and "penalty loss" not in records[1].extras
    sheet = driver.sample()
    assert sheet.shape == (32, 16, 16, 3) and 0 <= sheet.amin() and sheet.amax() <= 1
    file = driver.result()
    network = Generator(file.shape)
    network.load_state_dict(file.generator)
    assert torch.allclose(file.means[0], latent_means(network)[0]) and file.metadata["steps"] == "5"


def test_optimizers_are_the_official_ones():
    judge, penalty, make = FurrySubject(Squares(), RECIPE).loss()
    assert judge.optimizer.lr == pytest.approx(2e-3 * 16 / 17) and make.optimizer.lr == pytest.approx(2e-3 * 4 / 5)
    assert judge.optimizer.betas == pytest.approx((0, 0.99 ** (16 / 17))) and penalty.every == 16
    assert FurryRecipe().ema == pytest.approx(DECAY) == pytest.approx(0.99778, abs=1e-5)
    assert FurryRecipe().shape().size == 256


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path):
    whole = trained(tmp_path / "whole.safetensors")
    trained(tmp_path / "cut.safetensors", stop=3)
    resumed = trained(tmp_path / "cut.safetensors")
    for name, weight in whole.subject.trained.state_dict().items():
        assert torch.equal(weight, resumed.subject.trained.state_dict()[name]), name
    assert torch.equal(whole.sample(), resumed.sample())


def test_the_papers_losses_are_a_switch():
    """Area falls with binarisation, both other terms every step, no stopped gradient (section 2.9)."""
    code, paper = (FurrySubject(Squares(), replace(RECIPE, losses=losses)) for losses in ("code", "paper"))
    for subject in (code, paper):
        subject.prepare()
    step_1 = [subject.make(Pictures(1, subject.batch(0).real), stream("m"))[0] for subject in (code, paper)]
    assert not torch.isclose(*step_1)
    layers = code.layers(stream("m"), 1, 4)
    plain = torch.nn.functional.mse_loss(layers.composite, layers.background)
    assert torch.isclose(participation_loss(layers, stop=False), plain)
    network = code.trained["generator"]
    for stop, reached in ((True, False), (False, True)):
        network.zero_grad()
        participation_loss(code.layers(stream("m"), 1, 4), stop).backward()
        assert (network.to_fg.bias.grad is not None and bool(network.to_fg.bias.grad.any())) == reached
    with pytest.raises(ValueError, match="losses must be code or paper"):
        replace(RECIPE, losses="both")


@pytest.mark.parametrize("switch", ["dual_fakes", "prediction", "participation", "area", "fine"])
def test_every_ingredient_is_a_switch(switch):
    plain, without = trained(steps=2), trained(steps=2, **{switch: False})
    weights = [dict(driver.subject.trained.named_parameters()) for driver in (plain, without)]
    assert any(not torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_transparent_pictures_stand_before_grey():
    subject = FurrySubject(Squares(alpha=True), RECIPE)
    assert torch.equal(subject.batch(0).real, torch.zeros(4, 3, 16, 16))


def test_the_guard_knows_an_inverted_mask():
    mask = torch.zeros(2, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1
    check_orientation(mask, GUARDED[0])
    with pytest.raises(InvertedMaskError, match="After 500 steps the masks show the surroundings"):
        check_orientation(1 - mask, GUARDED[0])


def test_what_cannot_be_trained_is_said():
    with pytest.raises(ValueError, match="There are 3 pictures"):
        FurrySubject(Squares(count=3), RECIPE)
    with pytest.raises(ValueError, match="are 16x16; this training wants 32x32"):
        FurrySubject(Squares(), replace(RECIPE, size=32))
    for changes, told in (({"batch_size": 6}, "a multiple of 4"), ({"phi": 1.5}, "a share from 0 to 1"),
                          ({"size": 40}, "power of two")):
        with pytest.raises(ValueError, match=told):
            replace(RECIPE, **changes)


def test_noise_of_a_batch_and_of_pictures():
    shape = RECIPE.shape()
    maps = NoiseMaps.drawn(shape, [stream("n", 1), stream("n", 2)])
    alone = NoiseMaps.drawn(shape, [stream("n", 2)])
    assert all(torch.equal(both[1:], one) for both, one in zip(maps.in_a_row(), alone.in_a_row(), strict=True))
    assert [part.shape[-1] for part in maps.foreground] == [4, 8, 8, 16, 16] and maps.fine.shape == (2, 1, 16, 16)


def test_emoji_pictures_tell_their_alpha(monkeypatch):
    """With two drawn sprites in the place of the font's."""
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    disc = (((x - 64) ** 2 + (y - 64) ** 2).sqrt() < 58).float()
    tile = torch.stack([disc, disc * 0.5, disc * 0, disc])
    monkeypatch.setattr(emoji, "sprites", lambda: torch.stack([tile, tile.flip(0)[[1, 2, 0, 3]] * disc]))
    source = EmojiPictures(40, ImageSettings(32, 32), first=7)
    pictures, alphas = zip(*(source.drawn(number) for number in range(12)), strict=True)
    coverage = torch.stack([alpha.mean() for alpha in alphas])
    assert 0.5 < coverage.min() and coverage.max() < 0.8
    assert torch.equal(source.drawn(3)[0], EmojiPictures(40, ImageSettings(32, 32), first=10).drawn(0)[0])
    assert source.pixels(0).dtype == torch.uint8 and pictures[0].shape == (3, 32, 32)


def test_a_missing_font_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="apt install fonts-noto-color-emoji"):
        emoji.sprites(tmp_path / "none.ttf")
