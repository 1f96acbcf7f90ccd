"""What a user sees: templates open in the real page without a missing node, and a click on Run runs them."""
import json
import time

import pytest

from frozen_diffusion.modules.host.boot import PACK
from testhost.layout import ui_workflow
from testhost.workflow import api_graph

TEMPLATES = sorted((PACK / "workflows").glob("*.json"))
CLICKED = "01_text_to_image"               # the template that is run by clicking: the quickest
PICTURE = {
    "blank": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 32, "batch_size": 1, "color": 9}},
    "noisy": {"class_type": "ImageSharpen", "inputs": {"image": ["blank", 0], "alpha": 0.5}},
    "seed": {"class_type": "RandomNoise", "inputs": {"noise_seed": 7}},
    "shown": {"class_type": "PreviewImage", "inputs": {"images": ["noisy", 0]}},
    "saved": {"class_type": "SaveImage", "inputs": {"images": ["blank", 0], "filename_prefix": "clicked"}},
}


def finished(server, known: set[str], seconds: float = 240) -> dict:
    """The next history entry that is not in `known`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        fresh = [entry for key, entry in server.call("/history").items() if key not in known]
        if fresh:
            return fresh[0]
        time.sleep(0.3)
    raise TimeoutError(f"nothing ran within {seconds} s after the click")


def test_laid_out_graph_opens_and_runs_by_clicking(page, server):
    """Our layout is what the page itself saves: it opens whole, means the same graph, and runs."""
    workflow = ui_workflow(PICTURE, server.object_info(), notes=["## A picture\nPress **Run**."],
                           stages=[[{"1 Make": ["blank", "noisy", "seed"], "2 See": ["shown", "saved"]}]],
                           titles={"saved": "The end"},
                           bypassed=["noisy"])
    page.open()
    page.load(workflow)
    assert page.missing() == []
    assert page.prompt() == api_graph(workflow, server.object_info())
    known = set(server.call("/history"))
    page.run()
    assert finished(server, known)["status"]["status_str"] == "success"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_template_opens_whole(path, page, server):
    """No missing node, no error on the page, and the page means the same graph as our converter."""
    page.open_template(server.pack_name, path.stem)
    assert page.missing() == [] and page.faults == []
    assert page.prompt() == api_graph(json.loads(path.read_text()), server.object_info())


@pytest.mark.skipif(CLICKED not in {path.stem for path in TEMPLATES}, reason=f"no template {CLICKED}")
def test_template_runs_by_clicking(page, server):
    """Open a template, click Run, get a picture."""
    page.open_template(server.pack_name, CLICKED)
    known = set(server.call("/history"))
    page.run()
    entry = finished(server, known)
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"]
    assert all(file.is_file() for file in server.files(entry["outputs"]))
