"""Every template of workflows/ runs in the real server and leaves the files it promises."""
import json
from urllib.request import urlopen

import av
import numpy as np
import pytest
from PIL import Image

from frozen_diffusion.modules.host.boot import PACK, find_comfyui
from testhost.server import version_of
from testhost.template_results import reduced
from testhost.templates import TEMPLATES
from testhost.templates.write import write_all
from testhost.workflow import api_graph

DEVELOPMENT = "0.3.75"          # the version of the ComfyUI that the tests fetch


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
            assert len(frames) == (40 if "long_clip" in name else 16)
            assert frames[0].shape == (128, 128, 3)
    if "video" in name or "clip" in name:
        assert any(path.suffix == ".mp4" for path in files)


def test_the_files_are_made_from_their_source(server, tmp_path):
    """workflows/*.json are what testhost.templates writes; run PYTHONPATH=tests python -m testhost.templates.

    They are written on the development host. On others, whose core nodes have other inputs and sizes, what would be
    queued is the same.
    """
    info, at_home = server.object_info(), version_of(find_comfyui()) == DEVELOPMENT
    written = {path.name: json.loads(path.read_text()) for path in write_all(tmp_path, info)}
    there = {path.name: json.loads(path.read_text()) for path in (PACK / "workflows").glob("*.json")}
    assert there.keys() == written.keys()
    for name in there:
        assert not at_home or there[name] == written[name]
        assert api_graph(there[name], info) == api_graph(written[name], info)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_host_serves_the_picture(name, server):
    """Where the page asks for it: beside the template."""
    address = f"http://{server.address}/api/workflow_templates/{server.pack_name}/{name}.jpg"
    with urlopen(address) as picture:
        assert picture.status == 200 and picture.headers["Content-Type"] == "image/jpeg"
        assert picture.read() == (PACK / "workflows" / f"{name}.jpg").read_bytes()
