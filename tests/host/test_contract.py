"""Every node of the pack: its contract with saved workflows, its texts, its help page, its templates."""
import json
from pathlib import Path

import pytest

from frozen_diffusion.modules.host.boot import PACK
from testhost import contract
from testhost.layout import leaf, node_of
from testhost.workflow import VIRTUAL, Workflow

TEMPLATES = sorted((PACK / "workflows").glob("*.json"))


@pytest.fixture(scope="module")
def now(comfy):
    """The contract as the code has it."""
    return contract.snapshot(comfy.pack)


def test_nothing_that_is_saved_breaks(now):
    """Only appends, and those written down: PYTHONPATH=tests python -m testhost.contract --update."""
    golden = contract.read_golden()
    assert list(contract.breaks(golden, now)) == []
    assert now == golden, "an append: run PYTHONPATH=tests .venv/bin/python -m testhost.contract --update"


def test_the_contract_sees_every_break():
    """A lost node, a moved, renamed, retyped or lost input, a new default, a lost choice: each is named."""
    seed = {"name": "seed", "type": "INT", "required": True, "default": 0}
    mode = {"name": "mode", "type": "COMBO", "required": True, "choices": ["a", "b"], "default": "a"}
    model = {"name": "model", "type": "MODEL", "required": True}

    def node(*inputs, outputs=({"name": "MODEL", "type": "MODEL"},)):
        return {"inputs": list(inputs), "outputs": list(outputs), "output_node": False}

    golden = {"N": node(seed, mode)}
    fine = [node(seed, mode), node(seed, mode, seed | {"name": "more"}),
            node(seed, mode, model | {"required": False}), node(seed, mode | {"choices": ["a", "b", "c"]})]
    bad = [node(mode, seed), node(seed), node(seed, mode, model), node(seed, mode, outputs=()),
           node(seed, mode | {"choices": ["a"]}),
           *(node(seed | change, mode) for change in ({"name": "noise"}, {"type": "FLOAT"}, {"default": 1}))]
    assert all(not list(contract.breaks(golden, {"N": new, "M": new})) for new in fine)
    assert all(list(contract.breaks(golden, {"N": new})) for new in bad)
    assert list(contract.breaks(golden, {})) == ["N is gone"]


def test_schemas_build_and_speak(comfy):
    """Every schema builds, is named and filed as agreed, and explains itself and each of its sockets."""
    assert comfy.pack, "the pack has no nodes"
    silent = []
    for node in comfy.pack:
        node.VALIDATE_CLASS()
        schema = node.GET_SCHEMA()
        assert schema.node_id.startswith("Frozen") and schema.category.startswith("frozen/")
        assert schema.display_name
        sockets = [*schema.inputs, *schema.outputs]
        silent += [f"{schema.node_id}.{socket.id}" for socket in sockets if not socket.tooltip]
        silent += [schema.node_id] * (not schema.description)
    assert silent == [], "a tooltip on every input and output, a description on every node"


def test_node_classes_suit_the_registry(comfy):
    """Its scanner reads the source: classes derive from io.ComfyNode directly, ids are literal."""
    for node in comfy.pack:
        assert [base.__name__ for base in node.__bases__] == ["ComfyNode"]
        source = (PACK / "nodes" / f"{node.__module__.rpartition('.')[2]}.py").read_text()
        assert f'node_id="{node.GET_SCHEMA().node_id}"' in source


def test_every_node_has_a_help_page(now):
    """nodes/web/docs/<node_id>.md exists, says what its sockets are, and none is left over."""
    pages = {page.stem: page.read_text() for page in (PACK / "nodes" / "web" / "docs").glob("*.md")}
    assert pages.keys() == now.keys()
    unnamed = [f"{node_id}.{entry['name']}" for node_id, node in now.items() for entry in node["inputs"]
               if entry["name"] not in pages[node_id]]
    assert unnamed == [], "every input is explained on the help page"


def test_help_pages_are_served(server, now):
    """The page fetches them from /extensions/<pack>/docs/."""
    from urllib.request import urlopen
    for node_id in now:
        with urlopen(f"http://{server.address}/extensions/{server.pack_name}/docs/{node_id}.md") as page:
            assert page.status == 200


def test_every_node_is_used_by_a_template(now):
    """A node that no template shows is a node that nobody finds."""
    used = {node["type"] for path in TEMPLATES for node in json.loads(path.read_text())["nodes"]}
    assert now.keys() - used == set()


def widgets_of(node: dict) -> list[str]:
    """The names of a node's widgets, in the order of their saved values. Newer hosts append to those of core nodes."""
    return [leaf(entry["name"]) for entry in node["inputs"] if "widget" in entry]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_template_is_sound(path: Path, server, now):
    """Only core nodes and ours, saved values that fit, a note that explains, and offered by the host."""
    saved = json.loads(path.read_text())
    workflow = Workflow(saved, server.object_info())
    assert workflow.missing() == []
    foreign = [kind for kind in {node["type"] for node in saved["nodes"]} - VIRTUAL - now.keys()
               if server.object_info()[kind]["python_module"].startswith("custom_nodes")]
    assert foreign == []
    assert any(node["type"] == "MarkdownNote" for node in saved["nodes"])
    for node in saved["nodes"]:
        if (kind := node["type"]) not in VIRTUAL:
            fresh = node_of("", {"class_type": kind, "inputs": {}}, server.object_info()[kind])
            assert widgets_of(node) == widgets_of(fresh)[:None if kind in now else len(widgets_of(node))], kind
            assert len(node["widgets_values"]) <= len(fresh["widgets_values"]), kind
    assert workflow.api()
    assert path.stem in server.call("/workflow_templates")[server.pack_name]
