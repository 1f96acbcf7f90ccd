"""What every template of workflows/ looks like: note, stages, titles, wires, opening view, reports, files to fetch."""
import json
import re
from itertools import combinations

import pytest
import tomllib
from PIL import Image

from frozen_diffusion.modules.host.boot import PACK
from testhost import view, wires
from testhost.templates import TEMPLATES, reports
from testhost.templates.write import titles_of

NOTES = {"MarkdownNote"}
LINES = re.compile(r"## What it does: .{20,}\n\n## What to change: .{20,}\n\n## How long: .+ on a CPU\.\n\n")
OWN_FILES = {"FrozenLoadCLIPPair": "clip_vision", "FrozenLoadMotionLoRA": "animatediff_motion_lora",
             "CheckpointLoaderSimple": "checkpoints", "FrozenLoadMotionModule": "animatediff_models"}
EMBEDDED = "frozen-diffusion/"
HOSTS = "https://huggingface.co/"


@pytest.fixture(params=list(TEMPLATES), scope="module")
def template(request):
    """A template's source and its file."""
    path = PACK / "workflows" / f"{request.param}.json"
    return TEMPLATES[request.param](), json.loads(path.read_text(encoding="utf-8"))


def nodes_of(workflow: dict) -> list[dict]:
    return [node for node in workflow["nodes"] if node["type"] not in NOTES]


def called(node: dict) -> str:
    return node.get("title", node["type"])


def test_the_note_begins_with_its_three_lines(template):
    note = next(node for node in template[1]["nodes"] if node["type"] in NOTES)
    assert LINES.match(note["widgets_values"][0])
    assert "second **Run** does nothing until" in note["widgets_values"][0]


def test_every_node_stands_in_one_numbered_stage(template):
    groups = template[1]["groups"]
    numbers = [int(group["title"].split()[0]) for group in groups]
    assert sorted(numbers) == list(range(1, len(groups) + 1))
    for node in nodes_of(template[1]):
        around = [group for group in groups for left, top, wide, high in (group["bounding"],)
                  if left <= node["pos"][0] and node["pos"][0] + node["size"][0] <= left + wide
                  and top <= node["pos"][1] and node["pos"][1] + node["size"][1] <= top + high]
        assert len(around) == 1, called(node)


def test_titles_tell_nodes_apart(template):
    titles = [called(node) for node in nodes_of(template[1])]
    assert len(titles) == len(set(titles))
    prompts = [called(node) for node in template[1]["nodes"] if node["type"] == "CLIPTextEncode"]
    assert all("rompt" in title for title in prompts)


def test_nothing_lies_over_or_behind_anything(template):
    """Nodes, notes and stages keep apart, and no wire runs behind a node."""
    boxes = wires.rectangles(template[1]["nodes"])
    for a, b in combinations(range(len(boxes)), 2):
        apart = (boxes[a, :2] >= boxes[b, 2:]).any() or (boxes[b, :2] >= boxes[a, 2:]).any()
        assert apart, (called(template[1]["nodes"][a]), called(template[1]["nodes"][b]))
    for a, b in combinations([group["bounding"] for group in template[1]["groups"]], 2):
        assert any(a[axis] + a[axis + 2] <= b[axis] or b[axis] + b[axis + 2] <= a[axis] for axis in (0, 1))
    assert wires.crossings(template[1]) == []


def test_the_opening_view_shows_note_input_and_result(template):
    source, workflow = template
    numbers = dict(zip(source.graph, range(1, len(source.graph) + 1), strict=True))
    shown = {numbers[source.main], numbers[source.result], len(numbers) + 1}
    for node in workflow["nodes"]:
        if node["id"] in shown:
            assert view.is_seen(view.box_of([node]), **workflow["extra"]["ds"]), called(node)
    assert view.ZOOMS[0] <= workflow["extra"]["ds"]["scale"] <= view.ZOOMS[1]


def test_reports_that_matter_are_shown_as_text(template):
    """Of every kind of node with a report, one is connected to Preview as Text."""
    wanted, shown = reports(template[0].graph)
    assert wanted <= shown


def test_files_that_a_person_needs_can_be_fetched(template):
    """The page offers what `properties.models` names, .safetensors only; the note links it."""
    text = "".join(node["widgets_values"][0] for node in template[1]["nodes"] if node["type"] in NOTES)
    for node in template[1]["nodes"]:
        folder = OWN_FILES.get(node["type"])
        if folder and not node["widgets_values"][0].startswith(EMBEDDED):
            model, = node["properties"]["models"]
            assert model["name"] == node["widgets_values"][0] and model["name"].endswith(".safetensors")
            assert model["directory"] == folder and model["url"].startswith(HOSTS)
            assert model["url"].endswith("/" + model["name"])
            assert model["url"] in text and f"`models/{folder}`" in text
        else:
            assert "models" not in node["properties"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_has_a_picture(name):
    """Square, sharp enough for the template browser, small enough for a repository."""
    path = PACK / "workflows" / f"{name}.jpg"
    with Image.open(path) as picture:
        assert picture.format == "JPEG" and picture.width == picture.height >= 384
        assert picture.convert("L").getextrema()[1] > 100 and len(set(picture.resize((32, 32)).getdata())) > 50
    assert path.stat().st_size <= 60_000


def test_pictures_are_shipped_and_none_is_left_over():
    """In the wheel, in the registry's archive; one for each template."""
    files = tomllib.loads((PACK / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]
    assert {"workflows/*.json", "workflows/*.jpg"} <= set(files["frozen_diffusion"])
    ignored = (PACK / ".comfyignore").read_text(encoding="utf-8")
    assert "workflows" not in ignored and "jpg" not in ignored
    assert {path.stem for path in (PACK / "workflows").glob("*.jpg")} == set(TEMPLATES)


def test_two_nodes_of_one_name_are_refused():
    source = TEMPLATES["01_text_to_image"]()
    source.graph["other"] = source.graph["save"]
    names = {node["class_type"]: {"display_name": node["class_type"]} for node in source.graph.values()}
    titles = titles_of(source, names)
    assert titles["positive"] == "Prompt" and titles["other"] == "SaveImage: other"
    source.graph["save report"] = source.graph["save"]
    with pytest.raises(ValueError, match="two nodes are called SaveImage: save"):
        titles_of(source, names)
