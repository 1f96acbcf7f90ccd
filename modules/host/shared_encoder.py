"""One pass of the encoder for two predictions: the U-Net's decoder runs once plainly and once with injection.

What the method's released code does. It repeats the decoder half of the host's forward, so it is a switch, and a test
compares it with two whole passes.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel, forward_timestep_embed, timestep_embedding
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..hspace.trace import TraceError

KEY = "frozen_shared_encoder"


class SharedEncoder:
    """The innermost wrapper of the U-Net's calls in one run.

    Modes: OFF; BOTH runs a call plainly and keeps the injected output; REPLAY hands out what was kept, in order.

    Args:
        with_injection: called with True before and False after the injected pass of the decoder.
    """

    OFF, BOTH, REPLAY = "off", "both", "replay"

    def __init__(self, with_injection: Callable[[bool], None]):
        self.with_injection = with_injection
        self.mode, self.kept = self.OFF, []
        self.h: Tensor | None = None
        self.skips: list[Tensor] = []

    def add_to(self, options: dict) -> dict:
        """Put wrapper and patch into the host's options (a copy already)."""
        inner = options.setdefault("transformer_options", {})
        wrappers = inner.setdefault("wrappers", {}).setdefault(WrappersMP.DIFFUSION_MODEL, {})
        wrappers[KEY] = [self.around_unet]
        patches = inner["patches"]["output_block_patch"]
        inner["patches"]["output_block_patch"] = [self.keep, *patches]
        return options

    def keep(self, h: Tensor, skip: Tensor, options) -> tuple[Tensor, Tensor]:
        """The decoder's patch: copies of what comes in, before anything else changes it."""
        if self.mode == self.BOTH and not options.get(KEY):
            if options["block"] == ("output", 0):
                self.h, self.skips = h.clone(), []
            self.skips.append(skip.clone())
        return h, skip

    def around_unet(self, executor, x, timesteps, context, y, control, transformer_options, *args, **kwargs):
        """DIFFUSION_MODEL, see the host."""
        if self.mode == self.REPLAY and self.kept and self.kept[0].shape[0] == len(x):
            return self.kept.pop(0)
        output = executor(x, timesteps, context, y, control, transformer_options, *args, **kwargs)
        if self.mode == self.BOTH:
            if self.h is None:
                raise TraceError("The decoder was not seen: a node replaces the U-Net's forward. Switch "
                                 "shared_encoder off.")
            self.with_injection(True)
            self.kept.append(self.decode(executor.class_obj, x, timesteps, context, y, transformer_options, kwargs))
            self.with_injection(False)
            self.h, self.skips = None, []
        elif self.mode == self.OFF:
            self.kept.clear()
        return output

    def decode(self, unet: UNetModel, x, timesteps, context, y, transformer_options, kwargs) -> Tensor:
        """The decoder from the kept features, with the patches of `transformer_options`. Control is in them already."""
        options = {**transformer_options, KEY: True, "transformer_index": transformers_before_decoder(unet)}
        patches = options.get("patches", {})
        emb = unet.time_embed(timestep_embedding(timesteps, unet.model_channels, repeat_only=False).to(x.dtype))
        for patch in patches.get("emb_patch", []):
            emb = patch(emb, unet.model_channels, options)
        if unet.num_classes is not None:
            emb = emb + unet.label_emb(y)
        video = {"time_context": kwargs.get("time_context"), "image_only_indicator": kwargs.get("image_only_indicator"),
                 "num_video_frames": kwargs.get("num_video_frames", unet.default_num_video_frames)}
        h = self.h
        for number, block in enumerate(unet.output_blocks):
            options["block"] = ("output", number)
            skip = self.skips[number]
            for patch in patches.get("output_block_patch", []):
                h, skip = patch(h, skip, options)
            shape = self.skips[number + 1].shape if number + 1 < len(self.skips) else None
            h = forward_timestep_embed(block, torch.cat([h, skip], 1), emb, context, options, shape, **video)
        return unet.out(h.type(x.dtype))


def transformers_before_decoder(unet: UNetModel) -> int:
    """How many spatial transformers the encoder and the middle block have: attention patches count them."""
    from comfy.ldm.modules.attention import SpatialTransformer
    encoder = [*unet.input_blocks, unet.middle_block or []]
    return sum(isinstance(layer, SpatialTransformer) for block in encoder for layer in block)
