"""What a user sees: templates open in the real page without a missing node, and a click on Run runs them."""
import json
import time

import pytest

from frozen_diffusion.modules.host.boot import PACK, find_comfyui
from testhost.browser import WORDS
from testhost.layout import ui_workflow
from testhost.server import version_of
from testhost.templates import TEMPLATES, named, reports
from testhost.workflow import api_graph

DEVELOPMENT = "0.3.75"                  # the version of the ComfyUI that the tests fetch
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


def known_inputs(graph: dict, object_info: dict) -> dict:
    """A graph without what the page adds for itself, as the text of Preview as Text."""
    listed = {name for part in object_info["PreviewAny"]["input"].values() for name in part}
    return {key: node if node["class_type"] != "PreviewAny" else {
        **node, "inputs": {name: value for name, value in node["inputs"].items() if name in listed}}
        for key, node in graph.items()}


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


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_opens_whole(name, page, server):
    """No missing node, no error on the page, and the page means the same graph as our converter.

    Note, input and result are in view, nodes have the room that they were given, wires the points around nodes, and
    every kind of report is connected to a node that previews text.
    """
    workflow = json.loads((PACK / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    source = TEMPLATES[name]()
    numbers = {key: number for number, key in enumerate(source.graph, 1)}
    page.open_template(server.pack_name, name)
    page.close_dialogs()
    assert page.missing() == [] and page.faults == []
    assert known_inputs(page.prompt(), server.object_info()) == api_graph(workflow, server.object_info())
    assert page.seen([len(numbers) + 1, numbers[source.main], numbers[source.result]], patience=100) == [True] * 3
    assert reports(source.graph)[0] <= page.reported()
    if version_of(find_comfyui()) == DEVELOPMENT:           # elsewhere core nodes have other sizes
        assert page.layout() == {str(node["id"]): pytest.approx(node["size"], abs=1) for node in workflow["nodes"]}
    assert page.reroutes() == len(workflow["extra"].get("reroutes", ()))


def test_what_lies_out_of_sight_is_not_seen(page, server):
    """Below the minimap, and outside of the window."""
    workflow = ui_workflow(PICTURE, server.object_info())
    for node, place in zip(workflow["nodes"], ([300, 300], [1450, 700], [5000, 300]), strict=False):
        node["pos"] = place
    workflow["extra"] = {"ds": {"scale": 1, "offset": [0, 0]}}
    page.open()
    page.load(workflow)
    page.tab.wait_for_function("() => window.app.canvas.ds.scale === 1")
    assert page.seen([1], patience=100) == [True]           # else the page is still moving, or a dialog is over it
    assert page.seen([1, 2, 3]) == [True, False, False]


def test_the_template_browser_shows_pictures(page, server):
    """Each template's own, not the page's stand-in."""
    page.open()
    assert page.thumbnails(server.pack_name, list(TEMPLATES)) == dict.fromkeys(TEMPLATES, [512, 512])


def test_an_artists_words_find_nodes(page, server):
    page.open()
    found = page.searched(server.pack_name, WORDS)
    assert [word for word, nodes in found.items() if not nodes] == []


def test_reports_stand_on_the_page(page, server):
    """Under their nodes, where the page draws no PreviewText, and in Preview as Text."""
    graph = {"clip": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 32, "batch_size": 4, "color": 9}},
             "report": {"class_type": "FrozenClipReport", "inputs": {"frames": ["clip", 0]}},
             "module": {"class_type": "FrozenLoadMotionModule",
                        "inputs": {"motion_file": "frozen-diffusion/sprite_motion.safetensors"}},
             "shown": {"class_type": "PreviewAny", "inputs": {"source": ["module", 1]}}}
    page.open()
    page.load(ui_workflow(graph, server.object_info()))
    known = set(server.call("/history"))
    page.run()
    assert finished(server, known)["status"]["status_str"] == "success"
    page.tab.wait_for_function("() => window.app.graph.nodes.filter(node => node.widgets?.some("
                               "widget => widget.name === '$$node-text-preview' && widget.value)).length === 2",
                               timeout=10_000)
    texts = page.shown_texts()
    assert "flicker" in texts["2"] and "beta schedule" in texts["3"] and texts["4"] == texts["3"]
    assert "flicker" in page.tab.locator("#app, body").first.inner_text(), "drawn, not only known"


def test_a_clip_moves_in_its_node(page, server):
    """Frame Sheet's moving form: the page's own preview plays it, without a click."""
    plate = {"width": 64, "height": 64, "batch_size": 1}
    graph = {"red": {"class_type": "EmptyImage", "inputs": {**plate, "color": 0xFF0000}},
             "blue": {"class_type": "EmptyImage", "inputs": {**plate, "color": 255}},
             "clip": {"class_type": "ImageBatch", "inputs": {"image1": ["red", 0], "image2": ["blue", 0]}},
             "sheet": {"class_type": "FrozenFrameSheet",
                       "inputs": {"frames": ["clip", 0], "show": "moving", "fps": 4.0}}}
    page.open()
    page.load(ui_workflow(graph, server.object_info()))
    known = set(server.call("/history"))
    page.run()
    assert finished(server, known)["status"]["status_str"] == "success"
    picture = page.tab.locator("img[src*='frozen_moving']").first
    picture.wait_for(timeout=10_000)
    seen = set()
    for _ in range(20):
        seen.add(picture.screenshot())
        page.tab.wait_for_timeout(130)
    assert len(seen) > 1


def test_missing_models_are_offered(page, server):
    """Opening the template for the user's own files shows what to fetch, with its folder."""
    page.open_template(server.pack_name, named("animatediff_own_checkpoint"))
    dialog = page.tab.locator(".comfy-missing-models")
    dialog.wait_for(timeout=10_000)
    for models in TEMPLATES[named("animatediff_own_checkpoint")]().models.values():
        for model in models:
            assert f"{model['directory']} / {model['name']}" in dialog.inner_text()
    assert "Only allowed" not in dialog.inner_text() and "Invalid directory" not in dialog.inner_text()


def test_template_runs_by_clicking(page, server):
    """Open a template, click Run, get a picture."""
    page.open_template(server.pack_name, CLICKED)
    known = set(server.call("/history"))
    page.run()
    entry = finished(server, known)
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"]
    assert all(file.is_file() for file in server.files(entry["outputs"]))
