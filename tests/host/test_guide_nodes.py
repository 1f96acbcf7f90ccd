"""The nodes of guide models through the host: files, a report, the grid of stage 2, and a training."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from guide_examples import guide_for
from h_space_examples import SIZE, comfy_sampler, guider, levels
from training_examples import WordClip, preview_vae

from frozen_diffusion.modules.host.guide.files import list_guides
from testhost.models import conditioning


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The host's folders for this test alone."""
    import folder_paths
    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path / "input"))
    return tmp_path


def applied(comfy, model, loaded, **changes):
    return comfy.run("FrozenApplyGuideModel", model=model, guide_model=loaded, **{
        "guidance": 0.0, "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "schedule": "constant",
        "mode": "one pass", "scales": "", "extrapolate": False, "allow_distilled": False, **changes})[0]


def test_saved_listed_and_loaded(comfy, base, folders, monkeypatch):
    import folder_paths
    loaded = guide_for(base)
    path, = comfy.run("FrozenSaveGuideModel", guide_model=loaded, filename_prefix="guide_models/mine")
    assert path.endswith("mine_00001_.safetensors")
    list_guides()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "guide_models",
                        ([str(folders / "output" / "guide_models")], {".safetensors"}))
    folder_paths.filename_list_cache.clear()
    assert "mine_00001_.safetensors" in list_guides()
    again, report = comfy.run("FrozenLoadGuideModel", guide_file="mine_00001_.safetensors")
    assert again.config == loaded.config and "tiny guide for sd15" in report and "any sampler" in report


def test_the_samplers_cfg_drives_the_guide(comfy, base):
    """KSampler as an artist uses it: another cfg, another picture; cfg 1 is the plain model."""
    model = applied(comfy, base, guide_for(base))

    def sampled(model, cfg):
        return comfy.run("KSampler", model=model, seed=3, steps=2, cfg=cfg, sampler_name="euler", scheduler="normal",
                         positive=conditioning(1), negative=conditioning(2), denoise=1.0,
                         latent_image={"samples": torch.zeros(1, 4, SIZE, SIZE)})[0]["samples"]

    assert (sampled(model, 3.0) - sampled(model, 6.0)).abs().max() > 1e-3
    assert torch.equal(sampled(model, 1.0), sampled(base, 1.0))


def test_the_report_of_a_run(comfy, base):
    """The samples are those of the run without report; both times are told, and warnings."""
    from comfy_extras.nodes_custom_sampler import RandomNoise
    noise = comfy.run(RandomNoise, noise_seed=4)[0]
    model = applied(comfy, base, guide_for(base, g_max=4.0))

    def run(by):
        return comfy.run("FrozenGuideReport", noise=noise, guider=by, sampler=comfy_sampler("euler"),
                         sigmas=levels(base, 4), latent_image={"samples": torch.zeros(1, 4, SIZE, SIZE)})

    output, report, plot = run(guider(model, 5.0))
    zeros = torch.zeros(1, 4, SIZE, SIZE)
    plain = guider(model, 5.0).sample(noise.generate_noise({"samples": zeros}), zeros, comfy_sampler("euler"),
                                      levels(base, 4), disable_pbar=True, seed=4)
    assert torch.equal(output["samples"], plain)
    assert "acted at 4 noise levels" in report and "% of its time" in report and "cfg 5 is above" in report
    assert plot.shape[0] == 1 and plot.std() > 0
    assert "it did not act" in run(guider(model, 1.0))[1]
    with pytest.raises(ValueError, match="has no guide model"):
        run(guider(base, 5.0))


def test_the_grid_of_stage_2(comfy, base):
    loaded = guide_for(base)
    with pytest.raises(ValueError, match="guide of stage 1.*Use BasicScheduler"):
        comfy.run("FrozenStage2Sigmas", guide_model=loaded)
    second = replace(loaded, config=replace(loaded.config, sigmas=(14.6, 2.0, 0.0)))
    assert comfy.run("FrozenStage2Sigmas", guide_model=second)[0].tolist() == pytest.approx([14.6, 2.0, 0.0])


def test_a_training_by_the_node(comfy, tiny_sd15, folders):
    """From a text box, and from a file of prompts that it names; expert settings by the socket."""
    vae = preview_vae()
    (folders / "input").mkdir()
    (folders / "input" / "words.txt").write_text("a\n\nb\n")
    options, = comfy.run("FrozenTrainingOptions", schedule="constant", warmup=0, optimizer="adamw", weight_decay=0.0,
                         grad_clip=1.0, accumulate=1, ema=0.5, precision="fp32", gradient_checkpointing=False,
                         checkpoint_every=10)

    def train(prompts, **changes):
        return comfy.run("FrozenTrainGuideModel", model=tiny_sd15(), vae=vae, clip=WordClip(), prompts=prompts, **{
            "negatives": "", "pictures": "", "kind": "tiny", "fed": False, "steps": 3, "learning_rate": 1e-3,
            "batch_size": 2, "g_min": 1.0, "g_max": 9.0, "trajectories": 2, "trajectory_steps": 3, "weighting": "even",
            "width": 64, "height": 64, "student_steps": 0, "sample_every": 2, "checkpoint": "from a test",
            "resume": True, "seed": 0, "options": options, **changes})

    loaded, losses, sheet, plot = train("a\nb")
    assert loaded.source == "from a test" and len(losses["loss"]) == 3
    assert sheet.shape[0] == 1 and plot.std() > 0
    same = train("words.txt")[0]            # the same prompts: it goes on from the end
    assert all(torch.equal(weight, same.network.state_dict()[name])
               for name, weight in loaded.network.state_dict().items())
    aware = train("a\nb", negatives="c\nd", fed=True, checkpoint="aware")[0]
    assert aware.config.negative_aware and aware.config.fed and not loaded.config.negative_aware
    with pytest.raises(ValueError, match="There is no folder"):
        train("a\nb", pictures=str(folders / "nothing"))
    with pytest.raises(ValueError, match="There is no file .*other.txt"):
        train("other.txt")
    with pytest.raises(ValueError, match="no prompt to learn from"):
        train("")


def test_the_command_trains_and_writes_a_guide(tiny_sd15, tmp_path, monkeypatch, capsys):
    from frozen_diffusion.modules import cli
    from frozen_diffusion.modules.host import image_model
    from frozen_diffusion.modules.host.guide.files import load_guide
    model, vae = tiny_sd15(), preview_vae()
    monkeypatch.setattr(image_model, "load_image_model", lambda path: (model, WordClip(), vae))
    (tmp_path / "words.txt").write_text("a\nb\n")
    out = tmp_path / "mine.safetensors"
    words = ("--checkpoint model.safetensors --size 64x64 --steps 2 --lr 1e-3 --batch 2 --trajectories 2 "
             "--trajectory-steps 3").split()
    options = ["train", "guide", *words, "--prompts", str(tmp_path / "words.txt"), "--out", str(out)]
    assert cli.main(options) == 0
    assert f"written: {out}" in capsys.readouterr().out and (tmp_path / "mine_000002.png").is_file()
    assert load_guide(out).config.resolution == 64
    assert cli.main([*options, "--size", "big"]) == 1
    assert "expected WIDTHxHEIGHT" in capsys.readouterr().out
