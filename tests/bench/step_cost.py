"""What an injected step costs beside a plain one, at SD1.5 size on random weights.

`two_call` runs the U-Net twice, `shared_encoder` its encoder once and its decoder on twice the batch, `idle` is the
sampler with hooks present and nothing to inject. All take turns in one process; figures are ratios of medians. 32x32
latents, no guidance.
"""
from __future__ import annotations

import statistics
import time

import comfy.samplers
import torch
from bench.train_cost import full_size_model

from frozen_diffusion.modules.host.guiders import guider_of
from frozen_diffusion.modules.host.hspace.sampling import InjectionRequest, injection_sampler
from frozen_diffusion.modules.hspace.steps import InjectionSettings
from frozen_diffusion.modules.hspace.trace import HTrace
from frozen_diffusion.modules.seeding import stream

SIDE, ROUNDS = 32, 7
SIGMAS = torch.tensor([12.0, 8.0, 5.0])     # two steps, both injected where anything is


@torch.inference_mode()
def run() -> dict:
    """The figures `two_call`, `shared_encoder`, `idle` and `idle_difference` (0: bit-equal)."""
    model = full_size_model()
    text = [[torch.randn(1, 77, 768, generator=stream("text")), {}]]
    noise = torch.randn(1, 4, SIDE, SIDE, generator=stream("noise"))
    features = torch.randn(1, 1, 1280, SIDE // 8, SIDE // 8, generator=stream("content")).half()
    trace = HTrace({"h": features}, (900.0,), {})
    inject, idle = InjectionSettings(t_boost=-1, omega=0.0), InjectionSettings(t_boost=-1, omega=0.0, t_edit=1001)
    samplers = {"plain": comfy.samplers.sampler_object("euler"),
                "idle": injection_sampler(InjectionRequest(trace, idle)),
                "two_call": injection_sampler(InjectionRequest(trace, inject)),
                "shared_encoder": injection_sampler(InjectionRequest(trace, inject, shared_encoder=True))}
    seconds, results = {name: [] for name in samplers}, {}
    for _ in range(ROUNDS + 1):
        for name, sampler in samplers.items():
            began = time.perf_counter()
            results[name] = guider_of(model, text).sample(noise, torch.zeros_like(noise), sampler, SIGMAS,
                                                          disable_pbar=True, seed=0)
            seconds[name].append(time.perf_counter() - began)
    middle = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    shares = {name: middle[name] / middle["plain"] for name in ("two_call", "shared_encoder", "idle")}
    difference = (results["idle"] - results["plain"]).abs().max().item()
    return {"figures": {**shares, "idle_difference": difference},
            "context": {"latents": f"{SIDE}x{SIDE}", "steps": len(SIGMAS) - 1, "rounds": ROUNDS,
                        "median_seconds": middle}}
