"""Training only a low-rank change of the temporal attentions: less memory, and less is forgotten of a good module."""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .module import MotionModule
from .transformer import TemporalAttention


class LowRankChange(nn.Module):
    """W -> W + up down; the identity at initialisation, because `up` starts at zero."""

    def __init__(self, outputs: int, inputs: int, rank: int):
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, inputs) / rank)
        self.up = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def adapt_attentions(module: MotionModule, rank: int, seed: int = 0) -> None:
    """Freeze the temporal layers but for a change of this rank on every projection of their attentions.

    HARIVO's other parts stay trainable. torch's random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in ("down", "mid", "up"):
            for layer in module.layers(part):
                layer.transformer.requires_grad_(False)
                attentions = [child for child in layer.transformer.modules() if isinstance(child, TemporalAttention)]
                for attention in attentions:
                    for linear in (attention.to_q, attention.to_k, attention.to_v, attention.to_out[0]):
                        change = LowRankChange(*linear.weight.shape, rank).to(linear.weight.device)
                        parametrize.register_parametrization(linear, "weight", change)


def plain_state(module: MotionModule) -> dict[str, Tensor]:
    """The state_dict on the CPU with the changes added to the weights, under the usual names."""
    state = module.state_dict()
    for name, child in module.named_modules():
        if parametrize.is_parametrized(child, "weight"):
            state = {key: value for key, value in state.items() if not key.startswith(f"{name}.parametrizations.")}
            state[f"{name}.weight"] = child.weight
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
