"""The contract with saved workflows: what may change about a node, checked against a golden file.

Saved workflows store node ids and, by position, widget values. So a node may be added, and inputs, outputs
and choices may be appended; anything else breaks somebody's workflow.

    PYTHONPATH=tests python -m testhost.contract --update       write the golden file after an append
"""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from .workflow import inputs_of

GOLDEN = Path(__file__).parents[1] / "host" / "contract.json"


def described(node: type) -> dict:
    """What the contract holds about a node. File names differ by machine: such choices are left out."""
    info = node.GET_NODE_INFO_V1()
    inputs = []
    for name, kind, options in inputs_of(info):
        entry = {"name": name, "type": kind, "required": name in info["input"].get("required", {})}
        choices = [choice for choice in options.get("options", []) if isinstance(choice, str)]
        if choices and not any("." in choice for choice in choices):
            entry["choices"] = choices
        if "default" in options and (kind != "COMBO" or "choices" in entry):
            entry["default"] = options["default"]
        inputs.append(entry)
    outputs = [{"name": name, "type": kind}
               for name, kind in zip(info["output_name"], info["output"], strict=True)]
    return {"inputs": inputs, "outputs": outputs, "output_node": info["output_node"]}


def snapshot(pack: Iterable[type]) -> dict[str, dict]:
    """The contract of all nodes as they are now, by id."""
    return dict(sorted((node.GET_SCHEMA().node_id, described(node)) for node in pack))


def breaks(golden: dict, now: dict) -> Iterator[str]:
    """One sentence for every difference that is not an append."""
    for node_id, old in golden.items():
        if node_id not in now:
            yield f"{node_id} is gone"
            continue
        new = now[node_id]
        if old["output_node"] != new["output_node"]:
            yield f"{node_id}: output_node was {old['output_node']}"
        for side in ("inputs", "outputs"):
            for place, entry in enumerate(old[side]):
                found = new[side][place] if place < len(new[side]) else None
                yield from (f"{node_id}: {side} {place + 1} {reason}" for reason in changed(entry, found))
        for entry in new["inputs"][len(old["inputs"]):]:
            if entry["required"] and "default" not in entry:
                yield f"{node_id}: appended input {entry['name']} is required, so saved workflows cannot run"


def changed(old: dict, new: dict | None) -> Iterator[str]:
    """What is wrong with one input or output, given what it was."""
    if new is None:
        yield f"was {old['name']} and is gone"
        return
    for key in old.keys() | new.keys():
        if key == "choices":
            lost = set(old.get(key, [])) - set(new.get(key, []))
            if lost:
                yield f"({old['name']}) has lost the choices {sorted(lost)}"
        elif old.get(key) != new.get(key):
            yield f"({old['name']}): {key} was {old.get(key)!r} and is {new.get(key)!r}"


def read_golden() -> dict:
    """The golden file, empty if there is none."""
    return json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}


def main() -> int:
    """Compare, and with --update write what was appended; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--update", action="store_true", help="write the golden file if nothing breaks")
    options = parser.parse_args()
    import tempfile

    from .inprocess import start
    with tempfile.TemporaryDirectory() as folder:
        now = snapshot(start(Path(folder)).pack)
    golden = read_golden()
    wrong = list(breaks(golden, now))
    for sentence in wrong:
        print(f"breaks saved workflows: {sentence}")
    if not wrong and now != golden and options.update:
        GOLDEN.write_text(json.dumps(now, indent=1) + "\n")
        print(f"{GOLDEN.name} now holds {len(now)} nodes")
    return 1 if wrong or (now != golden and not options.update) else 0


if __name__ == "__main__":
    sys.exit(main())
