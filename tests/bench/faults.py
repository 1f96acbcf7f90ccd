"""Faults that were seen when the pack was used as people use such packs: how many give the right value now.

A row is right if it has tests, marked with `pytest.mark.fault`, and all of them pass; they sample through the real
host. The letters: A the role of a call of the U-Net, B the weights of a MODEL, C context windows, D training data as
people have it, E files and settings, G against the released code of InjectFusion and Diffusion-Pullback.
"""
from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

from frozen_diffusion.modules.host.boot import PACK

LAST = {"A": 2, "B": 3, "C": 2, "D": 10, "E": 10, "G": 7}
ROWS = [f"{letter}{number}" for letter, last in LAST.items() for number in range(1, last + 1)]
FAILED = ("failure", "error", "skipped")


def outcomes(report: Path) -> dict[str, dict[str, bool]]:
    """Whether each test passed, by row, from pytest's JUnit report."""
    found = defaultdict(dict)
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        passed = all(case.find(kind) is None for kind in FAILED)
        for told in case.iterfind("properties/property[@name='fault']"):
            found[told.get("value")][name] = passed
    return found


def run() -> dict:
    """The figure `right`: share of the rows that give the right value."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "faults.xml"
        subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "fault", f"--junitxml={report}"], cwd=PACK,
                       stdout=sys.stderr)
        found = outcomes(report)
    right = {row: bool(found[row]) and all(found[row].values()) for row in ROWS}
    return {"figures": {"right": sum(right.values()) / len(right)}, "context": {"rows": right, "tests": found}}
