"""Spatial LoRAs on a frozen copy of the U-Net: which of its layers diffusers' names mean."""
from __future__ import annotations

from collections.abc import Mapping

import comfy.utils
from torch import nn

from ...training.lora import LoRASet, attach_factors
from ...training.lora_keys import Factors

ATTENTION = (".attn1.to_q", ".attn1.to_k", ".attn1.to_v", ".attn1.to_out.0",
             ".attn2.to_q", ".attn2.to_k", ".attn2.to_v", ".attn2.to_out.0")


def spatial_paths(model) -> dict[str, str]:
    """Paths in the host's U-Net of a MODEL by diffusers' names of the layers."""
    table = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    return {name.removesuffix(".weight"): path.removesuffix(".weight") for name, path in table.items()
            if name.endswith(".weight")}


def attention_paths(model, unet: nn.Module) -> dict[str, str]:
    """Of those the projections of all spatial attentions: where an appearance absorber stands (2.3)."""
    layers = dict(unet.named_modules())
    return {name: path for name, path in spatial_paths(model).items()
            if name.endswith(ATTENTION) and path in layers}


def attach_look(model, unet: nn.Module, factors: Mapping[str, Factors]) -> LoRASet:
    """A frozen spatial LoRA beside the layers of a frozen copy. Raises ValueError for layers that are not there."""
    return attach_factors(unet, spatial_paths(model), factors).requires_grad_(False)
