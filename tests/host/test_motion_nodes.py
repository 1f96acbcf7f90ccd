"""Load and Save Motion Module: files as users have them, through the nodes."""
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from motion_examples import TINY, as_hotshot, random_motion, without_codes
from safetensors import safe_open
from safetensors.torch import save_file

from frozen_diffusion.modules.host.motion import files
from frozen_diffusion.modules.host.motion.apply import hold_motion
from frozen_diffusion.modules.motion.file_checks import MotionFileError
from frozen_diffusion.modules.motion.files import read_motion_file, write_motion_file
from testhost.models import CONTEXT, sample

HARIVO = replace(TINY, temporal_convolution=True, mapping_width=8, frame_tokens=2, text_channels=CONTEXT, frames=12)


@pytest.fixture(scope="module")
def folder(comfy, tmp_path_factory):
    """A folder of motion modules that the host knows, as from extra_model_paths.yaml."""
    path = tmp_path_factory.mktemp("animatediff_models")
    comfy.folder_paths.add_model_folder_path(files.FOLDER, str(path))
    return path


def load(comfy, name: str):
    return comfy.run("FrozenLoadMotionModule", motion_file=name)


def listed(comfy) -> list[str]:
    schema = comfy.node("FrozenLoadMotionModule").GET_SCHEMA()
    return schema.inputs[0].options


def test_list_shows_model_files_of_all_places(comfy, folder, tmp_path, monkeypatch):
    """The host's folders by ending, first; then the pack's weights by what the files say they are."""
    save_file(random_motion().state_dict(), folder / "user.safetensors")
    (folder / "readme.txt").write_text("not a model")
    write_motion_file(tmp_path / "ours.safetensors", random_motion(), {})
    save_file({"x": torch.zeros(1)}, tmp_path / "vae.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 20)
    monkeypatch.setattr(files, "WEIGHTS", tmp_path)
    names = listed(comfy)
    assert names[-1] == "frozen-diffusion/ours.safetensors" and "user.safetensors" in names
    assert not any("readme" in name or "vae" in name or "broken" in name for name in names)
    assert load(comfy, names[-1])[0].config == TINY
    with pytest.raises(FileNotFoundError, match="missing.safetensors"):
        load(comfy, "missing.safetensors")


@pytest.mark.fault("E1")
@pytest.mark.parametrize(("name", "prefix"), [("a.safetensors", "module._orig_mod."), ("b.ckpt", "unet.")])
def test_training_checkpoints_of_a_whole_unet_load(comfy, folder, name, prefix):
    state = random_motion(TINY).state_dict()
    whole = {prefix + key: value for key, value in {**state, "conv_in.weight": torch.ones(4, 4, 3, 3)}.items()}
    if name.endswith(".ckpt"):
        torch.save({"epoch": 1, "global_step": 2, "state_dict": whole}, folder / name)
    else:
        save_file(whole, folder / name)
    loaded, report = load(comfy, name)
    assert all(torch.equal(value, state[key]) for key, value in loaded.module.state_dict().items())
    assert f"{len(state)} tensors" in report and "1 tensors that are no motion weights were left out" in report


@pytest.mark.fault("E2")
def test_wrong_metadata_name_file_and_field(comfy, folder):
    write_motion_file(folder / "ours.safetensors", module := random_motion())
    with safe_open(folder / "ours.safetensors", "pt") as file:
        metadata = file.metadata()
    for field, value, match in (("fps", "many", "fps is 'many'"), ("frames", "x", "frames is 'x'"),
                                ("format_version", "9", "Update the pack")):
        save_file(module.state_dict(), folder / "ours.safetensors", metadata | {field: value})
        with pytest.raises(MotionFileError, match=f"ours.safetensors.*{match}"):
            load(comfy, "ours.safetensors")


def test_loading_again_follows_the_file(comfy, folder):
    node = comfy.node("FrozenLoadMotionModule")
    save_file(random_motion().state_dict(), folder / "changing.safetensors")
    before = node.fingerprint_inputs(motion_file="changing.safetensors")
    assert node.fingerprint_inputs(motion_file="changing.safetensors") == before
    save_file(random_motion(seed=1).state_dict(), folder / "changing.safetensors")
    assert node.fingerprint_inputs(motion_file="changing.safetensors") != before


def test_foreign_files_load_and_sample(comfy, folder, tiny_sd15):
    """A training script's checkpoint and two other namings give the same clip as the plain file."""
    state = random_motion().state_dict()
    save_file(state, folder / "plain.safetensors")
    save_file(as_hotshot(state), folder / "names.safetensors")
    torch.save({"epoch": 1, "global_step": 2, "state_dict": {f"module.{key}": value for key, value in state.items()}},
               folder / "training.ckpt")
    base, clips = tiny_sd15(), []
    for name in ("plain.safetensors", "names.safetensors", "training.ckpt"):
        module, report = load(comfy, name)
        assert name in report and "M parameters" in report
        model, = comfy.run("FrozenApplyMotionModule", model=base, motion_module=module, strength=1.0,
                           frames_per_clip=0, start_percent=0.0, end_percent=1.0, beta_schedule="keep",
                           groupnorm="official")
        clips.append(sample(model, 3, size=(8, 8)))
    assert torch.equal(clips[0], clips[1]) and torch.equal(clips[0], clips[2])


def test_warnings_are_in_the_report(comfy, folder):
    state = {key: value.zero_() if ".proj_out." in key else value
             for key, value in without_codes(random_motion().state_dict()).items()}
    save_file({**state, "conv_out.weight": torch.zeros(4)}, folder / "lcm.safetensors")
    _, report = load(comfy, "lcm.safetensors")
    assert "Warning: untrained: every output projection is zero" in report
    assert "animatelcm" in report and "Warning: the file has no positional encoding" in report
    assert "1 tensors that are no motion weights" in report


class Payload:
    """What a weights-only reading must not make."""


@pytest.mark.parametrize(("name", "content", "match"), [
    ("page.safetensors", b"<!DOCTYPE html>", "saved web page"),
    ("pointer.ckpt", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ("nan.safetensors", {"nan": True}, "NaN"),
    ("cut.safetensors", {"cut": True}, "cut off"),
    ("lora.safetensors", {"lora": True}, "motion LoRA"),
    ("inf.safetensors", {"inf": True}, "NaN or"),
    ("shape.safetensors", {"shape": True}, "1 of wrong shape"),
    ("missing.safetensors", {"missing": True}, "not whole. Tensors 1 missing: down_blocks.0.motion_modules.0"),
    ("extra.safetensors", {"tensors": "down_blocks.0.motion_modules.0.temporal_transformer.surprise", "motion": True},
     "1 unknown: down_blocks.0.*surprise"),
    ("adapter.safetensors", {"tensors": "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up"
                             ".weight"}, "domain adapter.*Load LoRA"),
    ("control.safetensors", {"tensors": "control_model.input_hint_block.0.weight"}, "Load ControlNet"),
    ("sparse.safetensors", {"tensors": "controlnet_cond_embedding.conv_in.weight", "motion": True}, "SparseCtrl"),
    ("whole.safetensors", {"tensors": "model.diffusion_model.input_blocks.0.0.weight"}, "Load Checkpoint"),
    ("code.ckpt", {"pickle": True}, "refused"),
])
def test_wrong_files_through_the_node(comfy, folder, name, content, match):
    path, state = folder / name, random_motion().state_dict()
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        for bad in ("nan", "inf"):
            if bad in content:
                next(iter(state.values()))[0] = float(bad)
        if "shape" in content:
            name_of_first = next(iter(state))
            state[name_of_first] = state[name_of_first][:-1].clone()
        if "missing" in content:
            del state[next(name for name in state if name.endswith(".norm.weight"))]
        if "tensors" in content:
            state = {**(state if "motion" in content else {}), content["tensors"]: torch.ones(4)}
        if "lora" in content:
            state = {"down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0."
                     "processor.to_q_lora.down.weight": torch.zeros(4, 32)}
        if "pickle" in content:
            torch.save({**state, "code": Payload()}, path)
        else:
            save_file(state, path)
        if "cut" in content:
            path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(MotionFileError, match=match) as error:
        load(comfy, name)
    assert name in str(error.value)


@pytest.mark.parametrize("config", [TINY, HARIVO], ids=["plain", "harivo"])
def test_save_and_load_again(comfy, config):
    """Numbered as the host's savers do, under the output folder, with what is known about the module."""
    module = hold_motion(config, random_motion(config).state_dict(), "trained", {"licence": "CC0", "steps": "7"})
    name = "harivo" if config == HARIVO else "plain"
    settings = {"motion_module": module, "filename_prefix": f"motion_modules/{name}", "licence": ""}
    paths = [Path(comfy.run("FrozenSaveMotionModule", **settings, train_data=data)[0]) for data in ("", "sprites")]
    assert [path.name for path in paths] == [f"{name}_00001_.safetensors", f"{name}_00002_.safetensors"]
    assert paths[0].parent == Path(comfy.folder_paths.get_output_directory()) / "motion_modules"
    again, report = files.load_motion_file(paths[1])
    assert again.config == config and not report.warnings
    before, after = module.module.state_dict(), again.module.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(value, after[key]) for key, value in before.items())
    assert ("trained on clips of 12 frames" in files.report_text(again, report)) == (config == HARIVO)
    assert (again.metadata["licence"], again.metadata["train_data"], again.metadata["steps"]) == ("CC0", "sprites", "7")


def test_sixteen_bit_files_keep_their_codes(comfy, tmp_path):
    """Weights in 16 bits, positional encoding read into fp32."""
    state = {key: value.half() for key, value in random_motion().state_dict().items()}
    save_file(state, tmp_path / "half.safetensors")
    loaded, _ = files.load_motion_file(tmp_path / "half.safetensors")
    assert {value.dtype for key, value in loaded.module.state_dict().items() if key.endswith(".pe")} == {torch.float32}


def test_full_disk(comfy, small_disk):
    output = comfy.folder_paths.get_output_directory()
    comfy.folder_paths.set_output_directory(str(small_disk))
    try:
        module = hold_motion(TINY, random_motion().state_dict(), "trained")
        with pytest.raises(OSError, match=r"could not be written to .*MiB are free. Free some space"):
            comfy.run("FrozenSaveMotionModule", motion_module=module, filename_prefix="motion_modules/big",
                      licence="", train_data="")
    finally:
        comfy.folder_paths.set_output_directory(output)
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []


def test_our_file_is_a_plain_motion_module(comfy, tmp_path):
    """Without its metadata, as other packs see it, a file of ours is an AnimateDiff module."""
    write_motion_file(tmp_path / "ours.safetensors", random_motion(), {})
    config, *_ = read_motion_file(tmp_path / "ours.safetensors", lambda path: (
        files.comfy.utils.load_torch_file(path, safe_load=True), None))
    assert config.kind == "animatediff v2" and config.channels == TINY.channels
