"""From a compact API graph to a tidy workflow that opens in the page (UI format): how templates are written.

    graph = {"world": {"class_type": "FrozenLoadSpriteWorld", "inputs": {}},
             "prompt": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["world", 1], "text": "a fox"}}}
    workflow = ui_workflow(graph, server.object_info(), notes=["## Text to image\nPress Run."])
"""
from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from .view import opening_view
from .wires import route
from .workflow import BYPASSED, default_of, extra_values, inputs_of, is_widget

TITLE, SLOT, WIDGET, GAP = 30, 20, 24, 40       # heights on the page, in its pixels
WIDE, NARROW, TEXT, PICTURE, REPORT = 350, 250, 100, 240, 90
COLUMN_GAP = 52
GROUP_GAP, GROUP_EDGE, GROUP_TITLE = 40, 15, 45
SHOWING = {"PreviewImage", "SaveImage", "SaveVideo", "SaveAnimatedWEBP", "SaveAnimatedPNG", "LoadImage",
           "FrozenFrameSheet", "FrozenClipReport", "FrozenHSpaceGrid", "FrozenTrainMotionModule", "LossGraphNode"}
NOTE_WIDE = 420
LETTERS = {"## ": (44, 19), "### ": (60, 15), "": (68, 13)}     # a note's text: letters in a line, its height
NOTE_COLOURS = {"color": "#432", "bgcolor": "#653"}


def linked(graph: Mapping, value) -> bool:
    """Whether an input's value is a link ["node", slot] of this graph."""
    return isinstance(value, (list, tuple)) and len(value) == 2 and value[0] in graph


def columns(graph: Mapping) -> dict[str, int]:
    """The column of every node: the longest way from a source; a source stands before its first reader."""
    parents = {key: [value[0] for value in node["inputs"].values() if linked(graph, value)]
               for key, node in graph.items()}
    depth: dict[str, int] = {}

    def visit(key: str, trail: tuple[str, ...] = ()) -> int:
        if key in trail:
            raise ValueError(f"the graph has a cycle: {' -> '.join([*trail, key])}")
        if key not in depth:
            depth[key] = max((visit(parent, (*trail, key)) + 1 for parent in parents[key]), default=0)
        return depth[key]

    for key in graph:
        visit(key)
    for key in graph:
        readers = [depth[other] for other in graph if key in parents[other]]
        if not parents[key] and readers:
            depth[key] = min(readers) - 1
    return depth


def leaf(name: str) -> str:
    """An input's name without that of the dynamic combo which newer hosts have put it under."""
    return name.rpartition(".")[2]


def node_of(key: str, node: Mapping, schema: Mapping) -> dict:
    """One node of the page, still without place and links."""
    sockets, widgets, values, long_texts, choices = [], [], [], 0, {}
    for name, kind, options in inputs_of(schema, choices):
        entry = {"name": name, "type": kind, "link": None}
        optional = name in schema["input"].get("optional", {})
        if not is_widget(kind, options):
            sockets.append(entry | ({"shape": 7} if optional else {}))
            continue
        widgets.append(entry | {"widget": {"name": name}})
        given = node["inputs"].get(name, node["inputs"].get(leaf(name)))
        unset = given is None or isinstance(given, (list, tuple))
        choices[name] = default_of(kind, options) if unset else given
        values.append(choices[name])
        values += extra_values(name, kind, options)
        long_texts += bool(options.get("multiline"))
    names = {entry["name"] for entry in sockets + widgets}
    unknown = node["inputs"].keys() - names - set(map(leaf, names))
    if unknown:
        raise ValueError(f"{node['class_type']} ({key}) has no input {', '.join(sorted(unknown))}")
    outputs = [{"name": name, "type": kind, "links": [], "slot_index": slot}
               for slot, (name, kind) in enumerate(zip(schema["output_name"], schema["output"], strict=True))]
    reports = "unique_id" in schema["input"].get("hidden", {})
    height = (SLOT * max(len(sockets), len(outputs)) + WIDGET * len(values) + TEXT * long_texts + 16 + REPORT * reports
              + PICTURE * (node["class_type"] in SHOWING) + TEXT * (node["class_type"] == "PreviewAny"))
    ours = node["class_type"].startswith("Frozen")
    return {
        "type": node["class_type"], "size": [WIDE if long_texts else NARROW, max(height, 46)], "flags": {},
        "mode": 0, "inputs": sockets + widgets, "outputs": outputs,
        "properties": {"cnr_id": "frozen-diffusion" if ours else "comfy-core",
                       "Node name for S&R": node["class_type"]},
        "widgets_values": values,
    }


def place(graph: Mapping, nodes: Mapping[str, dict], members: Sequence[str], left: float, top: float) -> None:
    """Give some nodes their `pos`: columns by depth, each column in the order of the rows that feed it."""
    part = {key: graph[key] for key in members}
    depth, row, x = columns(part), {}, left
    for column in range(max(depth.values(), default=-1) + 1):
        def feeders(key: str) -> float:
            rows = [row[value[0]] for value in part[key]["inputs"].values() if linked(part, value) and value[0] in row]
            return sum(rows) / len(rows) if rows else 0.0

        y, wide = top, 0
        for key in sorted((key for key in part if depth[key] == column), key=feeders):
            nodes[key]["pos"] = [x, y]
            row[key] = y
            y += nodes[key]["size"][1] + TITLE + GAP
            wide = max(wide, nodes[key]["size"][0])
        x += wide + COLUMN_GAP


Column = Mapping[str, Sequence[str]]            # {title of a stage: keys of its nodes}, from top to bottom


def place_stages(graph: Mapping, nodes: Mapping[str, dict], rows: Sequence[Sequence[Column]],
                 cards: Sequence[dict]) -> list[dict]:
    """Place every stage: rows of columns, the first column of the first row below the notes; returns their frames."""
    given = [key for row in rows for column in row for members in column.values() for key in members]
    if sorted(given) != sorted(graph):
        wrong = sorted({*given} ^ {*graph} | {key for key in given if given.count(key) > 1})
        raise ValueError(f"every node belongs to one stage; not so: {', '.join(wrong)}")
    begin, right = place_notes(cards, 0, 0)
    frames, top, bottom = [], 0, begin
    for row in rows:
        x = 0
        for column in row:
            y = begin if not (x or top) else top
            for title, members in column.items():
                place(graph, nodes, members, x, y)
                frames.append(frame(title, len(frames) + 1, [nodes[key] for key in members]))
                left, upper, wide, high = frames[-1]["bounding"]
                y, right = upper + high + GROUP_GAP + GROUP_TITLE + TITLE, max(right, left + wide)
            x, bottom = right + GROUP_GAP + GROUP_EDGE, max(bottom, y)
        top, right = bottom, 0
    return frames


def place_notes(cards: Sequence[dict], x: float, y: float) -> tuple[float, float]:
    """Place the notes below one another; returns where a group may begin below them, and their right edge."""
    for card in cards:
        card["pos"] = [x, y]
        y += card["size"][1] + TITLE + GAP
    return y + GROUP_TITLE, x + NOTE_WIDE


def note(text: str, number: int, title: str) -> dict:
    """A MarkdownNote of the page, as high as its text, still without place."""
    height = 40
    for line in text.splitlines():
        letters, high = next(size for mark, size in LETTERS.items() if line.startswith(mark))
        height += high * (1 + len(line) // letters) + 5
    return {"id": number, "type": "MarkdownNote", "size": [NOTE_WIDE, height], "flags": {}, "order": 0, "mode": 0,
            "inputs": [], "outputs": [], "title": title, "properties": {}, "widgets_values": [text], **NOTE_COLOURS}


def frame(title: str, number: int, members: Sequence[dict]) -> dict:
    """A titled group around some nodes."""
    left, top = (min(node["pos"][axis] for node in members) for axis in (0, 1))
    right, bottom = (max(node["pos"][axis] + node["size"][axis] for node in members) for axis in (0, 1))
    return {"id": number, "title": title, "color": "#3f789e", "font_size": 24, "flags": {},
            "bounding": [left - GROUP_EDGE, top - TITLE - GROUP_TITLE, right - left + 2 * GROUP_EDGE,
                         bottom - top + TITLE + GROUP_TITLE + GROUP_EDGE]}


def ui_workflow(graph: Mapping[str, Mapping], object_info: Mapping, *, notes: Sequence[str] = (),
                titles: Mapping[str, str] | None = None, stages: Sequence[Sequence[Column]] = (),
                wanted: Sequence[str] = (), extras: Mapping[str, Mapping] | None = None,
                bypassed: Sequence[str] = ()) -> dict:
    """A workflow in UI format that holds `graph`, laid out from left to right.

    `notes` are Markdown texts put to the left, `titles` renames nodes. `stages` are rows of columns of groups, each a
    title and the nodes in its frame; the first column stands below the notes, and if there are any, every node is in
    one. The opening view shows the first note and the nodes `wanted`. `extras` are further entries of a node (colours,
    size, properties); nodes `bypassed` are drawn but not run. Keys of `graph` may be any words; the page's numbers
    follow their order.
    Raises ValueError on an unknown node, input or link, a node without a stage, or what would not be seen.
    """
    unknown = sorted({node["class_type"] for node in graph.values()} - object_info.keys())
    if unknown:
        raise ValueError(f"node types that this ComfyUI does not know: {', '.join(unknown)}")
    nodes = {key: node_of(key, node, object_info[node["class_type"]]) for key, node in graph.items()}
    for number, (key, node) in enumerate(nodes.items(), 1):
        more = dict((extras or {}).get(key, {}))
        node["properties"] |= more.pop("properties", {})
        node |= {"id": number, "mode": BYPASSED if key in bypassed else 0, **more}
        if key in (titles or {}):
            node["title"] = titles[key]
    cards = [note(text, len(nodes) + number, "Read me" if number == 1 else "More")
             for number, text in enumerate(notes, 1)]
    if stages:
        frames = place_stages(graph, nodes, stages, cards)
    else:
        frames = []
        place(graph, nodes, list(graph), place_notes(cards, 0, 0)[1] + 2 * GAP if cards else 0, 0)
    depth = columns(graph)
    for order, key in enumerate(sorted(graph, key=depth.__getitem__)):
        nodes[key]["order"] = order
    links = connect(graph, nodes)
    every = [*nodes.values(), *cards]
    workflow = {
        "id": str(uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(graph, sort_keys=True))), "revision": 0,
        "last_node_id": len(every), "last_link_id": len(links), "nodes": every, "links": links, "groups": frames,
        "config": {}, "extra": {"ds": opening_view(every, frames, [*cards[:1], *(nodes[key] for key in wanted)])},
        "version": 0.4,
    }
    route(workflow)
    return workflow


def connect(graph: Mapping, nodes: Mapping[str, dict]) -> list[list]:
    """Write the links into the nodes; returns the page's list of them."""
    links: list[list] = []
    for key, node in graph.items():
        for name, value in node["inputs"].items():
            if not isinstance(value, (list, tuple)):
                continue
            if not linked(graph, value) or value[1] >= len(nodes[value[0]]["outputs"]):
                raise ValueError(f"{node['class_type']} ({key}): {name} is linked to {value}, not there")
            slot = next(i for i, entry in enumerate(nodes[key]["inputs"]) if entry["name"] == name)
            source = nodes[value[0]]
            output = source["outputs"][value[1]]
            links.append([len(links) + 1, source["id"], value[1], nodes[key]["id"], slot, output["type"]])
            nodes[key]["inputs"][slot]["link"] = len(links)
            output["links"].append(len(links))
    return links


def write_workflow(path: Path, workflow: Mapping) -> None:
    """Save a workflow as the page does."""
    Path(path).write_text(json.dumps(workflow, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
