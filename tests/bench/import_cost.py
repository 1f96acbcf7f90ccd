"""What the pack adds to the start of a host: seconds from its import to its list of nodes, in fresh processes."""
from __future__ import annotations

import statistics
import subprocess
import sys

ROUNDS = 5
PROBE = """
import asyncio, sys, time
from frozen_diffusion.modules.host.boot import boot_comfyui
boot_comfyui()
import nodes, comfy_api.latest
began = time.perf_counter()
import frozen_diffusion
asyncio.run(asyncio.run(frozen_diffusion.comfy_entrypoint()).get_node_list())
print(time.perf_counter() - began)
"""


def run() -> dict:
    """The figure `seconds`, the median."""
    seconds = [float(subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
                     .stdout.splitlines()[-1]) for _ in range(ROUNDS)]
    return {"figures": {"seconds": statistics.median(seconds)}, "context": {"rounds": seconds}}
