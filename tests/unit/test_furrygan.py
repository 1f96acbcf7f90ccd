"""FurryGAN's networks: layers against plain forms, sizes and keys of the official files, masks, losses, gradients."""
from __future__ import annotations

import argparse
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from frozen_diffusion.modules.furrygan import losses
from frozen_diffusion.modules.furrygan.discriminator import Discriminator, group_spread
from frozen_diffusion.modules.furrygan.files import (
    FurryFile,
    FurryFileError,
    furry_tensors,
    official_state,
    own_keys,
    read_furry_file,
    shape_of,
)
from frozen_diffusion.modules.furrygan.layers import ModulatedConv, per_image, smooth
from frozen_diffusion.modules.furrygan.networks import Generator, Layers, NoiseMaps, Shape, truncated
from frozen_diffusion.modules.seeding import stream

SMALL = Shape(size=16, style=16, cap=16, budget=256, mask_channels=4)


def seeded(kind: type[nn.Module], shape: Shape = SMALL, seed: int = 0) -> nn.Module:
    """A network of random weights whose noise counts."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = kind(shape)
        for name, weight in network.named_parameters():
            if name.endswith("noise.weight"):
                nn.init.constant_(weight, 0.5)
    return network


def noise_of(*seeds: int, shape: Shape = SMALL) -> NoiseMaps:
    return NoiseMaps.drawn(shape, [stream("noise", seed) for seed in seeds])


def latents(*seeds: int, shape: Shape = SMALL) -> torch.Tensor:
    return torch.stack([torch.randn(shape.foreground, generator=stream("z", seed)) for seed in seeds])


def made(generator: Generator, *seeds: int, gamma: float = 1.0) -> Layers:
    return generator(*generator.split(latents(*seeds)), noise_of(*seeds), gamma)


def test_sizes_and_keys_are_those_of_the_official_training():
    with torch.device("meta"):
        generator, discriminator = Generator(Shape()), Discriminator(Shape())
    numbers = [sum(weight.numel() for weight in network.parameters()) for network in (generator, discriminator)]
    assert numbers == [16_966_306, 29_159_585]
    assert len(official_state(generator)) == 185 and len(discriminator.state_dict()) == 55 - 12       # fixed filters
    assert generator.shape.rows == 14 and generator.shape.noise_sides[:5] == [4, 8, 8, 16, 16]
    assert generator.pre_m.conv.weight.shape == (1, 32, 96, 1, 1)
    assert discriminator.state_dict()["final_conv.1.weight"].shape == (512, 513, 3, 3)
    assert discriminator.state_dict()["conv_m.skip.1.weight"].shape == (32, 512, 1, 1)


@pytest.mark.parametrize("up, demodulate", [(False, True), (False, False), (True, True)])
def test_a_modulated_convolution_is_one_convolution_a_picture(up, demodulate):
    conv = ModulatedConv(6, 5, 3, 8, demodulate, up)
    x, w = torch.randn(4, 6, 8, 8, generator=stream("x")), torch.randn(4, 8, generator=stream("w"))
    weight = conv.weight * conv.scale * conv.modulation(w)[:, None, :, None, None]          # [B, O, I, k, k]
    if demodulate:
        weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    if up:
        grouped = F.conv_transpose2d(x.view(1, 24, 8, 8), weight.transpose(1, 2).flatten(0, 1), stride=2, groups=4)
        wanted = smooth(grouped.view(4, 5, 17, 17), 4.0, (1, 1))
    else:
        wanted = F.conv2d(x.view(1, 24, 8, 8), weight.flatten(0, 1), padding=1, groups=4).view(4, 5, 8, 8)
    assert torch.allclose(conv(x, w), wanted, atol=1e-5)


def test_filters_keep_constants():
    ones = torch.ones(1, 2, 9, 9)
    assert torch.allclose(smooth(ones, 1.0, (2, 1))[..., 3:-3, 3:-3], torch.ones(1, 2, 3, 3))
    impulse = torch.zeros(1, 1, 9, 9)
    impulse[..., 4, 4] = 1
    for gain in (1.0, 4.0):
        assert smooth(impulse, gain, (2, 1)).sum() == pytest.approx(gain)
    inside = smooth(F.conv_transpose2d(ones[:, :1], torch.ones(1, 1, 3, 3), stride=2), 4.0, (1, 1))[0, 0, 4:-4, 4:-4]
    assert inside.shape == (10, 10) and inside.std() < 1e-5


def test_masks_and_composites():
    layers = made(seeded(Generator), 1, 2, 3)
    assert layers.composite.shape == (3, 3, 16, 16) and layers.mask.shape == (3, 1, 16, 16)
    assert (layers.coarse.amin((1, 2, 3)) == 0).all()
    assert torch.allclose(layers.coarse.amax((1, 2, 3)), torch.ones(3), atol=1e-6)
    assert bool(((layers.coarse <= layers.mask) & (layers.mask <= 1)).all())
    for value, wanted in ((1.0, layers.foreground), (0.0, layers.background)):
        assert torch.equal(replace(layers, mask=torch.full_like(layers.mask, value)).composite, wanted)
    over = layers.foreground * layers.mask + layers.background * (1 - layers.mask)
    assert torch.allclose(layers.composite, over, atol=1e-6)
    assert torch.equal(made(seeded(Generator), 1, 2, 3, gamma=0.0).mask, layers.coarse)


def test_flat_maps_are_no_mask_and_never_nan():
    assert torch.equal(per_image(torch.full((2, 1, 4, 4), 3.0)), torch.zeros(2, 1, 4, 4))
    assert per_image(torch.rand(1, 1, 4, 4, generator=stream("half")).half()).dtype == torch.float32


def test_the_same_seed_is_the_same_picture_in_any_batch():
    generator = seeded(Generator)
    alone, batch = made(generator, 3), made(generator, 1, 2, 3)
    assert torch.allclose(alone.mask[0], batch.mask[2], atol=1e-6)
    assert torch.allclose(alone.composite[0], batch.composite[2], atol=1e-6)
    again = made(generator, 3)
    assert torch.equal(alone.mask, again.mask) and torch.equal(alone.background, again.background)


def test_equal_rows_are_one_latent_and_the_background_has_its_own():
    generator = seeded(Generator)
    w, w_bg = generator.split(latents(1, 2))
    rows = [part[:, None].expand(-1, SMALL.rows, -1) for part in (w, w_bg)]
    one, other = generator(w, w_bg, noise_of(1, 2)), generator(*rows, noise_of(1, 2))
    assert torch.equal(one.mask, other.mask) and torch.equal(one.composite, other.composite)
    swapped = generator(w, w_bg.flip(0), noise_of(1, 2))
    assert torch.equal(swapped.mask, one.mask) and torch.equal(swapped.foreground, one.foreground)
    assert not torch.equal(swapped.background, one.background)


def test_truncation():
    w, mean = torch.ones(2, 4), torch.zeros(4)
    assert torch.equal(truncated(w, mean, 1.0), w) and torch.equal(truncated(w, mean, 0.0), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="psi is -0.5"):
        truncated(w, mean, -0.5)


def test_the_discriminator_judges_and_hints():
    discriminator = seeded(Discriminator)
    logits, hint = discriminator(torch.randn(8, 3, 16, 16, generator=stream("pictures")))
    assert logits.shape == (8, 1) and hint.shape == (8, 1, 16, 16) and hint.amax() <= 1
    with pytest.raises(ValueError, match="has 6 pictures"):
        discriminator(torch.zeros(6, 3, 16, 16))
    x = torch.randn(8, 2, 4, 4, generator=stream("groups"))
    spread = group_spread(x)
    members = x[[0, 2, 4, 6]]                                                  # i, i + B / 4, ...
    assert spread[0].unique().item() == pytest.approx(float(members.std(0, unbiased=False).mean()), rel=1e-4)


def test_constants_of_the_losses():
    coarse, weights = torch.full((2, 1, 8, 8), 0.2), losses.MaskWeights()
    for step, wanted in ((0, 1.75), (2500, 1.30), (5000, 0.85), (9000, 0.85)):
        binary = losses.ramped(step, 5000, *losses.BINARY)
        assert float(losses.coarse_loss(coarse, weights, binary)) == pytest.approx(wanted)
    for mean, wanted in ((0.05, 0.2), (0.01, 0.0), (0.0, 0.0)):
        assert float(losses.fine_loss(torch.full((2, 1, 8, 8), mean), weights)) == pytest.approx(wanted, abs=1e-6)
    zero = torch.zeros(4, 1)
    assert float(losses.discriminator_loss(zero, zero)) == pytest.approx(1.386294)
    assert float(losses.generator_loss(zero)) == pytest.approx(0.693147)


def test_dual_fakes_are_composites_then_foregrounds():
    layers = made(seeded(Generator), 1, 2, 3, 4)
    fakes = losses.dual_fakes(layers)
    assert torch.equal(fakes[:2], layers.composite[:2]) and torch.equal(fakes[2:], layers.foreground[2:])


def test_the_penalty_is_the_gradients_size():
    real = torch.randn(3, 1, 2, 2, generator=stream("real"), requires_grad=True)
    assert float(losses.gradient_penalty((2 * real).sum((1, 2, 3)), real)) == pytest.approx(16)


def gradients(loss: torch.Tensor, network: nn.Module) -> dict[str, float]:
    found = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    return {name: 0.0 if gradient is None else float(gradient.abs().sum())
            for (name, _), gradient in zip(network.named_parameters(), found, strict=True)}


def test_who_moves_what():
    """The table of the specification's section 2.7."""
    generator, discriminator = seeded(Generator), seeded(Discriminator)
    layers = made(generator, 1, 2, 3, 4)
    of_participation = gradients(losses.participation_loss(layers), generator)
    assert of_participation["to_fg.conv.weight"] == 0 and of_participation["to_bg.conv.weight"] > 0
    assert of_participation["pre_m.conv.weight"] > 0 and of_participation["refine_m.conv.weight"] > 0
    layers = made(generator, 1, 2, 3, 4)
    hints = [discriminator.mask_of(discriminator.features(picture))
             for picture in (layers.foreground, layers.composite)]
    of_consistency = gradients(losses.consistency_loss(*hints), generator)
    assert all(of_consistency[f"{name}.conv.weight"] > 0 for name in ("to_fg", "to_bg", "pre_m", "refine_m"))
    layers = made(generator, 1, 2, 3, 4)
    detached = discriminator.mask_of(discriminator.features(layers.composite.detach()))
    hint = discriminator.mask_of(discriminator.features(layers.foreground))
    assert not any(gradients(losses.consistency_loss(hint, detached), generator).values())
    layers = made(generator, 1, 2, 3, 4)
    of_coarse = gradients(losses.coarse_loss(layers.coarse, losses.MaskWeights(), 1.0), generator)
    assert of_coarse["pre_m.conv.weight"] > 0
    assert of_coarse["refine_m.conv.weight"] == of_coarse["to_bg.conv.weight"] == 0


def test_order_of_codes_does_not_matter():
    generator = seeded(Generator)
    layers, turned = made(generator, 1, 2, 3), made(generator, 3, 2, 1)
    assert torch.allclose(layers.composite.flip(0), turned.composite, atol=1e-6)


def saved(tmp_path, **changes):
    generator, discriminator = seeded(Generator), seeded(Discriminator)
    file = FurryFile(SMALL, generator.state_dict(), discriminator.state_dict(), (torch.ones(12), torch.ones(4)),
                     {"data": "test"})
    tensors, metadata = furry_tensors(replace(file, **changes))
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "furry.safetensors", metadata)
    return tmp_path / "furry.safetensors", generator


def test_files_of_ours_come_back_bit_for_bit(tmp_path):
    path, generator = saved(tmp_path)
    found = read_furry_file(path)
    again = Generator(found.shape)
    again.load_state_dict(found.generator)
    assert torch.equal(made(generator, 5).mask, made(again, 5).mask) and found.metadata["data"] == "test"
    assert found.means[1].shape == (4,) and found.discriminator is not None


def official(tmp_path, **changes):
    generator, discriminator = seeded(Generator), seeded(Discriminator)
    discriminated = dict(discriminator.state_dict())
    discriminated["convs.1.conv2.0.kernel"] = torch.zeros(4, 4)
    state = {"g": official_state(seeded(Generator, seed=1)), "g_ema": official_state(generator), "d": discriminated,
             "args": argparse.Namespace(size=16), "ada_aug_p": 0.0} | changes
    torch.save(state, tmp_path / "000100.pt")
    return tmp_path / "000100.pt", generator


def test_official_checkpoints_are_read_without_unpickling(tmp_path):
    path, generator = official(tmp_path)
    found = read_furry_file(path)
    assert found.shape == replace(SMALL, budget=found.shape.budget) and found.means is None
    again = Generator(found.shape)
    again.load_state_dict(found.generator)
    assert torch.equal(made(generator, 5).composite, made(again, 5).composite)
    assert own_keys(official_state(generator)).keys() == generator.state_dict().keys()
    with torch.device("meta"):
        assert shape_of(official_state(Generator(Shape()))) == Shape()


def test_wrong_files_are_named(tmp_path):
    path, _ = official(tmp_path)
    state = torch.load(path, weights_only=False)
    for changed, told in (({"style.1.weight": torch.zeros(2), "conv1.conv.weight": torch.zeros(2)}, "plain StyleGAN2"),
                          ({"epoch": 3}, "holds no FurryGAN"), ([1, 2], "holds a list"),
                          (state | {"more": tmp_path}, "Python objects besides weights")):
        torch.save(changed, path)
        with pytest.raises(FurryFileError, match=told):
            read_furry_file(path)
    cut = {key: value for key, value in seeded(Generator).state_dict().items() if "refine_m" not in key}
    with pytest.raises(FurryFileError, match="5 weights do not fit a FurryGAN of size 16, e.g. refine_m"):
        read_furry_file(saved(tmp_path, generator=cut)[0])
    broken = dict(seeded(Generator).state_dict())
    broken["to_fg.bias"] = torch.full((1, 3, 1, 1), torch.nan)
    with pytest.raises(FurryFileError, match="to_fg.bias holds numbers that are not finite"):
        read_furry_file(saved(tmp_path, generator=broken)[0])


@pytest.mark.parametrize("changes, told", [({"size": 24}, "a power of two from 16"), ({"size": 8}, "power of two"),
                                           ({"budget": 8}, "leave no channels"), ({"style": 6}, "leave no channels")])
def test_sizes_that_cannot_be(changes, told):
    with pytest.raises(ValueError, match=told):
        replace(SMALL, **changes)
