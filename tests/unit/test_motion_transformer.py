"""The temporal layers against the definition (harivo.md 2.9.1) and against diffusers."""
import math

import pytest
import torch
from motion_examples import TINY, random_motion, shuffled_frames
from torch.nn import functional

from frozen_diffusion.modules.motion import transformer
from frozen_diffusion.modules.motion.module import MotionConfig, fresh_motion_module
from frozen_diffusion.modules.motion.transformer import TemporalConv, TemporalTransformer, sinusoids


def reference(state: dict, x: torch.Tensor, frames: int, heads: int = 8) -> torch.Tensor:
    """One temporal transformer, pixel by pixel, straight from the definition; x [(b f), C, H, W]."""
    def linear(h, name):
        return h @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0)

    def layer_norm(h, name):
        h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return h * state[f"{name}.weight"] + state[f"{name}.bias"]

    rows, channels, height, width = x.shape
    groups = x.reshape(rows, 32, -1)
    normed = (groups - groups.mean(-1, keepdim=True)) / (groups.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    normed = normed.view_as(x) * state["norm.weight"][:, None, None] + state["norm.bias"][:, None, None]
    out, block = x.clone(), "transformer_blocks.0"
    for clip in range(rows // frames):
        for i in range(height):
            for j in range(width):
                rows_of_clip = slice(clip * frames, (clip + 1) * frames)
                h = linear(normed[rows_of_clip, :, i, j], "proj_in")                        # [f, C]
                for number in range(2):
                    part = f"{block}.attention_blocks.{number}"
                    n = layer_norm(h, f"{block}.norms.{number}") + state[f"{part}.pos_encoder.pe"][0, :frames]
                    q, k, v = (linear(n, f"{part}.to_{name}").view(frames, heads, -1) for name in "qkv")
                    scores = torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(channels / heads)
                    mixed = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).reshape(frames, channels)
                    h = h + linear(mixed, f"{part}.to_out.0")
                value, gate = linear(layer_norm(h, f"{block}.ff_norm"), f"{block}.ff.net.0.proj").chunk(2, -1)
                gelu = gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
                h = h + linear(value * gelu, f"{block}.ff.net.2")
                out[rows_of_clip, :, i, j] += linear(h, "proj_out")
    return out


@pytest.mark.parametrize("frames", [transformer.FEW_FRAMES, transformer.FEW_FRAMES + 1])     # plain and fused attention
@torch.no_grad()
def test_transformer_is_the_definition(frames: int):
    layer = random_motion().layers("down")[2].transformer
    x = torch.randn(2 * frames, 64, 2, 3, generator=torch.Generator().manual_seed(1))
    difference = (layer(x, frames) - reference(layer.state_dict(), x, frames)).abs().max()
    assert difference < 1e-5
    assert (layer(x, frames) - x).abs().max() > 0.1


@torch.no_grad()
def test_transformer_is_diffusers():
    pytest.importorskip("diffusers")
    from bench.parity import diffusers_max_abs
    assert diffusers_max_abs(seed=3) <= 1e-5


def test_fresh_module_is_the_identity_and_seeded():
    config = MotionConfig("sd15", (32, 64), temporal_convolution=True)
    state = torch.get_rng_state()
    module, again, other = (fresh_motion_module(config, seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    x = torch.randn(6, 64, 3, 5)
    for layer in module.layers("mid") + module.layers("down")[2:]:
        assert torch.equal(layer(x, 3), x)
    weights, same, different = (m.state_dict()["up_blocks.0.motion_modules.2.temporal_transformer.proj_in.weight"]
                                for m in (module, again, other))
    assert torch.equal(weights, same) and not torch.equal(weights, different)


def test_position_codes():
    codes = sinusoids(32, 64)[0]
    for place, channel in ((0, 0), (7, 10), (31, 62)):
        angle = place / 10000 ** (channel / 64)
        assert codes[place, channel].item() == pytest.approx(math.sin(angle), abs=1e-5)
        assert codes[place, channel + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


@torch.no_grad()
def test_clip_longer_than_the_codes_is_refused():
    for frames in (1, 4):       # a single code would broadcast without an error of torch
        layer = TemporalTransformer(32, max_frames=frames)
        with pytest.raises(ValueError, match=f"{frames + 1} frames.*encodings for {frames}"):
            layer(torch.randn(frames + 1, 32, 2, 2), frames + 1)


@torch.no_grad()
def test_scattered_frames_have_the_codes_of_their_places():
    """Frames far apart are known by their places, and the first F places are what no places mean."""
    layer = random_motion().layers("down")[0].transformer
    x, frame_indices = torch.randn(3, 32, 2, 2), torch.tensor([1, 4, 6])
    codes = layer.transformer_blocks[0].attention_blocks[0].pos_encoder.pe.clone()
    assert torch.equal(layer(x, 3, torch.arange(3)), layer(x, 3))
    moved = layer(x, 3, frame_indices)
    for attention in layer.transformer_blocks[0].attention_blocks:
        attention.pos_encoder.pe[:, :3] = codes[:, frame_indices]
    assert torch.equal(moved, layer(x, 3)) and not torch.equal(moved, x)


@pytest.mark.parametrize("channels", [64, 640])
@torch.no_grad()
def test_frames_of_a_fresh_module_know_their_place(channels):
    """What attention adds differs from frame to frame for equal features; with torch's initial values hardly."""
    x = torch.randn(64, 1, channels).expand(-1, 16, -1)

    def part_that_knows(attention):
        added = attention(x)
        return ((added - added.mean(1, keepdim=True)).square().mean() / added.square().mean()).item()

    attention = transformer.TemporalAttention(channels, 16, 8, torch.nn)
    before = part_that_knows(attention)
    transformer.init_positional_attention(attention)
    assert before < 0.0005 < 0.01 < part_that_knows(attention)


@torch.no_grad()
def test_clips_of_a_batch_do_not_mix():
    layer = random_motion().layers("down")[0]
    x = torch.randn(8, 32, 4, 4)
    together, exclusive_sampling = layer(x, 4), torch.cat([layer(part, 4) for part in x.chunk(2)])
    assert torch.allclose(together, exclusive_sampling, atol=1e-6)


@torch.no_grad()
def test_long_batches_are_split(monkeypatch):
    layer, x = random_motion().layers("down")[0], torch.randn(4, 32, 5, 5)
    whole = layer(x, 4)
    monkeypatch.setattr(transformer, "MAX_SEQUENCES", 7)
    assert torch.allclose(layer(x, 4), whole, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision(dtype):
    """Codes stay in fp32, and the norm's statistics survive an offset that they would not survive in 16 bits."""
    module = random_motion().to(dtype)
    layer = module.layers("down")[0].transformer
    assert layer.transformer_blocks[0].attention_blocks[0].pos_encoder.pe.dtype == torch.float32
    assert layer.proj_in.weight.dtype == dtype
    x = (torch.randn(4, 32, 16, 16) + 60).to(dtype)
    exact = torch.nn.functional.group_norm(x.float(), 32, eps=1e-6)
    assert (layer.norm(x).float() - exact).abs().max() < 16 * torch.finfo(dtype).eps
    assert layer(x, 4).dtype == dtype and layer(x, 4).isfinite().all()


@torch.no_grad()
def test_temporal_convolution():
    """Zero-initialised, each frame normed alone, reach of two frames each way."""
    layer, x = TemporalConv(32), torch.randn(9, 32, 3, 3)
    assert torch.equal(layer(x, 9), x)
    torch.nn.init.normal_(layer.conv2.weight)
    changed = x.clone()
    changed[4] += 1 + torch.randn(32, 3, 3)
    moved = (layer(changed, 9) - layer(x, 9)).abs().amax((1, 2, 3)) > 1e-6
    assert moved.tolist() == [False, False, True, True, True, True, True, False, False]


@torch.no_grad()
@pytest.mark.parametrize("height, width", [(1, 1), (2, 3), (9, 7), (13, 17), (16, 16), (5, 80)])
def test_temporal_convolution_is_that_of_the_clip_as_it_is(height, width):
    """However the positions are laid out for speed, it is two Conv3d along time with norm and SiLU before each."""
    layer, x = TemporalConv(32), torch.randn(6, 32, height, width)
    torch.nn.init.normal_(layer.conv2.weight)
    h = x
    for norm, conv in ((layer.norm1, layer.conv1), (layer.norm2, layer.conv2)):
        h = conv(functional.silu(norm(h)).unflatten(0, (2, 3)).transpose(1, 2)).transpose(1, 2).flatten(0, 1)
    assert torch.allclose(layer(x, 3), x + h, atol=1e-5)


@torch.no_grad()
def test_shuffled_frames_make_both_norm_rules_equal():
    x = shuffled_frames(5, 32, 4, 4)
    norm = random_motion(TINY).layers("down")[0].transformer.norm
    pooled = norm(x.unflatten(0, (1, 5)).transpose(1, 2)).transpose(1, 2).flatten(0, 1)
    assert torch.allclose(norm(x), pooled, atol=1e-6)
