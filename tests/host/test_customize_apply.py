"""Motion LoRAs in the real host: off exactly, over time, per block, several, files of every kind, what is refused."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from h_space_examples import comfy_sampler, guider, levels
from motion_examples import TINY, random_motion
from safetensors.torch import load_file, save_file

from frozen_diffusion.modules.customize.files import ANIMATEDIFF, DIFFUSERS, KOHYA, LoraFileError, state_of, write_lora
from frozen_diffusion.modules.customize.names import SPATIAL, TEMPORAL
from frozen_diffusion.modules.customize.rerank import summed
from frozen_diffusion.modules.host.customize.files import (
    FOLDER,
    load_lora,
    load_report,
    motion_lora_of,
    register_folder,
    with_motion_lora,
)
from frozen_diffusion.modules.host.customize.spatial import spatial_paths
from frozen_diffusion.modules.host.motion.apply import apply_motion, hold_motion
from frozen_diffusion.modules.motion.motion_lora import MotionLoRA, by_block, strength_curve
from frozen_diffusion.modules.motion.temporal_lora import attention_projections
from frozen_diffusion.modules.seeding import stream
from frozen_diffusion.modules.training.lora_keys import Factors

pytestmark = pytest.mark.usefixtures("unloaded")
FRAMES = 4


def motion(config=TINY, dtype=None):
    return hold_motion(config, random_motion(config).state_dict(), "random.safetensors", dtype=dtype)


def factors_for(module, seed=0, rank=2, size=0.3):
    layers = dict(module.named_modules())
    return {path: Factors(torch.randn(rank, layers[path].in_features, generator=stream("down", seed, path)),
                          size * torch.randn(layers[path].out_features, rank, generator=stream("up", seed, path)),
                          float(rank))
            for path in attention_projections(module)}


def lora(loaded, seed=0, **settings):
    return MotionLoRA(f"lora {seed}", factors_for(loaded.module, seed), **settings)


def sample(model, loaded, steps=4):
    made = guider(apply_motion(model, loaded), 3.0)
    noise = torch.randn(FRAMES, 4, 16, 16, generator=stream("clip"))
    return made.sample(noise, torch.zeros_like(noise), comfy_sampler("euler"), levels(made.model_patcher, steps),
                       disable_pbar=True, seed=1)


def test_strength_0_is_the_motion_module_itself(base):
    """Bit for bit, before and after a run with the LoRA; the run leaves no hook behind."""
    loaded = motion()
    plain = sample(base, loaded)
    weights = {name: tensor.clone() for name, tensor in loaded.module.state_dict().items()}
    off, report = with_motion_lora(loaded, lora(loaded), 0.0)
    assert torch.equal(sample(base, off), plain) and "nothing is changed" in report
    on, _ = with_motion_lora(loaded, lora(loaded), 1.0)
    made = sample(base, on)
    assert (made - plain).abs().max() > 1e-2
    assert torch.equal(sample(base, on), made) and torch.equal(sample(base, loaded), plain)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.module.state_dict().items())
    assert not any(module._forward_hooks for module in loaded.module.modules())


def test_the_hooks_are_the_merged_weights(tiny_sd15):
    """A LoRA at full strength is the motion module with the change in its weights; two add up. In fp64: a random model
    makes much of rounding."""
    base, loaded = tiny_sd15(torch.float64), motion(dtype=torch.float64)
    first, second = lora(loaded, 1), lora(loaded, 2)
    both, _ = with_motion_lora(with_motion_lora(loaded, first, 0.7)[0], second, -0.4)
    state = {name: tensor.clone() for name, tensor in loaded.module.state_dict().items()}
    for part, strength in ((first, 0.7), (second, -0.4)):
        for path, pair in part.factors.items():
            state[f"{path}.weight"] += strength * pair.up @ pair.down
    merged = hold_motion(TINY, state, "merged", dtype=torch.float64)
    torch.testing.assert_close(sample(base, both), sample(base, merged), rtol=1e-3, atol=1e-2)
    one = MotionLoRA("sum", summed([{path: pair._replace(up=0.7 * pair.up) for path, pair in first.factors.items()},
                                    {path: pair._replace(up=-0.4 * pair.up) for path, pair in second.factors.items()}]))
    torch.testing.assert_close(sample(base, with_motion_lora(loaded, one, 1.0)[0]), sample(base, both), rtol=1e-3,
                               atol=1e-2)


def test_it_fades_out(base):
    """After its part of the sampling layers give what they give without it; a curve says it otherwise."""
    loaded = motion()
    whole = sample(base, with_motion_lora(loaded, lora(loaded), 1.0)[0])
    faded = sample(base, with_motion_lora(loaded, lora(loaded), 1.0, fade_after=0.5)[0])
    never = sample(base, with_motion_lora(loaded, lora(loaded), 1.0, curve="0: 0")[0])
    assert (faded - whole).abs().max() > 1e-3 and torch.equal(never, sample(base, loaded))
    same = sample(base, with_motion_lora(loaded, lora(loaded), 1.0, curve="0: 1, 0.5: 1, 0.500001: 0")[0])
    assert torch.equal(same, faded)
    assert [strength_curve(0.5).at(part) for part in (0.0, 0.5, 0.6, 1.0)] == [1, 1, 0, 0]
    assert strength_curve(1.0).at(1.0) == 1 and strength_curve(0.2, "0: 1, 1: 0").at(0.25) == pytest.approx(0.75)
    with pytest.raises(ValueError, match="curve is 'much'.*part of the sampling"):
        strength_curve(1.0, "much")


def test_blocks(base):
    """Strength of parts of the U-Net; of all 0 it is off, and what cannot be read is named."""
    loaded = motion()
    part = lora(loaded)
    plain = sample(base, loaded)
    off = sample(base, with_motion_lora(loaded, part, 1.0, blocks="down 0, mid 0, up 0")[0])
    torch.testing.assert_close(off, plain)
    found = by_block(part.factors, "down 0.5; up.3: 2, mid=0")
    for path, pair in found.items():
        scale = 0.5 if path.startswith("down") else 0 if path.startswith("mid") else 2 if "up_blocks.3" in path else 1
        torch.testing.assert_close(pair.up, scale * part.factors[path].up)
    for text in ("left 1", "down", "up.x 1", "down much"):
        with pytest.raises(ValueError, match="is no block with its strength"):
            by_block(part.factors, text)


def test_a_run_that_fails_leaves_no_hook(base):
    from comfy.patcher_extension import WrappersMP
    loaded = motion()
    on, _ = with_motion_lora(loaded, lora(loaded), 1.0)
    model = apply_motion(base, on)
    calls = []

    def fail(executor, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("in the middle")
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "fails", fail)
    noise = torch.zeros(FRAMES, 4, 16, 16)
    with pytest.raises(RuntimeError, match="in the middle"):
        guider(model, 3.0).sample(noise, noise, comfy_sampler("euler"), levels(model, 3), disable_pbar=True, seed=1)
    assert not any(module._forward_hooks for module in loaded.module.modules())


def test_context_windows_and_a_motion_lora(comfy, base):
    from comfy_extras.nodes_context_windows import ContextWindowsManualNode
    loaded = motion()
    on, _ = with_motion_lora(loaded, lora(loaded), 1.0)

    def windowed(part):
        model = comfy.run(ContextWindowsManualNode, model=apply_motion(base, part), context_length=4, context_overlap=2,
                          context_schedule="standard_static", context_stride=1, closed_loop=False,
                          fuse_method="pyramid", dim=0)[0]
        noise = torch.randn(6, 4, 16, 16, generator=stream("long"))
        return guider(model, 3.0).sample(noise, torch.zeros_like(noise), comfy_sampler("euler"), levels(model, 2),
                                         disable_pbar=True, seed=1)

    assert (windowed(on) - windowed(loaded)).abs().max() > 1e-3


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """models/animatediff_motion_lora and the output folder, for this test alone."""
    import folder_paths
    register_folder()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, FOLDER, ([str(tmp_path)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    folder_paths.filename_list_cache.clear()
    yield tmp_path
    folder_paths.filename_list_cache.clear()


@pytest.mark.parametrize("layout", [ANIMATEDIFF, DIFFUSERS])
def test_a_file_by_the_node(comfy, base, folder, layout):
    """Read, applied, counted; with the captions and warnings that its metadata tell."""
    loaded = motion()
    write_lora(folder / "spin.safetensors", {TEMPORAL: lora(loaded).factors}, layout,
               {"caption": "a fox, spinning", "beta_schedule": "lcm"})
    made, report = comfy.run("FrozenLoadMotionLoRA", motion_module=loaded, lora_file="spin.safetensors", strength=1.0,
                             fade_after=1.0)
    count = len(made.loras[0].factors)
    assert f"{count} of {count} layers applied" in report and "a fox, spinning" in report
    assert "beta schedule lcm" in report
    torch.testing.assert_close(sample(base, made), sample(base, with_motion_lora(loaded, lora(loaded), 1.0)[0]),
                               rtol=1e-3, atol=1e-3)
    again, report = comfy.run("FrozenLoadMotionLoRA", motion_module=made, lora_file="spin.safetensors", strength=0.8,
                              fade_after=0.5)
    assert len(again.loras) == 2 and "add up to 1.8" in report


def test_what_a_file_is_instead(folder):
    """K1, K2: an ordinary LoRA and a motion module where a motion LoRA belongs; a mixed file is counted (K9)."""
    loaded = motion()
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    spatial = {name: Factors(torch.randn(2, 8), torch.randn(8, 2), 2.0)}
    write_lora(folder / "look.safetensors", {SPATIAL: spatial}, KOHYA)
    with pytest.raises(LoraFileError, match="ordinary LoRA.*taken by the node Load LoRA"):
        motion_lora_of(load_lora(folder / "look.safetensors"))
    save_file(loaded.module.state_dict(), folder / "module.safetensors")
    with pytest.raises(LoraFileError, match="whole motion module.*Load Motion Module"):
        load_lora(folder / "module.safetensors")
    mixed = state_of({TEMPORAL: lora(loaded).factors}, ANIMATEDIFF) | state_of({SPATIAL: spatial}, KOHYA) | {
        "strange.lora_down.weight": torch.zeros(2, 4), "strange.lora_up.weight": torch.zeros(4, 2)}
    save_file(mixed, folder / "mixed.safetensors")
    report = load_report(load_lora(folder / "mixed.safetensors"))
    assert "temporal and 1 spatial layers" in report and "Convert LoRA splits" in report and "strange" in report


def test_what_does_not_fit(base):
    """Another family is refused with both sizes; a LoRA with layers that the module lacks is applied with counts."""
    import dataclasses
    loaded = motion()
    wide = motion(dataclasses.replace(TINY, channels=(64, 64, 128, 128)))
    with pytest.raises(ValueError, match=r"another family: its layer down_blocks.0.*\(64, 64\).*\(32, 32\)"):
        with_motion_lora(loaded, lora(wide), 1.0)
    bare = motion(dataclasses.replace(TINY, mid=False))
    made, report = with_motion_lora(bare, lora(loaded), 1.0)
    assert "8 layers are not in this motion module, e.g. mid_block" in report
    assert "v2 does little on v1 and v3" in report
    assert len(made.loras[0].factors) == len(lora(loaded).factors) - 8
    with pytest.raises(ValueError, match="None of the 1 layers"):
        with_motion_lora(loaded, MotionLoRA("odd", {"x": Factors(torch.zeros(1, 2), torch.zeros(2, 1), 1.0)}), 1.0)


def test_convert(comfy, base, folder):
    """Another layout, a smaller rank, a sum; the host's own loader takes the image model's part (F6)."""
    import comfy.lora as host_lora
    loaded = motion()
    for seed in (1, 2):
        write_lora(folder / f"{seed}.safetensors", {TEMPORAL: lora(loaded, seed).factors}, ANIMATEDIFF)

    def run(**changes):
        return comfy.run("FrozenConvertLoRA", **{
            "lora_file": "1.safetensors", "add": "none", "scale": 1.0, "add_scale": 1.0, "rank": 0,
            "layout": DIFFUSERS, "filename_prefix": "made", **changes})

    path, _ = run()
    assert any("lora_A" in key for key in load_file(path))
    path, report = run(add="2.safetensors", add_scale=-1.0, layout=ANIMATEDIFF)
    both = load_lora(path).temporal
    name = next(iter(both))
    one, two = (lora(loaded, seed).factors[name] for seed in (1, 2))
    torch.testing.assert_close(both[name].up @ both[name].down, one.up @ one.down - two.up @ two.down, rtol=1e-4,
                               atol=1e-4)
    path, report = run(rank=1)
    assert "rank 1 keeps" in report and len(next(iter(load_lora(path).temporal.values())).down) == 1
    with pytest.raises(LoraFileError, match="has no spatial or text layers.*Choose AnimateDiff or diffusers"):
        run(layout=KOHYA)
    names = spatial_paths(base)
    layers = dict(base.model.diffusion_model.named_modules())
    chosen = [name for name in names if ".attn1.to_q" in name]
    spatial = {name: Factors(torch.randn(2, layers[names[name]].in_features),
                             torch.randn(layers[names[name]].out_features, 2), 2.0) for name in chosen}
    peft = {f"unet.{name}.lora_{letter}.weight": getattr(pair, role) for name, pair in spatial.items()
            for letter, role in (("A", "down"), ("B", "up"))}
    save_file(peft, folder / "peft.safetensors")
    path, _ = run(lora_file="peft.safetensors", layout=KOHYA)
    keys = host_lora.model_lora_keys_unet(base.model, {})
    loaded_keys = host_lora.load_lora(load_file(path), keys)
    assert len(loaded_keys) == len(chosen)
    assert len(host_lora.load_lora(peft, keys)) < len(chosen), "the host itself does not know these names"


def test_saved_as_animatediff_files(comfy, folder):
    loaded = motion()
    path, = comfy.run("FrozenSaveMotionLoRA", motion_lora=lora(loaded, 3), filename_prefix="motion_loras/x")
    assert path.endswith("x_00001_.safetensors")
    found = motion_lora_of(load_lora(Path(path)))
    assert found.factors.keys() == lora(loaded, 3).factors.keys()


def test_clip_doctor(comfy):
    """The part that moves and has no cut; doubled frames; a still."""
    frames = torch.full((24, 32, 32, 3), 0.2)
    for frame in range(12):
        frames[12 + frame, 8:16, frame:frame + 8] = 1.0
    frames[:12] += 0.6                          # a cut at frame 12
    part, report, picture = comfy.run("FrozenClipDoctor", frames=frames, fps=8.0, seconds=1.0)
    assert len(part) == 8 and "Cuts at frame 12" in report and "the subject moves" in report
    assert picture.shape[0] == 1 and picture.std() > 0
    doubled = frames[12:].repeat_interleave(2, 0)
    report = comfy.run("FrozenClipDoctor", frames=doubled, fps=16.0, seconds=2.0)[1]
    assert "12 frames repeat the one before" in report and "about 8 fps" in report
    report = comfy.run("FrozenClipDoctor", frames=frames[:8], fps=8.0, seconds=1.0)[1]
    assert "hardly anything moves" in report
    with pytest.raises(ValueError, match="one frame has no motion"):
        comfy.run("FrozenClipDoctor", frames=frames[:1], fps=8.0, seconds=1.0)
