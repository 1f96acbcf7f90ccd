"""The command line: `python -m frozen_diffusion.cli demo-train | train motion | train guide | train motion-lora |
train furrygan | metrics | bench`.

The same trainers and measurements as in ComfyUI, without a page. ComfyUI itself is found by COMFYUI_PATH,
around the installed pack, or in `.comfyui` (see modules/host/boot.py).
"""
from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType

from .host.boot import PACK, boot_comfyui

BENCHES = PACK / "tests" / "bench"
VERSIONS = ("torch", "numpy", "diffusers", "safetensors")


def demo_train(args: argparse.Namespace) -> int:
    """Train one part of the sprite-world model that the pack ships."""
    boot_comfyui(["--use-pytorch-cross-attention"])     # a tenth faster on a CPU than the host's default
    from .demo_training.parts import train_part
    print(f"written: {train_part(args.part, args.runs)}")
    return 0


def train_motion(args: argparse.Namespace) -> int:
    """Train a motion module."""
    choose_device()
    boot_comfyui()
    from .host.motion import train_command
    return train_command.main(args)


def train_guide(args: argparse.Namespace) -> int:
    """Train a guide model."""
    choose_device()
    boot_comfyui()
    from .host.guide import train_command
    return train_command.main(args)


def train_motion_lora(args: argparse.Namespace) -> int:
    """Learn a motion from a clip."""
    choose_device()
    boot_comfyui()
    from .host.customize import train_command
    return train_command.main(args)


def train_furrygan(args: argparse.Namespace) -> int:
    """Train a FurryGAN."""
    choose_device()
    boot_comfyui()
    from .host.furrygan import train_command
    return train_command.main(args)


def metrics(args: argparse.Namespace) -> int:
    """Compare folders of pictures by attributes."""
    boot_comfyui()
    from .host.metrics import metrics_command
    return metrics_command.main(args)


def choose_device() -> None:
    """Of several processes that were launched on one machine each takes the GPU of its number."""
    import torch
    if "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def bench(args: argparse.Namespace) -> int:
    """Run one benchmark; the last line printed is a JSON object with its figures."""
    measure = load_bench(args.name)
    began = time.perf_counter()
    result = measure.run()
    context = machine() | {"seconds": round(time.perf_counter() - began, 2)} | result.get("context", {})
    print(json.dumps({"name": args.name, "figures": result["figures"], "context": context}))
    return 0


def load_bench(name: str) -> ModuleType:
    """The module tests/bench/<name>.py, hyphens as underscores. Raises SystemExit naming those there are."""
    path = BENCHES / f"{name.replace('-', '_')}.py"
    if not path.is_file():
        there = ", ".join(sorted(file.stem.replace("_", "-") for file in BENCHES.glob("[!_]*.py"))) or "none"
        raise SystemExit(f"no benchmark {name!r}; there are: {there}. Benchmarks are part of the source "
                         "checkout, not of an installed package.")
    boot_comfyui()
    sys.path.append(str(BENCHES.parent))        # benchmarks may use the test host
    spec = importlib.util.spec_from_file_location(f"bench_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)     # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def machine() -> dict[str, str | int | dict[str, str]]:
    """Where figures come from: processor, cores, accelerator and versions."""
    import torch
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    versions = {"python": platform.python_version()}
    for package in VERSIONS:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"machine": f"{platform.system()} {platform.machine()} {models[0] if models else ''}".strip(),
            "cores": cores, "threads": torch.get_num_threads(), "accelerator": accelerator,
            "versions": versions}


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The tree of commands. A trainer's own options are asked from it only when `argv` is about it."""
    parser = argparse.ArgumentParser(prog="python -m frozen_diffusion.cli", description="Frozen Diffusion")
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser("demo-train", help="train a part of the sprite-world model")
    demo.set_defaults(action=demo_train)
    if argv[:1] == ["demo-train"]:
        from .demo_training.parts import PARTS
        demo.add_argument("part", choices=PARTS)
        demo.add_argument("--runs", type=Path, default=Path("runs"), help="folder of its checkpoints")

    train = commands.add_parser("train", help="train on one's own data")
    methods = train.add_subparsers(dest="method", required=True)
    motion = methods.add_parser("motion", help="a motion module from clips")
    motion.set_defaults(action=train_motion)
    if argv[:2] == ["train", "motion"]:
        from .host.motion import train_command
        train_command.add_arguments(motion)
    guide = methods.add_parser("guide", help="a guide model from prompts")
    guide.set_defaults(action=train_guide)
    if argv[:2] == ["train", "guide"]:
        from .host.guide import train_command
        train_command.add_arguments(guide)
    lora = methods.add_parser("motion-lora", help="a motion LoRA from one clip")
    lora.set_defaults(action=train_motion_lora)
    if argv[:2] == ["train", "motion-lora"]:
        from .host.customize import train_command
        train_command.add_arguments(lora)

    furry = methods.add_parser("furrygan", help="foreground, background and alpha from plain pictures")
    furry.set_defaults(action=train_furrygan)
    if argv[:2] == ["train", "furrygan"]:
        boot_comfyui()
        from .host.furrygan import train_command
        train_command.add_arguments(furry)

    judge = commands.add_parser("metrics", help="compare folders of pictures by attributes (SaD, PaD)")
    judge.set_defaults(action=metrics)
    if argv[:1] == ["metrics"]:
        boot_comfyui()
        from .host.metrics import metrics_command
        metrics_command.add_arguments(judge)

    measure = commands.add_parser("bench", help="run a benchmark and print its figures as JSON")
    measure.add_argument("name")
    measure.set_defaults(action=bench)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = build_parser(argv).parse_args(argv)
    return args.action(args)
