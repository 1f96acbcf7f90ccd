"""The identities of motion LoRAs (customize_a_video.md 8, items 1 to 9), each by the tests of the suite that prove it.

`hold` is the share of items whose tests all pass, `formats_exact` the share of layouts whose change comes back to fp32
rounding. Name: lora-proofs.
"""
from __future__ import annotations

import subprocess
import sys

from frozen_diffusion.modules.host.boot import PACK

APPLY, TRAIN = "tests/host/test_customize_apply.py", "tests/host/test_customize_training.py"
BESIDE = "tests/host/test_customize_beside.py"
FILES, HARIVO = "tests/unit/test_customize_files.py", "tests/unit/test_lora.py"
ITEMS = {
    "1 a fresh LoRA and strength 0 are the base": [f"{APPLY} {HARIVO}", "strength_0 or fresh or scale"],
    "2 hooks, merged weights, and nothing left": [APPLY, "merged_weights or leaves_no_hook or strength_0"],
    "3 the bypass is the image model, frame by frame": [TRAIN, "bypass_is or both_is_two"],
    "4 what is trained": [TRAIN, "gradients_are_those or nothing_else_changes"],
    "5 LoRAs add up": [f"{APPLY} {FILES}", "merged_weights or sums_scales"],
    "6 counts of parameters": [FILES, "counts_of_parameters"],
    "7 files there and back": [f"{FILES} {APPLY}", "there_and_back or embeddings or convert"],
    "8 an inverted clip comes back": [BESIDE, "comes_back"],
    "9 the loss": [TRAIN, "losses_are_the_papers"],
}
FORMATS = {"F1": "temporal_file_there_and_back and AnimateDiff", "F3": "temporal_file_there_and_back and diffusers",
           "F5": "list_of_motiondirector", "F6": "spatial_file_there_and_back", "F10": "embeddings",
           "F2 F4 names": "temporal_layers_have_one_name", "F7 F8 F9 names": "spatial_layers_have_one_name"}


def passes(files: str, chosen: str) -> bool:
    """Whether the chosen tests are there and pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files.split(), "-k", chosen]
    return subprocess.run(command, cwd=PACK, stdout=sys.stderr).returncode == 0


def run() -> dict:
    found = {item: passes(*how) for item, how in ITEMS.items()}
    formats = {name: passes(FILES, chosen) for name, chosen in FORMATS.items()}
    return {"figures": {"hold": sum(found.values()) / len(found),
                        "formats_exact": sum(formats.values()) / len(formats)},
            "context": {"items": found, "formats": formats}}
