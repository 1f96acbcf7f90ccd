"""Every template of workflows/ runs in the real server and leaves the files it promises."""
import json

import av
import numpy as np
import pytest
from PIL import Image

from frozen_diffusion.modules.host.boot import PACK
from testhost.template_results import reduced
from testhost.templates import TEMPLATES, write_all
from testhost.workflow import api_graph


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_template_runs(name, server):
    files = server.files(server.submit(reduced(name, server.object_info()), seconds=600))
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
