"""Every family and naming of motion files loads as what it is; everything else is refused with a reason."""
import os
import pickle
from dataclasses import replace

import pytest
import torch
from motion_examples import FAMILIES, TINY, as_hotshot, random_motion, without_codes
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from frozen_diffusion.modules.files import atomic_write
from frozen_diffusion.modules.motion import keys
from frozen_diffusion.modules.motion.detect import check_shapes, detect
from frozen_diffusion.modules.motion.file_checks import MotionFileError
from frozen_diffusion.modules.motion.files import (
    FORMAT,
    VERSION,
    is_our_file,
    read_motion_file,
    read_motion_state,
    write_motion_file,
)
from frozen_diffusion.modules.motion.module import MotionConfig, MotionModule, fresh_motion_module

SMALL = (32, 32, 32, 32)
HARIVO = replace(TINY, temporal_convolution=True, mapping_width=8, frame_tokens=2, text_channels=64)


def load(path):
    """What the host's loader does, without the host."""
    if str(path).endswith(".safetensors"):
        with safe_open(path, "pt") as file:
            return load_file(path), file.metadata()
    return torch.load(path, weights_only=True), None


def small_state(**settings) -> dict:
    return random_motion(MotionConfig("sd15", SMALL, **settings)).state_dict()


def same(state: dict, other: dict) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[key], other[key]) for key in state)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_family_counts_and_detection(family):
    """Tensor and parameter counts of the published files, and the family told from the keys alone."""
    module = MotionModule(family.config, device="meta")
    state = module.state_dict()
    if family.config.kind == "animatelcm":
        state = without_codes(state)
    if family.config.kind == "hotshotxl":
        state = as_hotshot(state)
    assert len(state) == family.tensors
    assert round(sum(p.numel() for p in module.parameters()) / 1e6, 1) == family.millions
    weights, names = keys.normalise(state)
    config = detect(weights, names)
    check_shapes(config, weights)
    assert (config.kind, config.family, config.max_frames) == (
        family.config.kind, family.config.family, family.config.max_frames)


@pytest.mark.parametrize(("settings", "kind", "schedule", "groupnorm"), [
    ({"mid": False, "max_frames": 24}, "animatediff v1", "sqrt_linear", "pooled"),
    ({"mid": True, "max_frames": 32}, "animatediff v2", "sqrt_linear", "per frame"),
    ({"mid": False, "max_frames": 32}, "animatediff v3", "sqrt_linear", "per frame"),
])
def test_schedule_and_norm_rule_follow_the_family(settings, kind, schedule, groupnorm):
    config, weights, report = read_motion_state(small_state(**settings))
    assert (config.kind, config.beta_schedule, config.groupnorm) == (kind, schedule, groupnorm)
    assert config.max_frames == settings["max_frames"] and config.channels == SMALL
    assert report.tensors == len(weights) and not report.dropped and not report.warnings


def wrapped(state):
    return {"state_dict": state, "epoch": 3, "global_step": torch.tensor(7), "animatediff_config": {}}


def ddp(state):
    return {f"module.{key}": value for key, value in state.items()}


def prefixed(*prefixes):
    return lambda state: {"".join(prefixes) + key: value for key, value in state.items()}


def compiled_blocks(state):
    """As torch.compile and FSDP of single blocks name them."""
    return {key.replace("motion_modules.0.", "motion_modules.0._orig_mod._fsdp_wrapped_module."): value
            for key, value in state.items()}


PREFIXES = [("_orig_mod.",), ("module.",), ("module.", "_orig_mod."), ("_orig_mod.", "module."), ("unet.",),
            ("model.",), ("motion_module.",), ("module.", "model.", "unet.", "_orig_mod.")]


@pytest.fixture(scope="module")
def whole() -> dict:
    """A motion module and two frozen layers, as a training script saves a whole U-Net."""
    return {**small_state(temporal_convolution=True), "conv_norm_out.weight": torch.ones(32),
            "time_embedding.linear_1.bias": torch.ones(4)}


@pytest.mark.fault("E1")
def test_prefixes_and_containers_of_training_scripts_in_any_nesting(whole):
    """The frozen layers are counted as left out."""
    plain, _ = keys.normalise(whole)
    wrapped = [prefixed(*prefixes)(whole) for prefixes in PREFIXES] + [
        {container: {"state_dict": prefixed("module.")(whole)}, "epoch": 3} for container in keys.CONTAINERS]
    for state in wrapped:
        weights, names = keys.normalise(keys.unwrap(state))
        assert same(weights, plain) and len(plain) == len(whole) - 2
        assert names.dropped == ("conv_norm_out.weight", "time_embedding.linear_1.bias")
        assert names.entries == len(whole)
    diffusers = prefixed("unet.")(keys.to_diffusers({key: whole[key] for key in plain if "harivo" not in key}))
    _, weights, report = read_motion_state(diffusers)
    assert report.dropped == () and all(torch.equal(value, plain[key]) for key, value in weights.items())


@pytest.mark.fault("E1")
def test_an_unknown_prefix_is_named_and_counts_are_those_of_the_file(whole):
    frozen = {"conv_norm_out.weight": torch.ones(32), "conv_in.bias": torch.ones(4)}
    state = {key: value for key, value in whole.items() if "temporal_transformer" in key}
    with pytest.raises(MotionFileError, match=rf"The names of its {len(state)} motion weights begin with 'net\.video\.'"
                                              r".*Remove 'net\.video\.'"):
        read_motion_state(prefixed("net.video.")({**state, **frozen}))
    with pytest.raises(MotionFileError, match="no temporal layer among its 2 entries"):
        read_motion_state(frozen)
    partly = {key: value for key, value in state.items() if not key.startswith("down_blocks.0.")}
    with pytest.raises(MotionFileError, match=f"{len(partly)} of its {len(partly) + 2} entries .* is missing"):
        read_motion_state({**partly, **frozen})
    with pytest.raises(MotionFileError, match="two networks: down_blocks.* and module.down_blocks"):
        read_motion_state({**state, **prefixed("module.")(state)})


@pytest.mark.parametrize("variant", [
    wrapped, ddp, lambda state: wrapped(ddp(state)), as_hotshot, keys.to_diffusers, compiled_blocks,
    lambda state: {**state, "conv_norm_out.weight": torch.ones(32), "time_embedding.linear_1.bias": torch.ones(4)},
], ids=["wrapper", "ddp", "wrapped ddp", "hotshot names", "diffusers names", "wrapped blocks", "stray keys"])
def test_every_naming_gives_the_same_weights(variant):
    state = small_state()
    _, weights, _ = read_motion_state(variant(state))
    assert same(weights, state)


def test_diffusers_accepts_and_returns_our_weights():
    diffusers = pytest.importorskip("diffusers")
    state, config = small_state(max_frames=24), MotionConfig("sd15", SMALL, max_frames=24)
    adapter = diffusers.MotionAdapter(**keys.adapter_settings(config.channels, config.mid, config.max_frames))
    adapter.load_state_dict(keys.to_diffusers(state))
    assert same(read_motion_state(adapter.state_dict())[1], state)


def test_diffusers_without_codes_rebuilds_them():
    state = {key: value for key, value in keys.to_diffusers(small_state()).items() if "pos_embed" not in key}
    config, weights, report = read_motion_state(state)
    assert config.max_frames == 32 and same(weights, small_state())
    assert any("positional encoding" in warning for warning in report.warnings)


def test_converting_refuses_what_diffusers_lacks():
    with pytest.raises(ValueError, match="temporal convolutions"):
        keys.to_diffusers(small_state(temporal_convolution=True))
    state = small_state()
    name = "mid_block.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.1.pos_encoder.pe"
    with pytest.raises(ValueError, match="positional encoding"):
        keys.to_diffusers({**state, name: state[name] + 1})


def test_animatelcm_and_pia():
    state = small_state(mid=False, max_frames=64)
    config, weights, report = read_motion_state(without_codes(state))
    assert (config.kind, config.max_frames, config.beta_schedule) == ("animatelcm", 64, "lcm")
    assert same(weights, state) and report.tensors == len(without_codes(state))
    pia = {**small_state(max_frames=32), "conv_in.weight": torch.ones(320, 9, 3, 3), "conv_in.bias": torch.ones(320)}
    config, _, report = read_motion_state(pia)
    assert config.kind == "pia" and report.dropped == ("conv_in.weight", "conv_in.bias")
    assert any("PIA" in warning for warning in report.warnings)


def test_metadata_tell_what_the_weights_cannot(tmp_path):
    """What harivo.md 2.9.2 lists; files written before some of it was told load as they did."""
    config = replace(HARIVO, beta_schedule="sqrt_linear", frames=12, fps=6.0)
    write_motion_file(tmp_path / "new.safetensors", random_motion(config), {"train_data": "clips", "licence": "CC0"})
    state, told = load(tmp_path / "new.safetensors")
    assert told.items() >= {"format_version": "1", "frames": "12", "fps": "6.0", "frame_tokens": "2",
                            "mapping": "every_step", "beta_schedule": "sqrt_linear", "family": "sd15",
                            "train_data": "clips", "licence": "CC0"}.items()
    assert read_motion_state(state, told)[0] == config
    old = {key: value for key, value in told.items() if key not in ("frames", "mapping")}
    assert read_motion_state(state, old)[0] == replace(config, frames=0)
    write_motion_file(tmp_path / "plain.safetensors", random_motion())
    assert load(tmp_path / "plain.safetensors")[1]["mapping"] == "off"


@pytest.mark.fault("E2")
@pytest.mark.parametrize(("field", "value", "match"), [
    ("fps", "many", "fps is 'many' in its metadata; expected a number above 0"), ("fps", "0", "fps is '0'"),
    ("fps", "nan", "fps is 'nan'"), ("frames", "x", "frames is 'x' in its metadata; expected a whole number"),
    ("frames", "-2", "frames is '-2'"), ("groupnorm", "all", "groupnorm is 'all'.*per frame or pooled"),
    ("format_version", "9", "of version 9 and this pack reads version 1. Update the pack"),
    ("format_version", "new", "format_version is 'new'"),
])
def test_wrong_metadata_are_named(whole, field, value, match):
    """The file is named where files are read: test_wrong_metadata_name_file_and_field."""
    metadata = {"format": FORMAT, "format_version": VERSION, field: value}
    with pytest.raises(MotionFileError, match=match):
        read_motion_state(whole, metadata)


@pytest.mark.parametrize("convolution", [False, True])
def test_our_format_round_trip(tmp_path, convolution):
    config = replace(TINY, temporal_convolution=convolution, fps=12.0, groupnorm="pooled", frames=16)
    module = random_motion(config)
    path = tmp_path / "sub" / "clip.safetensors"
    write_motion_file(path, module, {"licence": "CC0", "train_data": "nothing"})
    read, weights, report, metadata = read_motion_file(path, load)
    assert read == config and same(weights, module.state_dict()) and not report.warnings
    assert (metadata["licence"], metadata["format_version"]) == ("CC0", "1")
    assert is_our_file(path) and [file.name for file in path.parent.iterdir()] == ["clip.safetensors"]


def test_extra_names_are_invisible_to_other_loaders():
    """AnimateDiff-Evolved drops keys without "temporal" and goes by these substrings."""
    state = random_motion(HARIVO).state_dict()
    extra = [key for key in state if key.startswith("harivo.")]
    assert {key.split(".")[1] for key in extra} == {"map", "tok", "tconv"}
    plain = {key: value for key, value in state.items() if "temporal" in key}           # what is left there
    config, weights, report = read_motion_state(plain)
    assert (config.kind, config.channels, report.warnings) == ("animatediff v2", HARIVO.channels, ())
    assert state.keys() - weights.keys() == {*extra} and same(plain, weights)
    MotionModule(TINY).load_state_dict(plain)
    for part in ("temporal", "pos_embed", "img_encoder", "conv_in", "down_blocks", "mid_block", "up_blocks"):
        assert not any(part in key for key in extra)


def test_untrained_module_is_reported():
    report = read_motion_state(fresh_motion_module(TINY).state_dict())[2]
    assert any("untrained" in warning for warning in report.warnings)


DOWN = "down_blocks.0.motion_modules.0.temporal_transformer."
MAP, QUERIES = "harivo.map.first.conv.weight", "harivo.tok.queries"
POSITIONAL_ENCODING = DOWN + "transformer_blocks.0.attention_blocks.0.pos_encoder.pe"
OTHERS = {
    "motion LoRA": {DOWN + "transformer_blocks.0.attention_blocks.0.processor.to_q_lora.down.weight": 1},
    "domain adapter": {"down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight": 1},
    "Load LoRA": {"lora_unet_down_blocks_0_attentions_0.lora_up.weight": 1},
    "SparseCtrl": {"controlnet_cond_embedding.conv_in.weight": 1, DOWN + "norm.weight": 1},
    "Load ControlNet": {"control_model.input_hint_block.0.weight": 1},
    "Load Checkpoint": {"model.diffusion_model.input_blocks.0.0.weight": 1, "first_stage_model.x": 1},
    "Load Diffusion Model": {"down_blocks.0.resnets.0.conv1.weight": 1},
    "Load VAE": {"decoder.up.0.block.0.conv1.weight": 1},
    "Load CLIP": {"text_model.encoder.layers.0.mlp.fc1.weight": 1},
    "no temporal layer": {"something.weight": 1, "else.weight": 1},
}


@pytest.mark.parametrize("named", OTHERS)
def test_other_models_are_named(named):
    state = {key: torch.ones(4) for key in OTHERS[named]}
    with pytest.raises(MotionFileError, match=named):
        read_motion_state(state)


def test_incomplete_weights_are_listed():
    state = small_state()
    gone = [key for key in state if ".norms." in key][:7]
    broken = {key: value for key, value in state.items() if key not in gone}
    broken[DOWN + "proj_out.bias"] = torch.zeros(31)
    broken[DOWN + "surprise.weight"] = torch.zeros(3)
    with pytest.raises(MotionFileError) as error:
        read_motion_state(broken)
    text = str(error.value)
    assert "7 missing" in text and gone[4] in text and gone[5] not in text and "and 2 more" in text
    assert f"1 unknown: {DOWN}surprise.weight" in text
    assert f"1 of wrong shape: {DOWN}proj_out.bias (31,), expected (32,)" in text


@pytest.mark.parametrize(("name", "damage", "match"), [
    (MAP, lambda x: x[:-1], rf"mapping_width is 8 by its metadata, but 7 by its tensors \({MAP}\)"),
    (MAP, lambda x: x.flatten(), rf"1 of wrong shape: {MAP} \(864,\), expected 5 dimensions"),
    (MAP, lambda x: x[:, :3], rf"1 of wrong shape: {MAP} \(8, 3, 3, 3, 3\), expected \(8, 4, 3, 3, 3\)"),
    (QUERIES, lambda x: x[0], rf"1 of wrong shape: {QUERIES} \(64,\), expected 2 dimensions"),
    (QUERIES, lambda x: x[:-1], rf"frame_tokens is 2 by its metadata, but 1 by its tensors \({QUERIES}\)"),
    (QUERIES, lambda x: x[:, :-1], "of wrong shape"),
    (DOWN + "proj_in.weight", lambda x: x[:-1], f"widths that it tells by {DOWN}proj_in.weight, .*of wrong shape"),
    (DOWN + "proj_in.weight", lambda x: x[:, 0], r"1 of wrong shape.*\(32,\), expected 2 or 4 dimensions"),
    (POSITIONAL_ENCODING, lambda x: x[0], "1 of wrong shape.*expected 3 dimensions"),
    ("harivo.tconv.down.0.0.conv1.weight", lambda x: x[:, :-1], "1 of wrong shape: harivo.tconv.down.0.0.conv1"),
])
def test_a_damaged_shape_is_named(tmp_path, name, damage, match):
    path, module = tmp_path / "damaged.safetensors", random_motion(HARIVO)
    write_motion_file(path, module)
    state, metadata = load(path)
    save_file({**state, name: damage(state[name]).contiguous().clone()}, path, metadata)
    with pytest.raises(MotionFileError, match=f"^damaged.safetensors: .*{match}"):
        read_motion_file(path, load)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_listed(value):
    state = small_state()
    state[DOWN + "proj_in.bias"][3] = value
    with pytest.raises(MotionFileError, match=rf"1 tensors hold NaN.*{DOWN}proj_in.bias"):
        read_motion_state(state)


def test_files_that_are_no_models(tmp_path):
    def refused(name: str, content: bytes, match: str):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(MotionFileError, match=match) as error:
            read_motion_file(path, load)
        assert name in str(error.value)

    refused("page.ckpt", b"\n<!DOCTYPE html><html>", "saved web page")
    refused("page.safetensors", b"<html><body>", "saved web page")
    refused("pointer.ckpt", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer")
    refused("nothing.safetensors", b"", "empty")
    refused("noise.safetensors", b"\x01" * 100, "does not begin like a safetensors")
    refused("noise.ckpt", b"\x01" * 100, "no model file")
    refused("broken.ckpt", b"\x80\x02}", "cannot be read")
    refused("header.safetensors", (9).to_bytes(8, "little") + b'{"a": "b}', "header .* damaged")


def test_cut_off_and_misnamed_files(tmp_path):
    whole, state = tmp_path / "whole.safetensors", small_state()
    save_file(state, whole)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(MotionFileError, match="cut off: it has"):
        read_motion_file(cut, load)
    (tmp_path / "other.ckpt").write_bytes(whole.read_bytes())
    with pytest.raises(MotionFileError, match="Rename it to other.safetensors"):
        read_motion_file(tmp_path / "other.ckpt", load)
    torch.save(state, tmp_path / "whole.ckpt")
    assert same(read_motion_file(tmp_path / "whole.ckpt", load)[1], state)
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "whole.ckpt").read_bytes()[:-5000])
    with pytest.raises(MotionFileError, match="cut off"):
        read_motion_file(tmp_path / "cut.ckpt", load)
    (tmp_path / "zip.safetensors").write_bytes((tmp_path / "whole.ckpt").read_bytes())
    with pytest.raises(MotionFileError, match="PyTorch file"):
        read_motion_file(tmp_path / "zip.safetensors", load)


class Payload:
    """What a malicious checkpoint holds: a call that runs when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


def test_pickled_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": small_state(), "config": Payload()}, tmp_path / "zip.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps({"state_dict": Payload()}))
    for name in ("zip.ckpt", "plain.ckpt"):
        with pytest.raises(MotionFileError, match="refused"):
            read_motion_file(tmp_path / name, load)
    assert not (tmp_path / "pwned").exists()


def test_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    """A real full disk is in the host tests; here the error of the library."""
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    old = tmp_path / "clip.safetensors"
    old.write_bytes(b"before")
    monkeypatch.setattr(atomic_write, "save_file", full)
    with pytest.raises(OSError, match=r"could not be written to .*No space left.*MiB are free") as error:
        write_motion_file(old, random_motion())
    assert str(tmp_path) in str(error.value)
    assert old.read_bytes() == b"before" and [file.name for file in tmp_path.iterdir()] == ["clip.safetensors"]
