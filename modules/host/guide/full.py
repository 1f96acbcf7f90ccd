"""The full guide: a trainable copy of the base's encoder and middle block with an output for every skip (guide_model.md
2.3), ControlNet's design without a hint; g joins the embedding of the timestep.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel, forward_timestep_embed, timestep_embedding
from torch import Tensor, nn

from ...guide.networks import Walk, anchor, on_axis, sinusoids, two_layers
from ...guide.shape import GuideShape
from ..attention import attend

PARTS = ("time_embed", "label_emb", "input_blocks", "middle_block")         # of the base's U-Net


class FullGuide(nn.Module):
    """As `TinyGuide`: latents, timestep, g and text in, a residual for every skip and for the middle block out.

    Args:
        shape: of the base.
        unet: settings of the base's U-Net, by the host's names.
        differentiable: attention with a derivative, for a training.
    """

    def __init__(self, shape: GuideShape, unet: Mapping[str, Any], operations, differentiable: bool = False, dtype=None,
                 device=None):
        super().__init__()
        base = UNetModel(**{**unet, "dtype": dtype}, device=device, operations=operations)
        for name in PARTS:
            if getattr(base, name, None) is not None:
                setattr(self, name, getattr(base, name))
        self.channels, width = base.model_channels, 4 * base.model_channels
        factory = {"dtype": dtype, "device": device}
        self.scale = two_layers(self.channels, width, operations, **factory)
        self.outputs = nn.ModuleList([operations.Conv2d(channels, channels, 1, **factory)
                                      for channels in [*shape.skips, shape.middle]])
        self.options = {"optimized_attention_override": attend} if differentiable else {}

    def read_text(self, context: Tensor, negative: None = None) -> Tensor:
        """The text itself: its keys and values are made inside of the copied blocks. It reads no negative prompt."""
        return context

    def walk(self, x: Tensor, t: Tensor, g: Tensor, text: Tensor, vector: Tensor | None = None) -> Walk:
        """See `TinyGuide.walk`."""
        emb = self.time_embed(timestep_embedding(t, self.channels).to(x.dtype))
        emb = emb + self.scale(sinusoids(on_axis(g), self.channels).to(x.dtype))
        if vector is not None and hasattr(self, "label_emb"):
            emb = emb + self.label_emb(vector.to(x.dtype))

        def through(block: nn.Module, h: Tensor) -> Tensor:
            return forward_timestep_embed(block, h, emb, text, dict(self.options))

        return Walk(x, anchor(g).to(x.dtype), self.outputs,
                    lambda number, h, feature: through(self.input_blocks[number], h),
                    lambda h: through(self.middle_block, h))

    def forward(self, *inputs) -> list[Tensor]:
        """See `walk` and `Walk.residuals`."""
        return self.walk(*inputs).residuals()


def fresh_full_guide(shape: GuideShape, unet: nn.Module, settings: Mapping[str, Any], operations,
                     output_std: float) -> FullGuide:
    """A full guide to train, fp32: the base's weights, outputs as small as asked for, no word of g yet."""
    guide = FullGuide(shape, settings, operations, differentiable=True, dtype=torch.float32)
    state = unet.state_dict()
    own = {name: state[name].float().cpu().clone() for name in guide.state_dict() if name in state}
    guide.load_state_dict(own, strict=False)
    for layer in guide.scale:
        if isinstance(layer, nn.Linear):
            nn.Linear.reset_parameters(layer)
    for layer in (*guide.outputs, guide.scale[-1]):
        nn.init.zeros_(layer.bias)
        nn.init.zeros_(layer.weight)
    for layer in guide.outputs:
        if output_std:
            nn.init.normal_(layer.weight, std=output_std)
    return guide
