"""From seeds to cut-outs, loops, directions, clean edges, and back from a picture."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from frozen_diffusion.modules.furrygan import inversion
from frozen_diffusion.modules.furrygan.coverage import coverage, suggested_phi
from frozen_diffusion.modules.furrygan.directions import ALL, directions, moved
from frozen_diffusion.modules.furrygan.discriminator import Discriminator
from frozen_diffusion.modules.furrygan.edges import clean_edges
from frozen_diffusion.modules.furrygan.networks import Generator, Layers, Shape
from frozen_diffusion.modules.furrygan.sampling import (
    ROWS,
    Styles,
    clean_mask,
    cut_out,
    draw_styles,
    joined,
    mixed,
    noise_of,
    render,
)
from frozen_diffusion.modules.furrygan.training import latent_means
from frozen_diffusion.modules.furrygan.walk import closed_loop
from frozen_diffusion.modules.seeding import stream

SHAPE = Shape(32, 32, 16, 512)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def furry():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = Generator(SHAPE).eval().requires_grad_(False)
        for name, weight in network.named_parameters():
            if name.endswith("noise.weight"):
                weight.fill_(0.1)
        return network, latent_means(network), Discriminator(SHAPE).eval().requires_grad_(False)


def drawn(furry, seed, indices, psi=(0.7, 0.7), **more):
    styles = draw_styles(furry[0], furry[1], seed, indices, psi, **more)
    return joined(list(render(furry[0], styles, CPU)))


def test_a_picture_of_a_seed_does_not_depend_on_the_batch(furry):
    batch = drawn(furry, 5, range(11))
    for number in (0, 10):
        one = drawn(furry, 5, [number])
        for name in ("foreground", "background", "composite", "mask"):
            torch.testing.assert_close(getattr(one, name)[0], getattr(batch, name)[number], rtol=0, atol=2e-5)
    assert torch.equal(drawn(furry, 5, range(3)).mask, drawn(furry, 5, range(3)).mask)
    assert not torch.allclose(drawn(furry, 6, [0]).mask, batch.mask[:1], atol=1e-2)


def test_cut_outs_are_pictures_and_one_is_foreground(furry):
    found = drawn(furry, 0, range(4))
    for part, channels in ((found.foreground, 3), (found.background, 3), (found.composite, 3), (found.rgba, 4)):
        assert part.shape == (4, 32, 32, channels) and 0 <= part.amin() and part.amax() <= 1
    mask = found.mask[..., None]
    over = mask * found.foreground + (1 - mask) * found.background         # Porter-Duff, opaque background
    torch.testing.assert_close(found.composite, over, rtol=0, atol=1e-6)
    assert torch.equal(found.rgba[..., 3], found.mask)


def test_psi_draws_to_the_mean(furry):
    mean = furry[1]
    styles = draw_styles(furry[0], mean, 1, range(3), (0.0, 0.5))
    assert torch.equal(styles.foreground, mean[0].expand(3, SHAPE.rows, -1))
    full = draw_styles(furry[0], mean, 1, range(3), (1.0, 1.0))
    torch.testing.assert_close(styles.background - mean[1], (full.background - mean[1]) / 2)
    with pytest.raises(ValueError, match="psi is -0.1; expected 0"):
        drawn(furry, 1, [0], (-0.1, 1))


def test_a_background_of_its_own_leaves_foreground_and_mask(furry):
    plain, own = drawn(furry, 2, range(2)), drawn(furry, 2, range(2), background_seed=9)
    assert torch.equal(plain.foreground, own.foreground) and torch.equal(plain.mask, own.mask)
    assert not torch.allclose(plain.background, own.background, atol=1e-3)


def test_rows_are_mixed_where_they_are_named():
    count = Shape(64).rows
    styles, other = (Styles(torch.full((2, count, 6), value), torch.zeros(2, count, 2), [(0, 0), (0, 1)])
                    for value in (0.0, 1.0))
    taken = torch.zeros(count, dtype=torch.int)
    for rows in ROWS:
        changed = (mixed(styles, other, rows).foreground != styles.foreground).any(-1).any(0)
        taken += changed
        assert changed.any() == (rows != "none")
        assert torch.equal(mixed(styles, other, rows).background, styles.background)
    assert taken.tolist() == [1] * count            # every row belongs to one part


def test_specks_and_veils_go_and_the_subject_stays():
    mask = torch.zeros(2, 1, 16, 16)
    mask[:, :, 5:11, 5:11] = 1
    mask[0, 0, 0, 0] = 1                        # a speck
    mask[0, 0, 4, 4] = 1                        # a whisker at the subject
    mask[1, 0, 0, :5] = 0.9                     # a line by itself
    cleaned = clean_mask(mask)
    assert not cleaned[0, 0, 0].any() and cleaned[0, 0, 4, 4] == 1 and (cleaned[1] == (mask[1] > 0)).all()
    veiled = clean_mask(torch.tensor([0.1, 0.5, 0.325, 0.9]).expand(1, 1, 4, 4))
    torch.testing.assert_close(veiled[0, 0, 0], torch.tensor([0, 0.5, 0.25, 1]))


def test_near_one_is_one_and_the_paper_is_a_switch():
    mask = torch.full((1, 1, 16, 16), 0.999)
    mask[..., 0, 0] = 0
    layers = Layers(torch.ones(1, 3, 16, 16), torch.zeros(1, 3, 16, 16), mask, mask)
    assert cut_out(layers).mask.unique().tolist() == [0, 1]
    speck = torch.zeros(1, 1, 16, 16)
    speck[..., 3, 3] = 0.8
    layers = replace(layers, mask=speck, coarse=torch.zeros_like(speck))
    assert cut_out(layers).mask.amax() == 0 and cut_out(layers, clean=False).mask.amax() == pytest.approx(0.8)


def test_a_loop_is_closed_smooth_and_passes_its_anchors(furry):
    anchors = draw_styles(furry[0], furry[1], 4, range(4))
    loop = closed_loop(anchors, 40)
    assert torch.allclose(loop.foreground[::10], anchors.foreground, atol=1e-5) and len(loop) == 40
    steps = (loop.foreground - loop.foreground.roll(1, 0)).flatten(1).norm(dim=1)
    turns = (steps - steps.roll(1)).abs()
    assert turns[0] < 2 * turns.median() + steps.mean() * 0.2         # nothing jumps where it closes
    assert loop.noise == [anchors.noise[0]] * 40
    assert torch.equal(loop.background, anchors.background[:1].expand(40, -1, -1))
    assert not torch.equal(closed_loop(anchors, 40, hold_background=False).background, loop.background)
    with pytest.raises(ValueError, match="two anchors and two frames"):
        closed_loop(anchors.part(0, 1), 40)


def test_directions_are_the_strongest_of_the_style_layers(furry):
    network = furry[0]
    found = directions(network, "foreground", ALL).double()
    torch.testing.assert_close(found @ found.T, torch.eye(len(found)).double(), rtol=0, atol=1e-5)
    convs = [network.conv1_fg, *network.convs_fg, network.pre_m, network.refine_m]
    modulations = [conv.conv.modulation for conv in convs] + [network.to_fg.conv.modulation]
    gains = sum((each.weight.double() * each.scale @ found.T).square().sum(0) for each in modulations)
    assert (gains[1:] <= gains[:-1] * (1 + 1e-9)).all() and gains[0] > 2 * gains[-1]
    assert directions(network, "background", "middle").shape == (8, 8)


def test_a_slider_moves_its_layer_and_its_rows(furry):
    styles = draw_styles(furry[0], furry[1], 0, range(2))
    behind = moved(furry[0], styles, "background", ALL, 0, 2.0)
    assert torch.equal(behind.foreground, styles.foreground) and not torch.equal(behind.background, styles.background)
    part = moved(furry[0], styles, "foreground", "middle", 1, 2.0)
    assert (part.foreground != styles.foreground).any(-1).all(0).nonzero().flatten().tolist() == [3, 4, 5, 6]
    back = moved(furry[0], part, "foreground", "middle", 1, -2.0)
    torch.testing.assert_close(back.foreground, styles.foreground, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="no direction 24; there are 24"):
        moved(furry[0], styles, "foreground", ALL, 24, 1.0)


def test_edges_lose_the_old_background():
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    alpha = (1 - (((x - 48) ** 2 + (y - 48) ** 2).sqrt() - 25) / 8).clamp(0, 1)[None, None]
    red, green = torch.tensor([0.9, 0.1, 0.1]).view(1, 3, 1, 1), torch.tensor([0.1, 0.9, 0.2]).view(1, 3, 1, 1)
    image = alpha * red + (1 - alpha) * green
    clean, soft = clean_edges(image, alpha), ((alpha > 0.1) & (alpha < 0.9)).expand_as(image)
    wrong, left = (image - red).abs()[soft].mean(), (clean - red).abs()[soft].mean()
    assert left < wrong / 10
    solid = (alpha == 1).expand_as(image)
    assert torch.equal(clean[solid], image[solid]) and torch.isfinite(clean).all()
    whole = torch.ones_like(alpha)
    assert torch.equal(clean_edges(image, whole), image)
    assert torch.isfinite(clean_edges(image, torch.zeros_like(alpha))).all()


def test_an_inversion_comes_nearer_and_says_how_near(furry):
    network, means, judge = furry
    styles = draw_styles(network, means, 8, range(2))
    layers = network(styles.foreground, styles.background, noise_of(SHAPE, styles, CPU))
    steps, found = zip(*inversion.invert(network, judge, means, layers.foreground, 30), strict=True)
    assert steps[-1] == 30 + inversion.BACKGROUND_STEPS and found[0] is None
    mean = network(means[0][None], means[1][None], noise_of(SHAPE, styles.part(0, 1), CPU)).foreground
    before = inversion.pyramid_error(mean.expand(2, -1, -1, -1), layers.foreground)
    assert (found[-1].residual < before / 2).all() and found[-1].styles.foreground.shape == (2, SHAPE.rows, 24)
    assert ((0 <= found[-1].agreement) & (found[-1].agreement <= 1)).all()


def test_doubts_are_told(furry):
    styles = draw_styles(furry[0], furry[1], 8, range(3))
    found = inversion.Inverted(styles, torch.tensor([0.01, 0.2, 0.01]), torch.tensor([0.9, 0.9, 0.3]))
    assert inversion.doubts(found, 0) == []
    assert "is not the picture" in inversion.doubts(found, 1)[0] and "disagree" in inversion.doubts(found, 2)[0]


def test_coverage_is_guessed_from_colour_and_position():
    def picture(side: int, number: int):
        behind = torch.tensor([0.2, 0.5, 0.3])[:, None, None] + 0.05 * torch.randn(3, 64, 64, generator=stream(number))
        low = (64 - side) // 2
        behind[:, low:low + side, low:low + side] = torch.tensor([0.8, 0.3, 0.7])[:, None, None]
        return behind.clamp(0, 1)

    assert coverage(picture(48, 0)) == pytest.approx(0.5625, abs=0.08)
    phi, told = suggested_phi(picture(54, number) for number in range(5))
    assert phi == pytest.approx(1 - 0.71 + 0.05, abs=0.08) and "phi is" in told and "Crop" not in told
    assert "Crop the pictures" in suggested_phi([picture(30, 0)])[1]
    clear = torch.cat([picture(30, 0), torch.zeros(1, 64, 64)])
    clear[3, :32] = 1
    assert coverage(clear) == pytest.approx(0.5)
