"""From a template to its file: titled, coloured and laid out as the page saves it."""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ..layout import ui_workflow, write_workflow
from . import TEMPLATES
from .parts import Template

CHANGE = {"color": "#232", "bgcolor": "#353"}
RESULT = {"color": "#223", "bgcolor": "#335", "size": [340, 440]}
AGAIN = "A second **Run** does nothing until you change something: the seed is *fixed*."
SHORT = {"EmptyLatentImage": "Size", "PreviewImage": "Preview"}         # long names leave no room for the part
KINDS = {"decode", "shown", "size", "inverted", "prompt", "sampler", "report", "edges", "noisy", "split", "guidance",
         "sheet", "guider", "noise", "text", "figures"}


def part_of(key: str) -> str:
    """What a node's key says besides its kind: "content" of "content decode"."""
    words = key.split()
    while len(words) > 1 and words[-1] in KINDS:
        words.pop()
    return " ".join(words)


def titles_of(template: Template, object_info: Mapping) -> dict[str, str]:
    """Titles that tell the nodes apart: given ones, those of prompts, and the part of nodes that come more than once.

    Raises ValueError if two nodes would have the same.
    """
    listed = {key: object_info[node["class_type"]]["display_name"] or node["class_type"]
              for key, node in template.graph.items()}
    names = {key: name.partition(" (")[0] if template.graph[key]["class_type"].startswith("Frozen") else name
             for key, name in listed.items()}           # without the words for the search
    often, titles = Counter(names.values()), {key: name for key, name in names.items() if name != listed[key]}
    for key, name in names.items():
        kind = template.graph[key]["class_type"]
        if kind == "CLIPTextEncode":
            plain = {"positive": "Prompt", "negative": "Negative prompt", "empty": "Empty prompt"}
            titles[key] = plain.get(key, f"Prompt: {part_of(key)}")
        elif kind == "PreviewAny":
            titles[key] = f"Report: {part_of(key)}"
        elif often[name] > 1:
            titles[key] = f"{SHORT.get(kind, name)}: {part_of(key)}"
        elif key == template.result:
            titles[key] = f"Result: {name}"
    titles |= template.titles
    twice = [title for title, times in Counter({**names, **titles}.values()).items() if times > 1]
    if twice:
        raise ValueError(f"two nodes are called {', '.join(twice)}; give them titles")
    return titles


def extras_of(template: Template) -> dict[str, dict]:
    """How what one changes and the result look, and the files that a person may have to fetch."""
    prompts = [key for key, node in template.graph.items() if node["class_type"] == "CLIPTextEncode"
               and node["inputs"]["text"]]
    extras = {key: dict(CHANGE) for key in [*prompts, template.main]} | {template.result: dict(RESULT)}
    for key, models in template.models.items():
        extras.setdefault(key, {})["properties"] = {"models": [dict(model) for model in models]}
    return extras


def notes_of(template: Template) -> list[str]:
    """The notes, the first one under its three lines."""
    first = (f"## What it does: {template.does}\n\n## What to change: {template.change}\n\n"
             f"## How long: {template.lasts} on a CPU.\n\n{AGAIN}")
    return [f"{first}\n\n{template.notes[0].strip()}".strip(), *template.notes[1:]]


def workflow_of(name: str, object_info: Mapping) -> dict:
    """A template as the page would save it."""
    template = TEMPLATES[name]()
    try:
        return ui_workflow(template.graph, object_info, notes=notes_of(template), stages=template.stages,
                           titles=titles_of(template, object_info), wanted=(template.main, template.result),
                           extras=extras_of(template))
    except ValueError as error:
        raise ValueError(f"template {name}: {error}") from error


def write_all(folder: Path, object_info: Mapping) -> list[Path]:
    """Write every template into `folder`; returns the paths."""
    paths = [folder / f"{name}.json" for name in TEMPLATES]
    for path in paths:
        write_workflow(path, workflow_of(path.stem, object_info))
    return paths
