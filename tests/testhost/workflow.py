"""From what the page saves (UI format) to what the server runs (API format), as the page itself does it."""
from __future__ import annotations

from collections.abc import Iterator, Mapping

DYNAMIC = "COMFY_DYNAMICCOMBO_V3"       # of newer hosts: each choice has inputs of its own, named with a dot
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC}
VIRTUAL = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}      # the page's own: the server has none
UPLOADS = ("image_upload", "animated_image_upload", "video_upload", "audio_upload")
MUTED, BYPASSED = 2, 4


def inputs_of(schema: Mapping, values: Mapping | None = None) -> Iterator[tuple[str, str, dict]]:
    """(name, type, options) of every input, in the page's order. A list of choices has the type COMBO.

    With `values`, the inputs of a dynamic combo's choice follow it: the choice is looked up by the combo's name after
    the combo has been yielded, so the reader may fill `values` as it goes; its first one if it is not there.
    """
    for part in ("required", "optional"):
        for name in schema.get("input_order", {}).get(part, []):
            yield from expanded(name, schema["input"][part][name], values)


def expanded(name: str, entry: list | tuple, values: Mapping | None) -> Iterator[tuple[str, str, dict]]:
    """One input, and those of its choice if it is a dynamic combo."""
    kind, options = (*entry, {})[:2]
    if isinstance(kind, list):
        kind, options = "COMBO", {**options, "options": kind}
    yield name, kind, options
    if kind == DYNAMIC and values is not None:
        key = values.get(name, default_of(kind, options))
        choice = next((option for option in options["options"] if option["key"] == key), None)
        if choice is None:
            raise ValueError(f"{name} is {key!r}, but its choices are "
                             f"{', '.join(option['key'] for option in options['options'])}.")
        for part in ("required", "optional"):
            for inner, inner_entry in choice["inputs"].get(part, {}).items():
                yield from expanded(f"{name}.{inner}", inner_entry, values)


def is_widget(kind: str, options: Mapping) -> bool:
    """Whether an input is edited in the node, so that it has a place in `widgets_values`."""
    return kind in WIDGETS and not options.get("forceInput")


def extra_values(name: str, kind: str, options: Mapping) -> list[str]:
    """The values that the page saves after a widget for companions of its own."""
    if kind == "INT" and options.get("control_after_generate", name in ("seed", "noise_seed")):
        return ["fixed"]
    return ["image"] if any(options.get(upload) for upload in UPLOADS) else []


def widget_values(schema: Mapping, saved: list | Mapping) -> dict:
    """The saved values of a node by input name. Raises ValueError if their number does not fit the schema."""
    if isinstance(saved, Mapping):
        return dict(saved)
    values, rest, missing = {}, list(saved), []
    for name, kind, options in inputs_of(schema, values):
        if is_widget(kind, options):
            if rest:
                values[name] = rest.pop(0)
            elif "default" in options or kind in ("COMBO", DYNAMIC):
                values[name] = default_of(kind, options)
            else:
                missing.append(name)
            del rest[:len(extra_values(name, kind, options))]
    if rest or missing:
        raise ValueError(f"{schema['name']}: {len(saved)} saved widget values do not fit its inputs: "
                         f"missing {missing}, left over {rest}. Save the workflow again in the page.")
    return values


def default_of(kind: str, options: Mapping):
    """The value that the page gives a new widget."""
    if "default" in options:
        return options["default"]
    choices = options.get("options") or [None]
    if kind == DYNAMIC:
        return choices[0]["key"]
    return {"COMBO": choices[0], "INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}[kind]


class Workflow:
    """A graph in UI format with its links resolved through reroutes, primitives and bypassed nodes."""

    def __init__(self, workflow: Mapping, object_info: Mapping):
        self.nodes = {node["id"]: node for node in workflow["nodes"]}
        self.links = {link[0]: link for link in workflow["links"]}
        self.info = object_info

    def missing(self) -> list[str]:
        """The node types that the server does not know."""
        return sorted({node["type"] for node in self.nodes.values()} - VIRTUAL - self.info.keys())

    def source(self, link_id: int | None):
        """What feeds a link: ["node id", slot], a primitive's value in a 1-tuple, or None if nothing does."""
        if link_id is None or link_id not in self.links:
            return None
        _, origin, slot, _, _, kind = self.links[link_id]
        node = self.nodes[origin]
        if node["type"] == "PrimitiveNode":
            return (node["widgets_values"][0],)
        if node["type"] == "Reroute":
            return self.source(node["inputs"][0].get("link"))
        if node.get("mode") == MUTED:
            return None
        if node.get("mode") == BYPASSED:
            inputs = node.get("inputs", [])
            same = inputs[slot:slot + 1] + inputs       # the input at the same place, else any of its type
            return next((self.source(entry.get("link")) for entry in same if entry["type"] == kind), None)
        return [str(origin), slot]

    def api(self) -> dict[str, dict]:
        """The graph in API format. Raises ValueError naming unknown node types or ill-fitting values."""
        if self.missing():
            raise ValueError(f"node types that this ComfyUI does not know: {', '.join(self.missing())}")
        active = {key: node for key, node in self.nodes.items()
                  if node["type"] not in VIRTUAL and node.get("mode") not in (MUTED, BYPASSED)}
        return {str(key): {"class_type": node["type"], "inputs": self.api_inputs(node)}
                for key, node in active.items()}

    def api_inputs(self, node: Mapping) -> dict:
        """The values and links of one node, by input name."""
        inputs = widget_values(self.info[node["type"]], node.get("widgets_values", []))
        for entry in node.get("inputs", []):
            source = self.source(entry.get("link"))
            if source is not None:
                inputs[entry["name"]] = source[0] if isinstance(source, tuple) else source
        return inputs


def api_graph(workflow: Mapping, object_info: Mapping) -> dict[str, dict]:
    """The API graph of a UI-format workflow, given the server's /object_info."""
    return Workflow(workflow, object_info).api()
