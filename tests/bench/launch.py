"""Does a training launched in two processes learn what one process learns from twice the batch.

Each trainer runs 20 steps on sprite world, once in two processes on the CPU (gloo), once in one process with twice the
draws a step. Both keep their losses in their checkpoints. The processes are started by torchrun, which is also what
`accelerate launch` starts on GPUs; for CPUs it wants an MPI.
"""
from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors import safe_open

from frozen_diffusion.modules.host.boot import PACK

STEPS = 20
DATA = ["--data", "sprite-world", "--checkpoint", "sprite-world", "--size", "128x128", "--frames", "4", "--max-clips",
        "16", "--keep-still", "--batch", "2", "--steps", str(STEPS), "--lr", "1e-3", "--beta-schedule", "keep",
        "--no-gradient-checkpointing"]
PROMPTS = "PROMPTS"          # stands for a file of captions
TRAINERS = {
    "guide": ["train", "guide", "--checkpoint", "sprite-world", "--prompts", PROMPTS, "--size", "128x128", "--batch",
              "2", "--steps", str(STEPS), "--lr", "1e-3", "--trajectories", "8", "--trajectory-steps", "4"],
    "motion": ["train", "motion", *DATA],
    "harivo": ["train", "motion", *DATA, "--mapping-width", "8", "--frame-tokens", "2", "--temporal-convolution",
               "--trs", "30", "--trs-from", "5", "--dc", "0.01"]}
LAUNCH = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "frozen_diffusion.cli"]


def losses(words: list[str], options: list[str], out: Path, cache: Path) -> list[float]:
    """Train by a command and read the losses from its checkpoint."""
    prompts = cache.with_name("prompts.txt")
    prompts.write_text("\n".join(f"a large {sprite} in the middle of a blue plain "
                                 "background" for sprite in ("dog", "cat")))
    options = [str(prompts) if option == PROMPTS else option for option in options]
    command = [sys.executable, *words, *options, "--out", str(out), "--cache", str(cache)]
    done = subprocess.run(command, cwd=PACK, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    with safe_open(str(out.with_suffix(".training.safetensors")), framework="pt") as file:
        return file.get_tensor("losses").tolist()


def compared(name: str, folder: Path) -> dict:
    """The losses of both ways, and how far they are apart."""
    one = losses(["-m", "frozen_diffusion.cli"], [*TRAINERS[name], "--accumulate", "2"], folder / "one.safetensors",
                 folder / "cache")
    two = losses(LAUNCH, TRAINERS[name], folder / "two.safetensors", folder / "cache of two")
    assert len(one) == len(two) == STEPS
    return {"loss_max_rel": max(abs(a - b) / abs(a) for a, b in zip(one, two, strict=True)), "first": one[0],
            "last": one[-1]}


def run() -> dict:
    rows = {}
    for name in TRAINERS:
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = compared(name, Path(folder))
    return {"figures": {"loss_max_rel": max(row["loss_max_rel"] for row in rows.values())},
            "context": {"steps": STEPS, "processes": 2, "trainers": rows}}
