"""HARIVO's mapping network and frame-wise tokens: how they begin, what they see, how they act on time."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from motion_examples import TINY, random_motion
from torch.nn import functional

from frozen_diffusion.modules.motion.frame_tokens import FrameTokens, timestamp_encoding, with_frame_tokens
from frozen_diffusion.modules.motion.mapping import MappingNetwork
from frozen_diffusion.modules.motion.transformer import sinusoids


def awake(module: torch.nn.Module) -> torch.nn.Module:
    """The module with no zero weights left."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_mapping_is_exactly_the_identity_at_birth():
    x, t = noise(12, 4, 8, 8), torch.full((12,), 500.0)
    assert torch.equal(MappingNetwork(width=16)(x, t, 6), x)


def test_mapping_has_three_million_parameters():
    count = sum(parameter.numel() for parameter in MappingNetwork().parameters())
    assert 2.5e6 < count < 3.5e6


@torch.no_grad()
def test_mapping_sees_eight_frames_each_way_and_no_other_clip():
    network, x, t = awake(MappingNetwork(width=16)), noise(48, 4, 4, 4), torch.full((48,), 500.0)
    other = x.clone()
    other[12] += 1                                      # of the first of two clips of 24 frames
    change = (network(other, t, 24) - network(x, t, 24)).abs().amax(dim=(1, 2, 3))
    assert change[4:21].all() and change[:4].max() == change[21:].max() == 0


@torch.no_grad()
def test_mapping_of_a_clip_that_stands_still_stands_still():
    network = awake(MappingNetwork(width=16))
    out = network(noise(1, 4, 8, 8).expand(6, -1, -1, -1), torch.full((6,), 20.0), 6)
    torch.testing.assert_close(out, out[:1].expand_as(out))


@torch.no_grad()
def test_what_an_inpainting_model_gets_besides_is_passed_on():
    module, x, t = random_motion(replace(TINY, mapping_width=16)), noise(6, 9, 8, 8), torch.full((6,), 500.0)
    mapped = module.map_noise(x, t, 3)
    assert torch.equal(mapped[:, 4:], x[:, 4:]) and torch.equal(mapped[:, :4], module.map_noise(x[:, :4], t, 3))
    assert not torch.allclose(mapped[:, :4], x[:, :4], atol=1e-3)


@torch.no_grad()
def test_mapping_depends_on_the_timestep():
    network, x = awake(MappingNetwork(width=16)), noise(4, 4, 8, 8)
    early, late = (network(x, torch.full((4,), t), 4) for t in (900.0, 10.0))
    assert (early - late).abs().max() > 1e-3


def test_moment_codes_at_eight_frames_a_second_are_the_usual_sinusoids():
    torch.testing.assert_close(timestamp_encoding(torch.arange(24) / 8, 32), sinusoids(24, 32)[0])


@torch.no_grad()
def test_tokens_are_the_last_word_at_birth_and_then_differ_by_frame():
    text, seconds = noise(2, 77, 32), torch.arange(5) / 8
    fresh = FrameTokens(32)(text, seconds)
    assert fresh.shape == (2, 5, 4, 32)
    assert torch.equal(fresh, text[:, -1].view(2, 1, 1, 32).expand_as(fresh))
    grown = awake(FrameTokens(32))(text, seconds)
    assert (grown[:, 0] - grown[:, 4]).abs().max() > 1e-3


@torch.no_grad()
def test_tokens_follow_time_not_frame_numbers():
    generator, text = awake(FrameTokens(32)), noise(1, 77, 32)
    slow, fast = generator(text, torch.arange(4) / 8), generator(text, torch.arange(4) / 16)
    quarter, second = (timestamp_encoding(torch.tensor([time]), 32) for time in (0.25, 2 / 8))
    torch.testing.assert_close(quarter, second)
    assert (slow - fast).abs().max() > 1e-4


@pytest.mark.parametrize("copies", [1, 4])
@torch.no_grad()
def test_appending_the_last_key_again_reweighs_attention_as_computed(copies):
    """harivo.md 8.3: with K copies of the last key, out' = (out + K p v_last) / (1 + K p)."""
    q, context = noise(2, 3, 10, 16), noise(2, 3, 7, 16, seed=1)
    k, v = context @ noise(16, 16, seed=2), context @ noise(16, 16, seed=3)
    p = (q @ k.transpose(-1, -2) / 4).softmax(-1)[..., -1:]
    out = functional.scaled_dot_product_attention(q, k, v)
    more = [torch.cat((x, x[..., -1:, :].expand(-1, -1, copies, -1)), dim=2) for x in (k, v)]
    expected = (out + copies * p * v[..., -1:, :]) / (1 + copies * p)
    torch.testing.assert_close(functional.scaled_dot_product_attention(q, *more), expected)


def test_tokens_join_the_context_of_their_frame():
    tokens, context = noise(2, 3, 4, 8), noise(6, 77, 8)
    joined = with_frame_tokens(context, tokens)
    assert torch.equal(joined[:, :77], context) and torch.equal(joined[4, 77:], tokens[1, 1])
