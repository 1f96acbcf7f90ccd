"""Minutes of `make test`, once everything it needs is set up."""
from __future__ import annotations

import subprocess
import sys
import time

from frozen_diffusion.modules.host.boot import PACK


def run() -> dict:
    """The figure `minutes`. Raises RuntimeError with the end of the output when the suite fails."""
    installer = [sys.executable, "tests/testhost/install.py", "--tests", "--browser"]
    subprocess.run(installer, cwd=PACK, check=True, stdout=sys.stderr)
    began = time.perf_counter()
    done = subprocess.run(["make", "test"], cwd=PACK, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    minutes = (time.perf_counter() - began) / 60
    if done.returncode:
        raise RuntimeError(f"make test failed with status {done.returncode}; it must pass to be measured. Its "
                           f"output ends with:\n{done.stdout[-2000:]}")
    return {"figures": {"minutes": minutes}, "context": {"summary": done.stdout.strip().splitlines()[-1]}}
