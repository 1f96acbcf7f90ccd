"""Tiny random models of the real topologies: SD1.5's and SDXL's U-Net with 32 channels, as the host's MODEL.

Every layer is initialised, those included that real training starts at zero, so that each part of the network
shows in its output. Needs an importable host: use the fixtures `tiny_sd15` and `tiny_sdxl`.
"""
from __future__ import annotations

from collections.abc import Callable

import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.supported_models
import torch
from comfy.ldm.flux.model import FluxParams
from comfy.patcher_extension import WrappersMP

CONTEXT = 64                            # channels of a text token
COMMON = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "use_checkpoint": False,
    "use_spatial_transformer": True, "legacy": False, "context_dim": CONTEXT,
    "use_temporal_attention": False, "use_temporal_resblock": False,
}
SD15 = COMMON | {
    "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "adm_in_channels": None,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "use_linear_in_transformer": False,
}
SDXL = COMMON | {
    "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4],
    "adm_in_channels": 2816, "num_classes": "sequential",
    "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "use_linear_in_transformer": True,
}


def initialise(module: torch.nn.Module, seed: int) -> None:
    """Random values for every parameter, scaled so that activations neither vanish nor grow."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            noise *= parameter[0].numel() ** -0.5
        elif name.endswith("weight"):
            noise = 1 + 0.1 * noise         # scale of a norm
        else:
            noise *= 0.1
        parameter.data = noise.to(parameter.dtype)
        parameter.requires_grad_(False)


def patcher_around(config, seed: int, disable_dynamic: bool = False):
    """A MODEL around a new network of `config`, on the host's devices; newer hosts ask for one that is not dynamic."""
    model = config.get_model({}, "", device=torch.device("cpu")).eval()
    initialise(model.diffusion_model, seed)
    kind = comfy.model_patcher.ModelPatcher
    make = kind if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", kind)
    devices = comfy.model_management
    patcher = make(model, devices.get_torch_device(), devices.unet_offload_device())
    patcher.cached_patcher_init = patcher_around, (config, seed)        # how newer hosts load it again
    return patcher


def tiny_sd15(dtype: torch.dtype = torch.float32, seed: int = 0, **changes):
    """A MODEL of SD1.5's topology; `changes` replace entries of the U-Net's configuration."""
    config = comfy.supported_models.SD15(SD15 | changes)
    config.set_inference_dtype(dtype, None)
    return patcher_around(config, seed)


def tiny_sdxl(dtype: torch.dtype = torch.float32, seed: int = 0, **changes):
    """A MODEL of SDXL's topology, its ten-deep transformers cut to two unless `changes` say otherwise."""
    short = {"transformer_depth": [0, 0, 1, 1, 2, 2], "transformer_depth_middle": 2,
             "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2]}
    config = comfy.supported_models.SDXL(SDXL | short | changes)
    config.unet_config["num_head_channels"] = 16
    config.set_inference_dtype(dtype, None)
    return patcher_around(config, seed)


def tiny_flux(seed: int = 0):
    """A MODEL of Flux's topology, which is no U-Net: two blocks of 32 channels."""
    config = comfy.supported_models.Flux({
        "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 1280,
        "context_in_dim": CONTEXT, "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1,
        "depth_single_blocks": 1, "axes_dim": [4, 6, 6], "theta": 10000, "qkv_bias": True, "guidance_embed": False}
        | ({"txt_ids_dims": []} if "txt_ids_dims" in FluxParams.__dataclass_fields__ else {}))
    config.set_inference_dtype(torch.float32, None)
    return patcher_around(config, seed)


def as_flow(model):
    """A clone of the MODEL that samples as flow models do."""
    sampling = comfy.model_sampling
    kind = type("Flow", (sampling.ModelSamplingDiscreteFlow, sampling.CONST), {})
    model = model.clone()
    model.add_object_patch("model_sampling", kind(model.model.model_config))
    return model


def with_lora(model, endings: tuple[str, ...] = ("to_q.weight", "to_v.weight")):
    """A clone of the MODEL with weights that the host merges where they fit, and adds on the fly where they do not."""
    model = model.clone()
    generator = torch.Generator().manual_seed(9)
    model.add_patches({name: (torch.randn(weight.shape, generator=generator) * weight.std(),)
                       for name, weight in model.model.state_dict().items() if name.endswith(endings)}, 0.3)
    return model


def watch_loading(model, states: list):
    """A clone of the MODEL that notes in each call whether it is loaded in part and has patches not merged."""
    watched = model.clone()
    watched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", lambda executor, *args, **kwargs: (
        states.append((model.model.model_lowvram, model.lowvram_patch_counter() > 0)) or executor(*args, **kwargs)))
    return watched


def leave_room_for_half(monkeypatch, model) -> None:
    """From now on the host loads half of the MODEL and keeps the rest elsewhere: on a CPU it would load all of it."""
    comfy.model_management.unload_all_models()
    load, room = comfy.model_patcher.ModelPatcher.partially_load, model.model_size() // 2
    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "partially_load",
                        lambda self, device, extra_memory=0, **kwargs: load(
                            self, device, min(extra_memory, room - self.loaded_size()), **kwargs))


def conditioning(seed: int, tokens: int = 77, width: int = CONTEXT, **settings) -> list:
    """A CONDITIONING of random text [1, tokens, width], fit for SDXL too; `settings` as the host names them."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, tokens, width, generator=generator)
    return [[text, {"pooled_output": torch.randn(1, 1280, generator=generator), **settings}]]


def latent(frames: int, height: int = 16, width: int = 16) -> dict[str, torch.Tensor]:
    """An empty LATENT of `frames` pictures."""
    return {"samples": torch.zeros(frames, 4, height, width)}


def sample(model, frames: int, *, steps: int = 2, cfg: float = 4.0, seed: int = 0, sampler: str = "euler",
           scheduler: str = "normal", positive: list | None = None, negative: list | None = None,
           size: tuple[int, int] = (16, 16), callback: Callable | None = None) -> torch.Tensor:
    """What KSampler does with `model`; returns latents [frames, 4, height, width]."""
    empty = latent(frames, *size)["samples"]
    noise = comfy.sample.prepare_noise(empty, seed)
    return comfy.sample.sample(model, noise, steps, cfg, sampler, scheduler, positive or conditioning(1),
                               negative or conditioning(2), empty, callback=callback, disable_pbar=True, seed=seed)
