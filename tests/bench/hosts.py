"""The pack on another ComfyUI: do its templates give what they give on the development tree, do its tests pass there.

    make -s bench NAME=hosts COMFYUI_PATH=/path/to/ComfyUI

A template counts if it runs and each latent that it decodes agrees with the development tree's to 1e-3 of that one's
range, and each of its pictures to 1e-3 in the root of the mean square: they have 8 bits, so that one step is 4e-3. The
development tree is `.comfyui`, which `make test` fetches (FROZEN_BENCH_REFERENCE names another); its results stay in
runs/ until the pack changes. FROZEN_BENCH_PARTS=templates or tests measures one figure alone.
"""
from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch

from frozen_diffusion.modules.host.boot import PACK, find_comfyui, is_comfyui
from testhost.server import version_of
from testhost.template_results import STEPS

TOLERANCE = 1e-3                        # of the range
REFERENCE = Path(os.environ.get("FROZEN_BENCH_REFERENCE", PACK / ".comfyui"))
PARTS = os.environ.get("FROZEN_BENCH_PARTS", "templates,tests").split(",")


def identity() -> str:
    """A name of everything in the pack that templates depend on."""
    digest = hashlib.sha256(torch.__version__.encode())
    for part in ("modules", "nodes", "workflows", "weights", "tests/testhost"):
        for file in sorted((PACK / part).rglob("*")):
            if file.suffix in (".py", ".json", ".safetensors"):
                digest.update(f"{file.relative_to(PACK)}".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def run_templates(comfyui: Path, folder: Path) -> None:
    """Run all templates on a ComfyUI, with the Python of this process: its packages serve older trees too."""
    paths = os.pathsep.join([str(PACK / "tests"), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-m", "testhost.template_results", str(folder)], cwd=PACK, check=True,
                   stdout=sys.stderr, env=os.environ | {"COMFYUI_PATH": str(comfyui), "PYTHONPATH": paths})


def reference() -> Path:
    """The folder of the development tree's results. Raises SystemExit if there is no such tree."""
    if not is_comfyui(REFERENCE):
        raise SystemExit(f"{REFERENCE} is no ComfyUI. Run `make test` once without COMFYUI_PATH, which fetches it.")
    folder = PACK / "runs" / "hosts" / identity()
    if not folder.is_dir():
        partial = folder.with_suffix(".partial")
        run_templates(REFERENCE, partial)
        partial.rename(folder)
    return folder


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Of a result, as a share of the range: the largest of a latent, the root mean square of pictures."""
    if ours.shape != theirs.shape:
        return float("inf")
    away = np.abs(ours.astype(np.float64) - theirs)
    return float(np.sqrt((away ** 2).mean()) / 255 if theirs.dtype == np.uint8 else away.max() / np.ptp(theirs))


def compared(name: str, ours: Path, theirs: Path) -> dict:
    """Whether one template is right, with the largest difference of its latents and pictures or the error."""
    for folder, where in ((theirs, "the development tree"), (ours, "this tree")):
        if not (folder / f"{name}.npz").exists():
            return {"right": False, "error": f"on {where}: {(folder / f'{name}.txt').read_text()[:300]}"}
    found, wanted = (dict(np.load(folder / f"{name}.npz")) for folder in (ours, theirs))
    worst = {kind: max([difference(found[key], wanted[key]) for key in wanted if key.endswith(kind) and key in found],
                       default=None) for kind in ("latent", "picture")}
    same = bool(wanted) and found.keys() == wanted.keys()
    return {"right": same and all(value is None or value <= TOLERANCE for value in worst.values()), **worst}


def templates() -> dict[str, dict]:
    """Every template of workflows/ on the named tree against the development tree."""
    theirs = reference()
    with tempfile.TemporaryDirectory() as folder:
        run_templates(find_comfyui(), Path(folder))
        return {path.stem: compared(path.stem, Path(folder), theirs)
                for path in sorted((PACK / "workflows").glob("*.json"))}


def host_tests() -> dict:
    """Passed, failed and skipped tests of tests/host on the named tree."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "host.xml"
        subprocess.run([sys.executable, "-m", "pytest", "tests/host", "-q", "-n", "2", "--dist", "loadfile",
                        f"--junitxml={report}"], cwd=PACK, stdout=sys.stderr, env=os.environ | {"OMP_NUM_THREADS": "1"})
        cases = [case for case in ElementTree.parse(report).iter("testcase")]
    names = {kind: [f"{case.get('classname')}::{case.get('name')}" for case in cases
                    if any(case.find(found) is not None for found in kinds)]
             for kind, kinds in (("failed", ("failure", "error")), ("skipped", ("skipped",)))}
    return {"tests": len(cases), **names}


def run() -> dict:
    """The figures `templates_right` and `host_tests_passed`, shares of all; a skipped test counts for neither side."""
    figures, context = {}, {"comfyui": version_of(find_comfyui())}
    if "templates" in PARTS:
        context |= {"reference": version_of(REFERENCE), "most_steps": STEPS,
                    "own_files": "templates for the user's checkpoint and motion module load sprite world's",
                    "templates": templates()}
        right = [template["right"] for template in context["templates"].values()]
        figures["templates_right"] = sum(right) / len(right)
    if "tests" in PARTS:
        context |= host_tests()
        figures["host_tests_passed"] = 1 - len(context["failed"]) / (context["tests"] - len(context["skipped"]))
    return {"figures": figures, "context": context}
