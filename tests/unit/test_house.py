"""The house: the package, what importing it costs, and the rules that every file keeps."""
import ast
import asyncio
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tomllib

from testhost import house
from testhost.layout import columns, ui_workflow
from testhost.workflow import Workflow, api_graph, widget_values

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
HEAVY = ("diffusers", "accelerate", "matplotlib", "av", "scipy", "transformers", "torchvision")
SOURCES = house.SOURCES
# may print
COMMAND_LINE = {"modules/cli.py", "modules/demo_training/parts.py", "modules/demo_training/guide.py",
                "modules/demo_training/customize.py",
                "modules/host/train_command.py", "modules/host/motion/train_command.py",
                "modules/host/guide/train_command.py", "modules/host/customize/train_command.py",
                "modules/host/metrics/metrics_command.py", "modules/host/furrygan/train_command.py"}
HOST_MODULES = {"comfy", "comfy_extras", "folder_paths", "execution", "server"}


def test_packages_are_listed():
    """The wheel holds every package of the tree: the list in pyproject.toml is complete and holds no more."""
    there = {"frozen_diffusion"} | {
        ".".join(("frozen_diffusion", *path.parent.relative_to(ROOT).parts))
        for path in SOURCES if path.name == "__init__.py"}
    assert set(SETTINGS["tool"]["setuptools"]["packages"]) == there


def test_every_folder_of_code_is_a_package():
    """A folder without __init__.py would be missing from the wheel."""
    assert [str(path) for path in SOURCES if not (path.parent / "__init__.py").exists()] == []


def test_every_node_file_is_listed():
    """A node file that nodes/__init__.py does not name would be silently absent."""
    tree = ast.parse((ROOT / "nodes" / "__init__.py").read_text())
    listed = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1
              for alias in node.names}
    assert {path.stem for path in (ROOT / "nodes").glob("[!_]*.py")} == listed


def test_nothing_disturbs_the_users_torch():
    """The pack asks for nothing that could replace what the host brings."""
    assert sorted(SETTINGS["project"]["dependencies"]) == ["einops", "numpy", "safetensors"]
    assert set(SETTINGS["project"]["optional-dependencies"]) == {"train", "metrics", "dev"}


def test_the_host_is_told_who_we_are():
    """What the Comfy Registry and ComfyUI-Manager read."""
    comfy = SETTINGS["tool"]["comfy"]
    assert comfy["PublisherId"] == "frozen-diffusion" and comfy["DisplayName"] == "Frozen Diffusion"
    assert comfy["requires-comfyui"] == ">=0.3.75"
    assert (ROOT / comfy["Icon"].partition("/main/")[2]).is_file()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rules_of_the_house(path):
    """Readable size, relative imports, no printing outside command-line code, nothing left undone."""
    text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
    tree = ast.parse(text)
    assert text.count("\n") <= 400
    if name not in COMMAND_LINE:
        calls = [node.func.id for node in ast.walk(tree)
                 if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        assert not {"print", "eval", "exec"} & set(calls)
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module or "" for node in ast.walk(tree)
                 if isinstance(node, ast.ImportFrom) and node.level == 0]
    roots = {module.partition(".")[0] for module in imported}
    assert not roots & {"frozen_diffusion", "nodes", "modules"}, "inside the pack imports are relative"
    if not name.startswith("modules/host/"):
        assert not roots & HOST_MODULES, "only modules/host touches the host"
    assert not re.search(r"\b(TODO|FIXME|XXX|NotImplementedError)\b", text)
    assert not (name.startswith("nodes/") and re.search("[\U0001F300-\U0001FAFF]", text)), "no emoji"


def test_rooms_keep_to_themselves():
    """No method's room imports another's, arrows run down only, and every room has its floor."""
    assert {room for arrow in house.arrows() for room in arrow[1:]} <= house.FLOOR.keys()
    assert house.rooms_crossed() == [] and house.upward_arrows() == []


def test_what_is_declared_is_used():
    """And what is used is declared, but for what ComfyUI itself asks for."""
    assert house.unused_dependencies() == []


def test_words_are_those_of_the_field():
    """The glossary of names that the house once used for itself: none is left in code, texts and help."""
    assert house.words() == []


def test_the_house_sees_what_is_wrong(tmp_path, monkeypatch):
    """Planted: a room that takes from another's, a kernel that takes from a method, words of the house."""
    wrong = {"modules/motion/borrowing.py": "from ..hspace.trace import HTrace\n",
             "modules/host/kernel.py": "def f():\n    from .basis.edit import edit\n",
             "modules/hspace/trace.py": "def look(places):\n    \"\"\"The identity at\n    birth.\"\"\"\n",
             "modules/host/basis/edit.py": "FEW = 3\n"}
    for name, text in wrong.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(house, "ROOT", tmp_path)
    monkeypatch.setattr(house, "SOURCES", sorted(tmp_path.rglob("*.py")))
    assert house.rooms_crossed() == ["modules/motion/borrowing.py imports from hspace"]
    assert house.upward_arrows() == ["modules/host/kernel.py imports from host/basis"]
    assert len(house.words()) == 3 and house.largest_file() == (3, "modules/hspace/trace.py")


def test_importing_the_pack_is_light():
    """In a running host the pack's import pulls in nothing heavy that the host has not imported itself."""
    probe = f"""
import asyncio, json, sys
from frozen_diffusion.modules.host.boot import boot_comfyui
boot_comfyui()
import nodes, comfy_api.latest
before = set(sys.modules)
import frozen_diffusion
assert frozen_diffusion.WEB_DIRECTORY
assert not [name for name in sys.modules if name.startswith('frozen_diffusion.nodes')]
extension = asyncio.run(frozen_diffusion.comfy_entrypoint())
asyncio.run(extension.get_node_list())
new = set(sys.modules) - before
print(json.dumps(sorted(name for name in {HEAVY!r} if name in new)))
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_the_entry_point_is_all_the_host_gets():
    """An old-style mapping, even an empty one, would make the host ignore the entry point."""
    import frozen_diffusion
    assert not hasattr(frozen_diffusion, "NODE_CLASS_MAPPINGS")
    assert asyncio.iscoroutinefunction(frozen_diffusion.comfy_entrypoint)


def schema(name: str, required: dict, outputs=("IMAGE",), optional: dict | None = None) -> dict:
    """A node's entry of /object_info."""
    inputs = {"required": required, "optional": optional or {}}
    return {"name": name, "input": inputs, "input_order": {part: list(inputs[part]) for part in inputs},
            "output": list(outputs), "output_name": list(outputs)}


NOISE = ["INT", {"default": 0, "control_after_generate": True}]
INFO = {
    "Make": schema("Make", {"seed": NOISE, "text": ["STRING", {"default": "", "multiline": True}]}),
    "Blur": schema("Blur", {"image": ["IMAGE"], "radius": ["FLOAT", {"default": 1.0}]}),
    "Mix": schema("Mix", {"a": ["IMAGE"], "mode": [["add", "mean"]]}, optional={"b": ["IMAGE"]}),
    "Show": schema("Show", {"images": ["IMAGE"]}, outputs=()),
}
GRAPH = {
    "one": {"class_type": "Make", "inputs": {"seed": 7, "text": "a fox"}},
    "two": {"class_type": "Make", "inputs": {"seed": 8, "text": "a dog"}},
    "soft": {"class_type": "Blur", "inputs": {"image": ["one", 0], "radius": 2.0}},
    "both": {"class_type": "Mix", "inputs": {"a": ["soft", 0], "mode": "mean", "b": ["two", 0]}},
    "end": {"class_type": "Show", "inputs": {"images": ["both", 0]}},
}


def test_workflow_there_and_back():
    """What is laid out for the page means the same graph again."""
    numbers = {key: str(number) for number, key in enumerate(GRAPH, 1)}
    expected = {numbers[key]: {"class_type": node["class_type"], "inputs": {
        name: [numbers[value[0]], value[1]] if isinstance(value, list) else value
        for name, value in node["inputs"].items()}} for key, node in GRAPH.items()}
    assert api_graph(ui_workflow(GRAPH, INFO, notes=["# Hello"]), INFO) == expected


def test_layout_is_tidy():
    """Left to right along the links, a source just before its reader, and no two nodes on one another."""
    assert columns(GRAPH) == {"one": 0, "two": 1, "soft": 1, "both": 2, "end": 3}
    workflow = ui_workflow(GRAPH, INFO, notes=["# One", "# Two"])
    boxes = [(*node["pos"], *node["size"]) for node in workflow["nodes"]]
    for index, (x, y, width, height) in enumerate(boxes):
        for other_x, other_y, other_width, other_height in boxes[:index]:
            apart = x >= other_x + other_width or other_x >= x + width
            assert apart or y >= other_y + other_height or other_y >= y + height
    with pytest.raises(ValueError, match="cycle"):
        columns({"a": {"inputs": {"x": ["b", 0]}}, "b": {"inputs": {"x": ["a", 0]}}})
    with pytest.raises(ValueError, match="Nope"):
        ui_workflow({"a": {"class_type": "Nope", "inputs": {}}}, INFO)
    with pytest.raises(ValueError, match="colour"):
        ui_workflow({"a": {"class_type": "Make", "inputs": {"colour": 1}}}, INFO)


def test_muted_bypassed_rerouted():
    """Bypassed nodes hand their input on, muted ones nothing, reroutes and primitives are seen through."""
    workflow = ui_workflow(GRAPH, INFO, bypassed=["soft"])
    graph = api_graph(workflow, INFO)
    assert "3" not in graph and graph["4"]["inputs"]["a"] == ["1", 0]
    workflow["nodes"][1]["mode"] = 2
    assert "b" not in api_graph(workflow, INFO)["4"]["inputs"]

    workflow = ui_workflow(GRAPH, INFO)
    link = workflow["nodes"][4]["inputs"][0]["link"]
    workflow["nodes"] += [
        {"id": 90, "type": "Reroute", "inputs": [{"name": "", "type": "*", "link": 91}], "outputs": [{}]},
        {"id": 92, "type": "PrimitiveNode", "inputs": [], "outputs": [{}], "widgets_values": [5, "fixed"]}]
    through = next(entry for entry in workflow["links"] if entry[0] == link)
    workflow["links"].append([91, *through[1:3], 90, 0, "IMAGE"])
    through[1:3] = [90, 0]
    seed = next(entry for entry in workflow["nodes"][0]["inputs"] if entry["name"] == "seed")
    seed["link"] = 93
    workflow["links"].append([93, 92, 0, 1, 0, "INT"])
    graph = api_graph(workflow, INFO)
    assert graph["5"]["inputs"]["images"] == ["4", 0] and graph["1"]["inputs"]["seed"] == 5


def test_saved_values_are_counted():
    """Values are matched by place; a control value is skipped, an appended input takes its default."""
    assert widget_values(INFO["Make"], [3, "randomize", "hi"]) == {"seed": 3, "text": "hi"}
    assert widget_values(INFO["Make"], [3, "randomize"]) == {"seed": 3, "text": ""}
    with pytest.raises(ValueError, match="left over"):
        widget_values(INFO["Make"], [3, "fixed", "hi", "more"])
    with pytest.raises(ValueError, match="Gone"):
        Workflow({"nodes": [{"id": 1, "type": "Gone"}], "links": []}, INFO).api()


def test_another_comfyui_gets_an_environment_of_its_own(tmp_path):
    """With all that its requirements.txt asks for but torch; the fetched ComfyUI's stays where it was."""
    install = SimpleNamespace(**runpy.run_path(str(ROOT / "tests" / "testhost" / "install.py")))
    lines = ["comfyui-frontend-package==1.49.6", "torch", "torchsde", "torchvision>=0.1 # kept", "simpleeval>=1.0.0",
             "", "#others:", "PyOpenGL"]
    (tmp_path / "requirements.txt").write_text("\n".join(lines))
    assert install.requirements_of(tmp_path) == [lines[0], "torchsde", "simpleeval>=1.0.0", "PyOpenGL"]
    assert install.environment_of(ROOT / ".comfyui") == ROOT / ".venv"
    one, two = (install.environment_of(tmp_path / name / "ComfyUI") for name in "ab")
    assert one != two and one.parent == ROOT and one.name.startswith(".venv-ComfyUI-")


def test_a_choice_brings_its_own_inputs():
    """A dynamic combo's values are saved in the order in which the page shows them, and sent under dotted names."""
    quality = {"required": {"crf": ["INT", {"default": 23}], "video": ["VIDEO"]}}
    codec = ["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "auto", "inputs": {"required": {}}},
                                                   {"key": "h264", "inputs": quality}]}]
    kind = ["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "gif", "inputs": {"optional": {"loop": ["BOOLEAN", {}]}}},
                                                  {"key": "mp4", "inputs": {"required": {"codec": codec}}}]}]
    save = schema("Save", {"images": ["IMAGE"], "format": kind, "name": ["STRING", {"default": "clip"}]}, outputs=())
    assert widget_values(save, ["mp4", "h264", 30, "dog"]) == {
        "format": "mp4", "format.codec": "h264", "format.codec.crf": 30, "name": "dog"}
    assert widget_values(save, ["mp4"]) == {"format": "mp4", "format.codec": "auto", "name": "clip"}
    assert widget_values(save, ["gif", True]) == {"format": "gif", "format.loop": True, "name": "clip"}
    with pytest.raises(ValueError, match="format is 'avi', but its choices are gif, mp4"):
        widget_values(save, ["avi"])
    graph = {"make": GRAPH["one"], "save": {"class_type": "Save", "inputs": {
        "images": ["make", 0], "format": "mp4", "codec": "h264", "name": "dog"}}}      # named as on an older host
    info = INFO | {"Save": save}
    assert api_graph(ui_workflow(graph, info), info)["2"]["inputs"] == {
        "images": ["1", 0], "format": "mp4", "format.codec": "h264", "format.codec.crf": 23, "name": "dog"}


def test_benchmarks_are_found_by_name(tmp_path, monkeypatch, capsys):
    """`bench some-name` runs tests/bench/some_name.py and ends with one JSON object."""
    from frozen_diffusion.modules import cli
    (tmp_path / "some_name.py").write_text("from __future__ import annotations\nimport dataclasses\n"
                                           "@dataclasses.dataclass\nclass Kept:\n    x: float\n"
                                           "def run():\n    print('working')\n"
                                           "    return {'figures': {'x': 1.5}, 'context': {'seed': 3}}\n")
    monkeypatch.setattr(cli, "BENCHES", tmp_path)
    monkeypatch.setattr(cli, "boot_comfyui", lambda: None)
    assert cli.main(["bench", "some-name"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["name"] == "some-name" and last["figures"] == {"x": 1.5} and last["context"]["seed"] == 3
    assert {"machine", "versions", "seconds"} <= last["context"].keys()
    with pytest.raises(SystemExit, match="some-name"):
        cli.main(["bench", "other"])
