"""The identities of guide models (guide_model.md 8.2, items 1 to 11), each by the tests of the suite that prove it.

`hold` is the share of items whose tests all pass. Name: guide-proofs.
"""
from __future__ import annotations

import subprocess
import sys

from frozen_diffusion.modules.host.boot import PACK

APPLY, TRAIN, UNIT = "tests/host/test_guide_apply.py", "tests/host/test_guide_training.py", "tests/unit/test_guide.py"
ITEMS = {
    "1 a guide that adds nothing is the plain pass": [APPLY, "adds_nothing"],
    "2 parameters and sizes": [f"{UNIT} {TRAIN}", "parameters or sizes or any_size"],
    "3 where residuals enter": [APPLY, "enter_where"],
    "4 beside ControlNets": [APPLY, "add_up"],
    "5 the full guide is a ControlNet without hint": [TRAIN, "controlnet_without_hint"],
    "6 guidance in every form": [UNIT, "every_form or unexplained"],
    "7 one step that is two": [f"{UNIT} {TRAIN}", "one_step_that_is_two or like_its_teacher or nested"],
    "8 rows a step": [APPLY, "one_pass or adds_nothing"],
    "9 the negative prompt's rows": [APPLY, "hybrid"],
    "10 gradients": [f"{UNIT} {TRAIN}", "zero_outputs or learns_and_its_guide"],
    "11 files, and nothing left behind": [f"{UNIT} {APPLY}", "there_and_back or put_back"],
}


def passes(files: str, chosen: str) -> bool:
    """Whether the chosen tests are there and pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files.split(), "-k", chosen]
    return subprocess.run(command, cwd=PACK, stdout=sys.stderr).returncode == 0


def run() -> dict:
    found = {item: passes(*how) for item, how in ITEMS.items()}
    return {"figures": {"hold": sum(found.values()) / len(found)}, "context": {"items": found}}
