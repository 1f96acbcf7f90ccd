"""The house as its files show it: which room imports which, how long files are, which words are left, which packages
are declared and used. `tests/unit/test_house.py` asks it to be in order, `bench house` counts.
"""
from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for folder in ("modules", "nodes") for path in sorted((ROOT / folder).rglob("*.py"))]
METHODS = {"motion", "guide", "customize", "hspace", "basis", "metrics", "furrygan"}
BUILDS_ON = {("customize", "motion")}      # a motion LoRA is a change of a motion module
FLOORS = [["curve", "files", "pictures", "seeding"], ["hspace", "basis", "metrics", "clips", "data"],
          ["training", "demo"],
          ["motion", "guide", "customize", "furrygan"], ["host"], [f"host/{method}" for method in sorted(METHODS)],
          ["nodes", "demo_training"], ["cli"]]          # from the lowest up; imports run down
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
HOST = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "latent_preview", "nodes",
        "server"}
OF_HOST = {"torch", "PIL", "av", "kornia", "scipy", "tqdm", "transformers"}      # which its requirements ask for
# What the house used to say (names in code) and what the field says.
NAMES = {
    "moments": "timestamps", "places": "frame_indices, block_ids, feature_names or sample_indices",
    "spoken": "progress lines", "say": "report_progress", "about": "metadata or provenance", "average": "ema",
    "hear": "capture", "heard": "captured", "hearing": "capturing", "deaf": "not capturing",
    "codes": "positional encoding", "mistakes": "file checks", "file_mistakes": "file checks",
    "whole_file": "atomic write", "look_at_own_place": "positional-attention initialisation",
    "few": "a noun for what it limits", "far": "a noun for what it limits", "most": "a noun for what it limits",
    "near": "a noun for what it limits", "wide": "a noun for what it limits", "room": "a noun for what it limits",
    "nothing": "a noun for what it limits", "told_of_gamma": "validate_gamma", "sparing": "with_oom_retry",
    "alone": "exclusive_sampling", "privateunet": "frozen copy",
}
CONSTANTS_ONLY = {"few", "far", "most", "near", "wide", "room", "nothing"}
PHRASES = ("at birth", "private u-net", "words for every frame", "is deaf", "positional codes")


def room_of(path: Path) -> str:
    """The room of a file of the pack, e.g. "training", "host", "host/motion", "nodes"."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] != "modules":
        return parts[0]
    if parts[1] == "host" and len(parts) > 3:
        return "/".join(parts[1:3])
    return parts[1]


def imports_of(path: Path) -> Iterator[Path]:
    """The files of the pack that a file imports, at module level or inside functions."""
    package = path.parent
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package.parents[node.level - 2] if node.level > 1 else package
            target = base.joinpath(*(node.module or "").split(".")) if node.module else base
            if target.with_suffix(".py").is_file():
                yield target.with_suffix(".py")
                continue
            for alias in node.names:
                inner = target / alias.name
                yield inner.with_suffix(".py") if inner.with_suffix(".py").is_file() else target / "__init__.py"


def arrows() -> Iterator[tuple[str, str, str]]:
    """(file, its room, the other room) of every import from another room."""
    for path in SOURCES:
        for target in imports_of(path):
            here, there = room_of(path), room_of(target)
            if here != there and "__init__" not in (here, there):
                yield path.relative_to(ROOT).as_posix(), here, there


def rooms_crossed() -> list[str]:
    """Imports from one method's room into another's."""
    method = {room: room.removeprefix("host/") for room in FLOOR}
    return [f"{file} imports from {there}" for file, here, there in arrows()
            if {method[here], method[there]} <= METHODS and method[here] != method[there]
            and (method[here], method[there]) not in BUILDS_ON]


def upward_arrows() -> list[str]:
    """Imports from a room that stands above, or beside on the same floor where those are no libraries."""
    return [f"{file} imports from {there}" for file, here, there in arrows() if FLOOR[there] > FLOOR[here]]


def largest_file() -> tuple[int, str]:
    """Lines and name of the longest file of code."""
    return max((path.read_text(encoding="utf-8").count("\n"), path.relative_to(ROOT).as_posix()) for path in SOURCES)


def words() -> list[str]:
    """Words of the house that are left: as names in code, and as phrases in its texts and on help pages."""
    found = []
    for path in SOURCES:
        text, file = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
        names = {path.stem, *names_of(ast.parse(text))}
        found += [f"{file}: {name} (write {NAMES[name.lower()]})" for name in sorted(names)
                  if name.lower() in NAMES and (name.lower() not in CONSTANTS_ONLY or name.isupper())]
        found += phrases(file, text)
    for page in sorted((ROOT / "nodes" / "web" / "docs").glob("*.md")):
        found += phrases(page.name, page.read_text(encoding="utf-8"))
    return found


def phrases(file: str, text: str) -> list[str]:
    """The phrases of the house in a text, line breaks or not."""
    plain = re.sub(r"\s+", " ", text.lower())
    return [f"{file}: {phrase!r}" for phrase in PHRASES if phrase in plain]


def names_of(tree: ast.AST) -> Iterator[str]:
    """Names that a file gives: of functions, classes, arguments, variables, attributes."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def packages_used() -> set[str]:
    """Distributions that the pack's code imports, at module level or inside functions, but the host's own."""
    roots = set()
    for path in [*SOURCES, ROOT / "__init__.py", ROOT / "cli.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                roots |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                roots.add(node.module.partition(".")[0])
    return roots - set(sys.stdlib_module_names) - HOST - OF_HOST - {"frozen_diffusion"}


def packages_declared() -> set[str]:
    """Distributions that pyproject names for the pack, not for its development."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for extra, names in project["optional-dependencies"].items() if extra != "dev" for name in names]
    return {re.match(r"[\w-]+", name).group() for name in [*project["dependencies"], *extras]}


def unused_dependencies() -> list[str]:
    """Packages that are declared and not used, or used and not declared."""
    used, declared = packages_used(), packages_declared()
    return [f"{name} is declared and not used" for name in sorted(declared - used)] + [
        f"{name} is used and not declared" for name in sorted(used - declared)]
