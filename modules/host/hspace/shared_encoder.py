"""One pass of the encoder for two predictions: the U-Net's decoder makes both, plain and injected, in one batch.

The method's released code shares the encoder and runs the decoder twice. The decoder is two thirds of a U-Net of
SD1.5's size, and one batch of both costs less than two passes. It repeats the decoder half of the host's forward, so it
is a switch, and a test compares it with two whole passes.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import (
    UNetModel,
    apply_control,
    forward_timestep_embed,
    timestep_embedding,
)
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...hspace.trace import TraceError
from .capture import HSpaceTap

KEY = "frozen_shared_encoder"
Patch = Callable[[Tensor, Tensor, dict], tuple[Tensor, Tensor]]         # of the host's decoder blocks


class EncoderDone(Exception):
    """Ends the host's forward where its decoder begins."""


class SharedEncoder:
    """The innermost wrapper of the U-Net's calls in one run.

    Modes: OFF; BOTH hands out a call's plain output and keeps the injected one; REPLAY hands out what was kept, in
    order. A call in mode BOTH takes the memory of a decoder of twice its rows.

    Args:
        inject: the patch that injects, one of those in the options; it acts on the injected rows only.
    """

    OFF, BOTH, REPLAY = "off", "both", "replay"
    of_run = True               # see `with_first_patch`

    def __init__(self, inject: Patch):
        self.inject = inject
        self.mode, self.kept = self.OFF, []
        self.h: Tensor | None = None
        self.skips: list[Tensor] = []

    def add_to(self, options: dict) -> dict:
        """Put wrapper and patches into the host's options (a copy already)."""
        inner = options.setdefault("transformer_options", {})
        wrappers = inner.setdefault("wrappers", {}).setdefault(WrappersMP.DIFFUSION_MODEL, {})
        wrappers[KEY] = [self.around_unet]
        for name, patch in (("input_block_patch_after_skip", self.keep_skip), ("output_block_patch", self.stop)):
            inner["patches"][name] = [patch, *inner["patches"].get(name, [])]
        return options

    def keep_skip(self, h: Tensor, options: dict) -> Tensor:
        """The encoder's patch, before all others: what the host has just put aside for its decoder."""
        if self.mode == self.BOTH:
            self.skips.append(h)
        return h

    def stop(self, h: Tensor, skip: Tensor, options: dict) -> tuple[Tensor, Tensor]:
        """The decoder's patch, before all others. `skip` is the last one, with the control that belongs to it."""
        if self.mode == self.BOTH:
            self.h, self.skips[-1] = h, skip
            raise EncoderDone
        return h, skip

    def around_unet(self, executor, x, timesteps, context, y, control, transformer_options, *args, **kwargs):
        """DIFFUSION_MODEL, see the host."""
        if self.mode == self.REPLAY and self.kept:
            of, injected = self.kept.pop(0)
            if torch.equal(of, x):          # else of a guidance whose latent follows from the prediction (SAG)
                return injected
        self.h, self.skips = None, []
        try:
            output = executor(x, timesteps, context, y, control, transformer_options, *args, **kwargs)
        except EncoderDone:
            plain, injected = self.decode(executor.class_obj, x, timesteps, context, y, control, transformer_options,
                                          kwargs).chunk(2)
            self.kept.append((x.clone(), injected))
            return plain
        finally:
            self.h, self.skips = None, []
        if self.mode == self.BOTH:
            raise TraceError("The decoder was not seen: a node replaces the U-Net's forward. Switch "
                             "shared_encoder off.")
        if self.mode == self.OFF:
            self.kept.clear()
        return output

    def decode(self, unet: UNetModel, x, timesteps, context, y, control, transformer_options, kwargs) -> Tensor:
        """The decoder's output for plain rows, then injected ones, with the patches of `transformer_options`."""
        patches = transformer_options.get("patches", {})
        emb = unet.time_embed(timestep_embedding(timesteps, unet.model_channels, repeat_only=False).to(x.dtype))
        for patch in patches.get("emb_patch", []):
            emb = patch(emb, unet.model_channels, transformer_options)
        if unet.num_classes is not None:
            emb = emb + unet.label_emb(y)
        video = {"time_context": twice(kwargs.get("time_context")),
                 "image_only_indicator": twice(kwargs.get("image_only_indicator")),
                 "num_video_frames": kwargs.get("num_video_frames", unet.default_num_video_frames)}
        h, emb, context, rows = twice(self.h), twice(emb), twice(context), len(x)
        options = dict(transformer_options)                     # of the doubled batch: every chunk comes twice
        options.update({name: 2 * list(options[name]) for name in ("cond_or_uncond", "uuids") if name in options})
        for number, block in enumerate(unet.output_blocks):
            transformer_options["block"] = options["block"] = ("output", number)
            skip = self.skips.pop()
            skip = twice(apply_control(skip, control, "output") if number else skip)
            for patch in patches["output_block_patch"][1:]:     # without `stop`
                if patch is self.inject:
                    changed = patch(h[rows:], skip[rows:], transformer_options)
                    h, skip = (torch.cat([both[:rows], new]) for both, new in zip((h, skip), changed, strict=True))
                elif isinstance(patch, HSpaceTap) and patch.injection is None:      # what records sees plain rows
                    patch(h[:rows], skip[:rows], transformer_options)
                else:
                    h, skip = patch(h, skip, options)
            shape = self.skips[-1].shape if self.skips else None
            h = forward_timestep_embed(block, torch.cat([h, skip], 1), emb, context, options, shape, **video)
        return unet.out(h.type(x.dtype))


def twice(x: Tensor | None) -> Tensor | None:
    return None if x is None else torch.cat([x, x])
