"""Trainings that make the files of sprite world from nothing: `python -m frozen_diffusion.cli demo-train PART`.

Each part is a frozen recipe and a function that makes model, loss and batches for the one training loop. All of them
run on two CPU cores, keep a checkpoint under `runs/` and resume from it.
"""
from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..host.boot import PACK
from ..training.loop import StepRecord
from ..training.settings import TrainSettings

WEIGHTS = PACK / "weights"
LICENCE = "Apache-2.0; the sprites are drawn with Noto Color Emoji (SIL OFL 1.1)"


def publish(name: str, tensors: dict[str, torch.Tensor], what: str, command: str, settings: TrainSettings,
            hours: float, figures: dict[str, float], metadata: Mapping[str, str] | None = None) -> Path:
    """Write fp16 weights and their card: what, how trained, by which command, measured figures, licence."""
    path = WEIGHTS / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    half = {key: (value.half() if value.is_floating_point() else value).contiguous().clone()
            for key, value in tensors.items()}
    told = {"format": "pt", "what": what, "command": command, "licence": LICENCE}
    save_file(half, str(path), told | dict(metadata or {}))
    path.chmod(0o644)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    table = "\n".join(f"| {key} | {value:.4g} |" for key, value in figures.items())
    path.with_suffix(".md").write_text(
        f"# {name}\n\n{what}\n\n| | |\n|---|---|\n| command | `{command}` |\n| seed | {settings.seed} |\n"
        f"| steps | {settings.steps} |\n| hours | {hours:.2f} |\n| machine | {machine} |\n| licence | {LICENCE} |\n"
        f"| recipe | `{json.dumps(asdict(settings))}` |\n{table}\n")
    return path


def follow(records: Iterable[StepRecord], steps: int, every: int = 50) -> float:
    """Run a training to its end, printing a line now and then. Returns hours spent in steps of this process."""
    seconds, recent = 0.0, []
    for record in records:
        seconds += record.seconds
        recent.append(record.loss)
        if record.step % every == 0 or record.step == steps:
            extras = " ".join(f"{key} {value:.3f}" for key, value in record.extras.items())
            print(f"step {record.step}/{steps} loss {sum(recent) / len(recent):.4f} "
                  f"grad {record.grad_norm:.2f} {record.seconds:.2f} s/step {extras}", flush=True)
            recent = []
    return seconds / 3600


PARTS = {"vae": "vae", "clip": "clip", "unet": "unet", "lora": "lora", "controlnet": "controlnet", "motion": "motion",
         "harivo": "harivo", "harivo-ablation": "harivo", "guide": "guide", "guide-8": "guide", "guide-4": "guide",
         "guide-negative": "guide", "guide-full": "guide", "web": "lora",
         "motion-loras": "customize", "ruler": "ruler", "furry": "furry"}           # the file of each


def train_part(part: str, runs: Path) -> Path:
    """Train one of PARTS. Returns the (last) file written."""
    recipe = import_module(f".{PARTS[part]}", __package__)
    return getattr(recipe, f"train_{part.replace('-', '_')}")(runs)
