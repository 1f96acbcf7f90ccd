"""Every template of workflows/ runs in the real server and leaves the files it promises."""
import json

import av
import numpy as np
import pytest
from PIL import Image

from frozen_diffusion.modules.host.boot import PACK
from testhost.templates import TEMPLATES, write_all
from testhost.workflow import api_graph

MOTION = "frozen-diffusion/sprite_motion.safetensors"


def ready(name: str, object_info: dict) -> dict:
    """The template's graph as the page would queue it; small where only time is saved."""
    graph = api_graph(json.loads((PACK / "workflows" / f"{name}.json").read_text()), object_info)
    for node in graph.values():
        inputs = node["inputs"]
        match node["class_type"]:
            case "CheckpointLoaderSimple":      # a stand-in for the user's own checkpoint: the one exchange it takes
                node |= {"class_type": "FrozenLoadSpriteWorld", "inputs": {}}
            case "FrozenLoadMotionModule":
                if not inputs["motion_file"].startswith("frozen-diffusion/"):
                    inputs["motion_file"] = MOTION
            case "EmptyLatentImage":
                inputs |= {"width": 128, "height": 128}
            case "KSampler" | "BasicScheduler":
                inputs["steps"] = min(inputs["steps"], 6)
            case "FrozenInvertDDIM" | "FrozenCalibrateTimesteps":
                inputs["steps"] = 6
            case "SplitSigmas":
                inputs["step"] = 2
            case "FrozenEditAlongBasis":
                inputs |= {"count": 3, "steps": 2}
            case "FrozenComputeLatentBasis":
                inputs["rank"] = 2
            case "FrozenClipDataset":
                inputs["max_clips"] = 4
            case "FrozenTrainMotionModule":
                inputs |= {"steps": 2, "sample_every": 0, "trs_from": 0, "dc": 0.0}     # four clips are too few for DC
    return graph


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_template_runs(name, server):
    files = server.files(server.submit(ready(name, server.object_info()), seconds=600))
    assert files
    for path in files:
        if path.suffix == ".png":
            assert np.asarray(Image.open(path)).std() > 3, "a picture of one colour"
        elif path.suffix == ".mp4":
            with av.open(str(path)) as video:
                frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
            assert len(frames) == (40 if name.startswith("long_clip") else 16)
            assert frames[0].shape == (128, 128, 3)
    if "video" in name or "clip" in name:
        assert any(path.suffix == ".mp4" for path in files)


def test_the_files_are_made_from_their_source(server, tmp_path):
    """workflows/*.json are what testhost.templates writes; run PYTHONPATH=tests python -m testhost.templates.

    They are written on the development host. Where core nodes have gained inputs, what would be queued is the same.
    """
    info = server.object_info()
    written = {path.name: json.loads(path.read_text()) for path in write_all(tmp_path, info)}
    there = {path.name: json.loads(path.read_text()) for path in (PACK / "workflows").glob("*.json")}
    assert there.keys() == written.keys()
    for name in there:
        if [names_of(node) for node in there[name]["nodes"]] == [names_of(node) for node in written[name]["nodes"]]:
            assert there[name] == written[name]
        assert api_graph(there[name], info) == api_graph(written[name], info)


def names_of(node: dict) -> list[str]:
    return [entry["name"] for entry in node["inputs"]]
