"""What nodes tell the page: a report stands under its node and in the history."""
import sys
from types import SimpleNamespace

from comfy_api.latest import io

from frozen_diffusion.modules.host import progress

REPORTS = {"report", "text", "path"}         # outputs that a person is meant to read
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
    """A node with a report asks for its own id, without which nothing can be drawn under it."""
    nodes = [one.GET_SCHEMA() for one in comfy.pack]
    telling = [schema for schema in nodes
               if REPORTS & {name for output in schema.outputs for name in (output.id, output.display_name)}]
    assert len(telling) >= 13
    assert [schema.node_id for schema in telling if io.Hidden.unique_id not in (schema.hidden or ())] == []


def test_files_cannot_write_markup_into_the_page(comfy, monkeypatch):
    """The page takes progress text for HTML, and a report quotes what a file says of itself."""
    sent = []
    instance = SimpleNamespace(send_progress_text=lambda text, node_id: sent.append((text, node_id)))
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=instance)))
    assert progress.show_text("a <img src=x> & 1 < 2", "7").as_dict() == {"text": ("a <img src=x> & 1 < 2",)}
    assert sent == [("a <\u200bimg src=x> & 1 <\u200b 2", "7")]
