"""Training only a low-rank change of the temporal attentions: less memory, and less is forgotten of a good module."""
from __future__ import annotations

import re

from torch import Tensor

from ..training.lora import LoRASet, attach, child_name
from .module import MotionModule
from .transformer import TemporalAttention

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
PARAMETRIZED = re.compile(r"motion\.(.+)\.parametrizations\.weight\.0\.(down|up)(?![^/])")


def attention_projections(module: MotionModule) -> list[str]:
    """Paths of all linear layers of the temporal attentions, in the order in which the U-Net meets them."""
    paths = {child: path for path, child in module.named_modules()}
    return [f"{paths[child]}.{projection}"
            for part in ("down", "mid", "up") for layer in module.layers(part)
            for child in layer.transformer.modules() if isinstance(child, TemporalAttention)
            for projection in PROJECTIONS]


def adapt_attentions(module: MotionModule, rank: int, seed: int = 0) -> LoRASet:
    """Freeze the temporal layers and put LoRAs of this rank beside every projection of their attentions.

    HARIVO's other parts stay trainable. torch's random state is left as it was.
    """
    for part in ("down", "mid", "up"):
        for layer in module.layers(part):
            layer.transformer.requires_grad_(False)
    return attach(module, {path: path for path in attention_projections(module)}, rank, seed=seed)


def plain_state(module: MotionModule, loras: LoRASet | None = None) -> dict[str, Tensor]:
    """The state_dict on the CPU, with the changes of the LoRAs added to the weights."""
    state = module.state_dict() if loras is None else loras.merged(module.state_dict())
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def current_key(key: str) -> str:
    """A key of a training's checkpoint as it is now.

    Once the factors were parametrizations of the module's weights: `weight/motion.<path>.parametrizations.weight.0.up`
    is `weight/lora.<path>.up` of a LoRASet, and so for average and optimizer.
    """
    return PARAMETRIZED.sub(lambda match: f"lora.{child_name(match[1])}.{match[2]}", key)
