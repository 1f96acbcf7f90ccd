"""Files of LoRAs in every layout: one name for each layer, changes that come back to fp32 rounding, what a file is."""
from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from frozen_diffusion.modules.customize.files import (
    ANIMATEDIFF,
    DIFFUSERS,
    KOHYA,
    LIST_LAYERS,
    LIST_PARTS,
    LoraFileError,
    read_embedding,
    read_lora_file,
    read_lora_state,
    state_of,
    write_embedding,
    write_lora,
)
from frozen_diffusion.modules.customize.names import SPATIAL, TEMPORAL, TEXT, scope_of
from frozen_diffusion.modules.customize.rerank import reranked, scaled, summed
from frozen_diffusion.modules.motion.module import MotionConfig, MotionModule
from frozen_diffusion.modules.motion.temporal_lora import attention_projections
from frozen_diffusion.modules.seeding import stream
from frozen_diffusion.modules.training.lora_keys import Factors

CHANNELS = (32, 64, 64, 64)
P = "down_blocks.0.motion_modules.1.temporal_transformer."
A = f"{P}transformer_blocks.0.attention_blocks.1."


def noise(*shape, name="lora"):
    return torch.randn(*shape, generator=stream(name, *shape))


def pairs(rank=4, alpha=8.0):
    """A LoRA of every attention of a small motion module."""
    module = MotionModule(MotionConfig("sd15", CHANNELS), device="meta")
    layers = dict(module.named_modules())
    return {path: Factors(noise(rank, layers[path].in_features, name=path + "d"),
                          noise(layers[path].out_features, rank, name=path + "u"), alpha)
            for path in attention_projections(module)}


def change(pair: Factors) -> torch.Tensor:
    return pair.alpha / len(pair.down) * pair.up.float().flatten(1) @ pair.down.float().flatten(1)


@pytest.mark.parametrize(("stem", "name"), [
    (f"{A}processor.to_q", f"{A}to_q"), (f"{A}processor.to_out", f"{A}to_out.0"),                              # F1
    (f"{A}to_out.processor.0", f"{A}to_out.0"),                                                                # F2
    (f"{P}transformer_blocks.0.ff.net.0.processor.proj", f"{P}transformer_blocks.0.ff.net.0.proj"),
    (f"{P}transformer_blocks.0.ff.net.processor.2", f"{P}transformer_blocks.0.ff.net.2"),
    ("unet.down_blocks.0.motion_modules.1.transformer_blocks.0.attn2.processor.to_q", f"{A}to_q"),             # F3
    ("unet.down_blocks.0.motion_modules.1.transformer_blocks.0.attn2.to_out.0", f"{A}to_out.0"),
    ("lora_unet_down_blocks_0_motion_modules_1_temporal_transformer_transformer_blocks_0_attention_blocks_1_to_q",
     f"{A}to_q"),                                                                                              # F4
    ("lora_unet_down_blocks_0_motion_modules_1_transformer_blocks_0_attn2_to_out_0", f"{A}to_out.0"),
    ("base_model.model.mid_block.motion_modules.0.proj_in",
     "mid_block.motion_modules.0.temporal_transformer.proj_in")])
def test_temporal_layers_have_one_name(stem, name):
    assert scope_of(stem) == (TEMPORAL, name)


@pytest.mark.parametrize(("stem", "name"), [
    ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
     "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"),                                            # F6
    ("lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_out_0",
     "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"),
    ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out",
     "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"),                                        # F7
    ("unet.up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_v",
     "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_v"),                                              # F8
    ("base_model.model.mid_block.attentions.0.proj_in", "mid_block.attentions.0.proj_in"),
    ("diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q",
     "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"),                                            # F9
    ("diffusion_model.output_blocks.5.2.conv", "up_blocks.1.upsamplers.0.conv"),
    ("lora_unet_mid_block_resnets_1_time_emb_proj", "mid_block.resnets.1.time_emb_proj")])
def test_spatial_layers_have_one_name(stem, name):
    assert scope_of(stem) == (SPATIAL, name)


def test_text_layers_and_unknown_ones():
    stem = "lora_te_text_model_encoder_layers_3_self_attn_q_proj"
    assert scope_of(stem) == (TEXT, stem)
    assert scope_of("lora_unet_motor_blocks_3") is None and scope_of("down_blocks.0.motion_modules.0.other") is None


@pytest.mark.parametrize("layout", [ANIMATEDIFF, DIFFUSERS])
def test_a_temporal_file_there_and_back(tmp_path, layout):
    """The change of every layer comes back; F1 has no alpha, `lora_A` or `lora_down`, and "temporal" in every key."""
    factors = pairs()
    path = tmp_path / "motion.safetensors"
    write_lora(path, {TEMPORAL: factors}, layout, {"caption": "a fox is zigzagging"})
    state = load_file(path)
    found = read_lora_file(path, lambda name: (load_file(name), {"layout": layout}))
    assert found.temporal.keys() == factors.keys() and not found.unmatched and not found.spatial
    for name, pair in factors.items():
        torch.testing.assert_close(change(found.temporal[name]), change(pair), rtol=1e-5, atol=1e-5)
    if layout == ANIMATEDIFF:
        assert all("temporal" in key and key.endswith((".up.weight", ".down.weight")) for key in state)
        assert not any(word in key for key in state for word in ("alpha", "lora_A", "lora_down"))
        by_rules = evolved(state)
        for name, pair in factors.items():
            torch.testing.assert_close(by_rules[f"{name}.weight"], change(pair), rtol=1e-5, atol=1e-5)


def evolved(state):
    """What AnimateDiff-Evolved makes of a motion LoRA, by its published rules, written out anew."""
    found = {}
    for key in [key for key in state if "temporal" in key and "up." not in key]:
        partner = key.replace(".down.", ".up.")
        name = key.replace("processor.", "").replace("_lora", "").replace("down.", "")
        if "to_out." in name and "to_out.0" not in name:
            name = name.replace("to_out.", "to_out.0.")
        found[name] = state[partner].float() @ state[key].float()
    return found


def test_a_spatial_file_there_and_back(tmp_path):
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    factors = {name: Factors(noise(4, 8), noise(8, 4), 2.0), "mid_block.attentions.0.proj_in": Factors(
        noise(4, 8, 1, 1), noise(8, 4, 1, 1), 4.0)}
    write_lora(tmp_path / "look.safetensors", {SPATIAL: factors}, KOHYA)
    state = load_file(tmp_path / "look.safetensors")
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.alpha" in state
    found = read_lora_state(state)
    for key, pair in factors.items():
        torch.testing.assert_close(change(found.spatial[key]), change(pair))
    with pytest.raises(ValueError, match="hold no spatial layers. Choose kohya"):
        state_of({SPATIAL: factors}, ANIMATEDIFF)
    with pytest.raises(ValueError, match="hold no temporal layers. Choose AnimateDiff or diffusers"):
        state_of({TEMPORAL: pairs()}, KOHYA)


def test_a_mixed_file_is_split_and_what_is_left_is_named():
    state = state_of({TEMPORAL: pairs()}, ANIMATEDIFF) | {
        "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": noise(4, 8),
        "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": noise(8, 4),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": noise(4, 8),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": noise(8, 4),
        "odd.lora_down.weight": noise(4, 8), "odd.lora_up.weight": noise(8, 4), "stray": noise(3)}
    found = read_lora_state({"state_dict": state, "animatediff_config": {"a": 1}})
    assert found.counts() == f"{len(pairs())} temporal and 1 spatial and 1 text layers"
    assert set(found.unmatched) == {"odd", "stray"} and found.ranks().startswith("4")


def test_the_list_of_motiondirector():
    """By order and shape, without names; for ModelScope alone."""
    names = [f"{part}.{layer}" for part in LIST_PARTS for layer in LIST_LAYERS]
    state = []
    for name in names:
        state += [noise(512 if name == "transformer_in.proj_in" else 8, 4, name=name),
                  noise(4, 320 if name == "transformer_in.proj_in" else 8, name=name + "d")]
    found = read_lora_state(state, "director.pt")
    assert found.list_base and list(found.temporal) == names and len(names) == 204
    torch.testing.assert_close(change(found.temporal[names[3]]), state[6] @ state[7])
    with pytest.raises(LoraFileError, match="408 tensors"):
        read_lora_state(state[:-2])
    with pytest.raises(LoraFileError, match=r"begins with .512, r., .r, 320."):
        read_lora_state([torch.zeros(3, 4), torch.zeros(4, 3), *state[2:]])


@pytest.mark.parametrize(("state", "text"), [
    ({"down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight": 0}, "whole motion module.*Load Motion Mod"),
    ({"model.diffusion_model.input_blocks.0.0.weight": 0}, "full checkpoint.*Load Checkpoint"),
    ({"emb_params": 0}, "embedding .textual inversion.*embedding:NAME"),
    ({"lora_unet_x.hada_w1_a": 0}, "LyCORIS file of another kind"), ({"a": 0, "b": 0}, "no LoRA in it.*2 keys")])
def test_files_that_are_no_loras(state, text):
    with pytest.raises(LoraFileError, match=text):
        read_lora_state({name: torch.zeros(2, 2) for name in state})


def test_broken_numbers_and_files(tmp_path):
    factors = {f"{A}to_q": Factors(torch.full((4, 32), float("nan")), noise(32, 4), 4.0)}
    with pytest.raises(LoraFileError, match="NaN or infinite numbers, e.g. down_blocks"):
        read_lora_state(state_of({TEMPORAL: factors}, ANIMATEDIFF))
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.ckpt")

    def load(name):
        raise RuntimeError("bad header\nand more")

    with pytest.raises(LoraFileError, match="x.ckpt cannot be read .bad header."):
        read_lora_file(tmp_path / "x.ckpt", load)


def test_embeddings(tmp_path):
    vectors = noise(8, 768)
    write_embedding(tmp_path / "look.safetensors", vectors, {"caption": "a room"})
    state = load_file(tmp_path / "look.safetensors")
    assert list(state) == ["emb_params"]
    for given in (state, {"string_to_param": {"*": vectors}}, {"clip_l": vectors}):
        torch.testing.assert_close(read_embedding(given), vectors)
    assert read_embedding({"v": vectors[0]}).shape == (1, 768)
    with pytest.raises(LoraFileError, match="no vectors"):
        read_embedding({"x": torch.zeros(1, 2, 3)})


def test_sums_scales_and_ranks():
    """A sum is exact; a smaller rank keeps the largest part of the change, and of the same rank all of it."""
    one, two = ({name: pair for name, pair in list(pairs(rank, rank).items())[:3]} for rank in (4, 6))
    both = summed([one, scaled(two, -0.5)])
    for name in one:
        expected = change(one[name]) - 0.5 * change(two[name])
        torch.testing.assert_close(change(both[name]), expected, rtol=1e-4, atol=1e-4)
        assert len(both[name].down) == 10
    same, kept = reranked(both, 10)
    assert kept == pytest.approx(1) and same[next(iter(one))] is both[next(iter(one))]
    small, kept = reranked(both, 2)
    errors, wholes = 0.0, 0.0
    for name, pair in small.items():
        _, values, _ = torch.linalg.svd(change(both[name]))
        error = (change(pair) - change(both[name])).square().sum()
        assert error == pytest.approx(float(values[2:].square().sum()), rel=1e-3)
        errors, wholes = errors + float(error), wholes + float(values.square().sum())
    assert kept == pytest.approx(1 - errors / wholes, rel=1e-4) and len(next(iter(small.values())).down) == 2
    kernel = {"conv": Factors(noise(6, 5, 3, 3), noise(7, 6, 1, 1), 6.0)}
    assert reranked(kernel, 2)[0]["conv"].down.shape == (2, 5, 3, 3)
    with pytest.raises(ValueError, match="at least 1"):
        reranked(one, 0)


def test_counts_of_parameters():
    """customize_a_video.md 2.4: 281,600 r without the middle, 302,080 r with it; 19,333,120 at rank 64."""
    from frozen_diffusion.modules.motion.motion_lora import parameters
    for mid, each in ((False, 281_600), (True, 302_080)):
        module = MotionModule(MotionConfig("sd15", (320, 640, 1280, 1280), mid=mid), device="meta")
        layers = dict(module.named_modules())
        factors = {path: Factors(torch.empty(4, layers[path].in_features, device="meta"),
                                 torch.empty(layers[path].out_features, 4, device="meta"), 4.0)
                   for path in attention_projections(module)}
        assert parameters(factors) == 4 * each
    assert 64 * 302_080 == 19_333_120
