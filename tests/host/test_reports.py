"""What nodes tell the page: a report stands under its node and in the history; a wrong text input is an error."""
import sys
from types import SimpleNamespace

import pytest
from comfy_api.latest import io

from frozen_diffusion.modules.host import progress
from testhost.server import ExecutionFailed
from testhost.templates import REPORTS

NAMES = {"report", "text", "path"}           # outputs that a person is meant to read
MOTION = "frozen-diffusion/sprite_motion.safetensors"


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def test_reports_come_as_text_under_the_node(server):
    """The page draws text that a node sends of itself; what it returns as PreviewText, it does not draw."""
    graph = {"clip": node("EmptyImage", width=32, height=32, batch_size=4, color=255),
             "clip report": node("FrozenClipReport", frames=["clip", 0], fps=8.0, columns=4),
             "module": node("FrozenLoadMotionModule", motion_file=MOTION),
             "shown": node("PreviewAny", source=["module", 1])}
    seen = {}

    def hear(kind: str, data: dict) -> None:
        if kind == "progress_text":
            seen[data["node"]] = data["text"]

    history = server.submit(graph, hear)
    assert "flicker" in seen["clip report"] and "beta schedule" in seen["module"]
    assert history["clip report"]["text"] == [seen["clip report"]]
    assert history["module"]["text"] == history["shown"]["text"] == [seen["module"]]


def test_every_report_knows_its_node(comfy):
    """A node with a report asks for its own id, without which nothing can be drawn under it, and templates know it."""
    nodes = [one.GET_SCHEMA() for one in comfy.pack]
    telling = {schema.node_id: [slot for slot, output in enumerate(schema.outputs)
                                if output.get_io_type() == "STRING" and NAMES & {output.id, output.display_name}]
               for schema in nodes}
    assert REPORTS == {node_id: slots[0] for node_id, slots in telling.items() if slots}
    assert [schema.node_id for schema in nodes
            if telling[schema.node_id] and io.Hidden.unique_id not in (schema.hidden or ())] == []


def test_files_cannot_write_markup_into_the_page(comfy, monkeypatch):
    """The page takes progress text for HTML, and a report quotes what a file says of itself."""
    sent = []
    instance = SimpleNamespace(send_progress_text=lambda text, node_id: sent.append((text, node_id)))
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=instance)))
    assert progress.show_text("a <img src=x> & 1 < 2", "7").as_dict() == {"text": ("a <img src=x> & 1 < 2",)}
    assert sent == [("a <\u200bimg src=x> & 1 <\u200b 2", "7")]


@pytest.mark.parametrize(("gamma", "sentence"), [("1.5", "the value 1.5 is outside of 0 to 1"),
                                                 ("999: 0.1, 0.5", "the part '0.5' has no timestep")])
def test_a_bad_gamma_is_an_error_though_the_rest_could_run(server, gamma, sentence):
    """Refused before the run, it would be left out without a word: the page shows nothing while others can run."""
    graph = {"other": node("EmptyImage", width=16, height=16, batch_size=1, color=1),
             "other shown": node("PreviewImage", images=["other", 0]),
             "world": node("FrozenLoadSpriteWorld"),
             "prompt": node("CLIPTextEncode", clip=["world", 1], text=""),
             "noise": node("RandomNoise", noise_seed=1),
             "guider": node("BasicGuider", model=["world", 0], conditioning=["prompt", 0]),
             "euler": node("KSamplerSelect", sampler_name="euler"),
             "sigmas": node("BasicScheduler", model=["world", 0], scheduler="normal", steps=1, denoise=1.0),
             "latent": node("EmptyLatentImage", width=64, height=64, batch_size=1),
             "content": node("FrozenRecordHSpace", noise=["noise", 0], guider=["guider", 0], sampler=["euler", 0],
                             sigmas=["sigmas", 0], latent_image=["latent", 0], deep_skips=0),
             "injected": node("FrozenInjectHSpace", model=["world", 0], trace=["content", 1], gamma=gamma, t_edit=400.0,
                              apply_to="both", norm_mode="masked", check="model", gamma_skips=0.0),
             "result": node("KSampler", model=["injected", 0], positive=["prompt", 0], negative=["prompt", 0],
                            latent_image=["latent", 0], seed=1, steps=1, cfg=1.0, sampler_name="euler",
                            scheduler="normal", denoise=1.0),
             "decode": node("VAEDecode", samples=["result", 0], vae=["world", 2]),
             "shown": node("PreviewImage", images=["decode", 0])}
    with pytest.raises(ExecutionFailed, match=f"FrozenInjectHSpace.*gamma is .*{sentence}"):
        server.submit(graph)


def test_warnings_stand_under_the_sampler_that_they_are_about(server):
    """What runs, but not as somebody wanted it: too large a picture, no motion module, a clip of one frame."""
    def sampled(model: str, width: int) -> dict:
        return {"latent": node("EmptyLatentImage", width=width, height=width, batch_size=1),
                "prompt": node("CLIPTextEncode", clip=["world", 1], text=""),
                "result": node("KSampler", model=[model, 0], positive=["prompt", 0], negative=["prompt", 0],
                               latent_image=["latent", 0], seed=1, steps=1, cfg=1.0, sampler_name="euler",
                               scheduler="normal", denoise=1.0),
                "decode": node("VAEDecode", samples=["result", 0], vae=["world", 2]),
                "shown": node("PreviewImage", images=["decode", 0])}

    def said(graph: dict) -> str:
        texts = {}
        server.submit(graph, lambda kind, data: kind == "progress_text" and texts.update({data["node"]: data["text"]}))
        return texts.get("result", "")

    world = {"world": node("FrozenLoadSpriteWorld")}
    smooth = {"smooth": node("FrozenMitigatingGradient", model=["world", 0], alpha=40.0, mode="fast", order=1,
                             start_percent=0.0, end_percent=1.0, frames_per_clip=0, locked_frames="")}
    moving = {"module": node("FrozenLoadMotionModule", motion_file=MOTION),
              "moving": node("FrozenApplyMotionModule", model=["world", 0], motion_module=["module", 0], strength=1.0,
                             frames_per_clip=0, start_percent=0.0, end_percent=1.0, beta_schedule="auto",
                             groupnorm="official")}
    assert "Warning" not in said(world | sampled("world", 128))
    both = said(world | smooth | sampled("smooth", 264))
    assert [line.partition(":")[0] for line in both.splitlines()] == ["Warning", "Warning"]
    assert "this one is 264x264" in said(world | sampled("world", 264))
    assert "no motion module" in said(world | smooth | sampled("smooth", 64))
    assert "a single frame" in said(world | moving | sampled("moving", 64))
    assert said(world | sampled("world", 72)) == "\u200b", "taken back"


@pytest.mark.parametrize("loader", ["FrozenLoadHTrace", "FrozenLoadBasis"])
def test_a_path_that_is_in_no_list_gets_its_sentence(server, loader):
    """Workflows of before the lists have paths of their own: they are looked for, not refused as no choice."""
    graph = {"loaded": node(loader, file="my/old_00001_.safetensors"),
             "kept": node("FrozenSaveHTrace" if "Trace" in loader else "FrozenSaveBasis", filename_prefix="again",
                          **{"trace" if "Trace" in loader else "basis": ["loaded", 0]})}
    with pytest.raises(ExecutionFailed, match="There is no file 'my/old_00001_.safetensors'"):
        server.submit(graph)


def test_lists_hold_the_files_of_their_kind(comfy, tmp_path, monkeypatch):
    """The newest first, by the path that the loader takes; others' files and damaged ones are not there."""
    import os

    import torch
    from safetensors.torch import save_file

    from frozen_diffusion.modules.host.files import find_file, saved_files
    for kind in ("output", "input"):
        monkeypatch.setattr(comfy.folder_paths, f"{kind}_directory", str(tmp_path / kind))
    assert saved_files("ours", "kept/example.safetensors") == ["kept/example.safetensors"]
    for age, (name, told) in enumerate([("input/b", "ours"), ("output/deep/er/a", "ours"), ("output/c", "others")]):
        path = tmp_path / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"x": torch.zeros(1)}, path, {"format": told})
        os.utime(path, (age, age))
    (tmp_path / "output" / "broken.safetensors").write_bytes(b"no header")
    (tmp_path / "output" / "linked").symlink_to(tmp_path / "output" / "deep", target_is_directory=True)
    (tmp_path / "output" / "deep" / "round").symlink_to(tmp_path / "output", target_is_directory=True)
    found = saved_files("ours", "kept/example.safetensors")
    found = [name.replace("linked/", "deep/") for name in found]        # either way, once
    assert found == ["deep/er/a.safetensors", "b.safetensors"] and all(find_file(name).is_file() for name in found)
