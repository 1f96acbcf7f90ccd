"""What a step costs with a guide: beside the plain pass and beside real guidance, turn by turn in one process.

SD1.5's size with random weights (32x32 latents, batch 1 and 4), two steps through the host's sampler; sprite world,
eight steps. Ratios of medians. Fed and full guides are measured at SD1.5's size; sprite world's own is fed. Name:
guide-cost.
"""
from __future__ import annotations

import statistics
import time

import comfy.ops
import comfy.samplers
import torch
from bench._guide import guide_file
from bench._sprite_world import load_world
from bench.train_cost import full_size_model

from frozen_diffusion.modules.guide.files import FULL, TINY, GuideConfig
from frozen_diffusion.modules.guide.networks import OUTPUT_STD, fresh_guide
from frozen_diffusion.modules.guide.shape import shape_of
from frozen_diffusion.modules.host.guide.apply import GuideSettings, apply_guide
from frozen_diffusion.modules.host.guide.files import hold_guide
from frozen_diffusion.modules.host.guide.full import fresh_full_guide
from frozen_diffusion.modules.seeding import stream

ROUNDS, G = 5, 5.0
SIGMAS = torch.tensor([12.0, 8.0, 5.0])
MORE_SIGMAS = torch.linspace(12.0, 1.0, 9)      # sprite world's steps are so short that a run's begin would count


def measured(ways: dict, text: torch.Tensor, batch: int, side: int, sigmas: torch.Tensor = SIGMAS) -> dict[str, float]:
    """Median seconds of a run of each way: (MODEL, cfg)."""
    noise = torch.randn(batch, 4, side, side, generator=stream("noise"))
    seconds = {name: [] for name in ways}
    for _ in range(ROUNDS + 1):
        for name, (model, cfg) in ways.items():
            guider = comfy.samplers.CFGGuider(model)
            guider.set_conds([[text, {}]], [[0.9 * text, {}]])
            guider.set_cfg(cfg)
            began = time.perf_counter()
            guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas,
                          disable_pbar=True, seed=0)
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def ratios(prefix: str, found: dict[str, float]) -> dict[str, float]:
    """Over the plain pass and over real guidance."""
    figures = {f"{prefix}plain_over_cfg": found["plain"] / found["cfg"]}
    for kind in ("tiny", "fed", "full"):
        if kind in found:
            figures[f"{prefix}{kind}_over_plain"] = found[kind] / found["plain"]
            figures[f"{prefix}{kind}_over_cfg"] = found[kind] / found["cfg"]
    return figures


@torch.inference_mode()
def run() -> dict:
    model = full_size_model()
    unet = {name: value for name, value in model.model.model_config.unet_config.items() if name != "dtype"}
    shape = shape_of(unet)
    tiny, fed = (hold_guide(GuideConfig(TINY, "sd15", "eps", shape, fed=fed), fresh_guide(
        shape, 0, fed=fed).state_dict(), "random") for fed in (False, True))
    network = fresh_full_guide(shape, model.model.diffusion_model, unet, comfy.ops.disable_weight_init, OUTPUT_STD)
    full = hold_guide(GuideConfig(FULL, "sd15", "eps", shape, unet=unet), network.state_dict(), "random")
    del network
    text, figures, seconds = torch.randn(1, 77, 768, generator=stream("text")), {}, {}
    ways = {"plain": (model, 1.0), "cfg": (model, G), "tiny": (apply_guide(model, tiny, GuideSettings()), G),
            "fed": (apply_guide(model, fed, GuideSettings()), G),
            "full": (apply_guide(model, full, GuideSettings()), G)}
    for batch in (1, 4):
        seconds[f"batch {batch}"] = measured(ways, text, batch, 32)
        figures |= ratios("" if batch == 1 else f"batch{batch}_", seconds[f"batch {batch}"])
    world = load_world()
    small = {"plain": (world.model, 1.0), "cfg": (world.model, G),
             "tiny": (apply_guide(world.model, guide_file("sprite_guide"), GuideSettings()), G)}
    seconds["sprite world"] = measured(small, torch.randn(1, 77, 128, generator=stream("text")), 1, 16, MORE_SIGMAS)
    figures |= ratios("sprite_", seconds["sprite world"])
    return {"figures": figures, "context": {"latents": "32x32", "steps": len(SIGMAS) - 1, "rounds": ROUNDS,
                                            "median_seconds": seconds}}
