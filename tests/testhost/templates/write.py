"""From a template to its file: the graph laid out as the page saves it."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..layout import ui_workflow, write_workflow
from . import TEMPLATES


def workflow_of(name: str, object_info: Mapping) -> dict:
    """A template as the page would save it."""
    template = TEMPLATES[name]()
    return ui_workflow(template.graph, object_info, notes=template.notes, titles=template.titles)


def write_all(folder: Path, object_info: Mapping) -> list[Path]:
    """Write every template into `folder`; returns the paths."""
    paths = [folder / f"{name}.json" for name in TEMPLATES]
    for path in paths:
        write_workflow(path, workflow_of(path.stem, object_info))
    return paths
