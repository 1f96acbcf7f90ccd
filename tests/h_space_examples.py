"""Runs on a tiny random model that read or replace h-space. Needs a booted host."""
from __future__ import annotations

from dataclasses import replace

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP

from frozen_diffusion.modules.host.hspace.sampling import InjectionRequest, injection_sampler
from frozen_diffusion.modules.hspace.steps import InjectionSettings
from frozen_diffusion.modules.seeding import stream
from testhost.models import conditioning

SIZE = 16
QUICK = {"num_res_blocks": [1], "channel_mult": [1], "transformer_depth": [0], "transformer_depth_middle": 0,
         "transformer_depth_output": [0, 0]}        # a U-Net for runs of many steps: changes of testhost's SD1.5
PLAIN = InjectionSettings(t_boost=-1, omega=0.0)


def guider(model, cfg=1.0, positive=None):
    made = comfy.samplers.CFGGuider(model)
    made.set_conds(positive or conditioning(1), conditioning(2))
    made.set_cfg(cfg)
    return made


def levels(model, steps=5):
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)


def run(model, sampler, cfg=1.0, steps=5, batch=1, start="noise", seed=5, positive=None):
    noise = torch.randn(batch, 4, SIZE, SIZE, generator=stream("h-space noise", start))
    return guider(model, cfg, positive).sample(noise, torch.zeros_like(noise), sampler, levels(model, steps),
                                               disable_pbar=True, seed=seed)


def record(comfy_host, model, cfg=1.0, steps=5, batch=1, start="noise", deep_skips=0, sampler=None, positive=None,
           by=None, **more):
    """(samples, trace) of an Euler run through the node; `by` a guider, None: CFG; `more` of the node's inputs."""
    noise = torch.randn(batch, 4, SIZE, SIZE, generator=stream("h-space noise", start))

    class Noise:
        seed = 5

        def generate_noise(self, latent):
            return noise

    output, trace, _ = comfy_host.run(
        "FrozenRecordHSpace", noise=Noise(), guider=by or guider(model, cfg, positive),
        sampler=sampler or comfy_sampler("euler"), sigmas=levels(model, steps),
        latent_image={"samples": torch.zeros_like(noise)}, deep_skips=deep_skips, **more)
    return output["samples"], trace


def injected(trace, settings=PLAIN, gamma_skips=0.0, **request):
    return injection_sampler(InjectionRequest(trace, replace(settings, gamma_skips=gamma_skips), **request))


def comfy_sampler(name):
    return comfy.samplers.sampler_object(name)


def with_hook(model, seen):
    """The MODEL with a forward hook on the middle block's last layer while it samples: what the tap should see."""
    model = model.clone()

    def wrapper(executor, *args, **kwargs):
        handle = executor.class_obj.middle_block[-1].register_forward_hook(
            lambda _, inputs, output: seen.append(output.clone()))
        try:
            return executor(*args, **kwargs)
        finally:
            handle.remove()

    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "hook", wrapper)
    return model
