"""How long `make demo` takes on a fresh clone, everything installed, and when it is repeated."""
from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

from frozen_diffusion.modules.host.boot import PACK


def git(*arguments: str) -> str:
    """The output of one git command in the checkout."""
    return subprocess.run(["git", *arguments], cwd=PACK, check=True, text=True, stdout=subprocess.PIPE).stdout.strip()


def timed_demo(clone: Path) -> float:
    """Seconds of `make demo`. Raises RuntimeError with the end of the output when it fails."""
    began = time.perf_counter()
    done = subprocess.run(["make", "demo"], cwd=clone, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise RuntimeError(f"make demo failed with status {done.returncode} in a fresh clone. Its output ends "
                           f"with:\n{done.stdout[-2000:]}")
    return time.perf_counter() - began


def run() -> dict:
    """The figures `minutes_fresh` and `seconds_again`, of the last commit."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "frozen-diffusion"
        git("clone", "--quiet", str(PACK), str(clone))
        fresh, again = timed_demo(clone), timed_demo(clone)
    return {"figures": {"minutes_fresh": fresh / 60, "seconds_again": again},
            "context": {"commit": git("rev-parse", "HEAD"), "uncommitted_changes": bool(git("status", "--short"))}}
