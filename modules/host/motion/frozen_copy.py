"""A U-Net of one's own: a copy of a MODEL's, to be trained on and thrown away. The MODEL is only read."""
from __future__ import annotations

import functools
from contextlib import ExitStack, nullcontext
from dataclasses import replace

import comfy.model_management
import comfy.ops
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...data.encoded import Text
from ...motion.module import MotionModule
from ...motion.total_loss import Features
from ..attention import attend
from ..weights import frozen_unet, size_vector
from .apply import MotionRun, motion_options, splice
from .splice import MotionSlot, pooled_groupnorm

H_LAYER = -1                # of the bottleneck's two residual layers: HARIVO's DC loss reads the output of the last
WATCHED_ATTENTIONS = 2      # of the decoder, the last ones: HARIVO's TRS loss as DPIDM has it


class FrozenCopy:
    """The copy with a motion module in it, as a predictor of clips.

    Args:
        model: the MODEL; read, never written.
        module: trainable, fp32; moved to the host's device.
        frames: at once, of each clip; a call may bring another number unless norms are pooled or features watched.
        low_precision: keep the frozen matrices in bfloat16; autocast is the caller's.
        gradient_checkpointing: recompute each block's inside in the backward pass instead of keeping it.
        watch: keep what HARIVO's losses look at in `features`, anew in every pass.
    """

    def __init__(self, model, module: MotionModule, frames: int, low_precision: bool = False,
                 gradient_checkpointing: bool = True, watch: bool = False):
        self.device = comfy.model_management.get_torch_device()
        self.base = model.model         # asked for its latent factor and its size embedding
        self.run = MotionRun(frames=frames)
        self.unet = frozen_unet(model, low_precision)
        with torch.inference_mode(False):
            self.module = module.to(self.device)
        if module.config.groupnorm == "pooled":
            self.pooled = ExitStack()       # held as long as the copy: a recomputation needs these norms too
            self.pooled.enter_context(pooled_groupnorm(self.unet, frames))
        splice(self.unet, module)
        if gradient_checkpointing:
            recompute_in_backward(self.unet)
        self.watched = WatchedFeatures(self.unet, frames) if watch else None

    def __call__(self, x: Tensor, t: Tensor, text: Text, frame_indices: Tensor | None = None) -> Tensor:
        """x [B, F, 4, h, w], t [B], B texts -> what the model predicts, of x's shape.

        frame_indices [F]: of these frames in their clips, None = the first F.
        """
        frames = x.shape[1]
        y = size_vector(self.base, text.pooled, *x.shape[-2:])
        run = replace(self.run, frames=frames, frame_indices=frame_indices)
        options = motion_options(run) | {"optimized_attention_override": attend}
        times = t.float().repeat_interleave(frames)                             # [(b f)]
        context = text.tokens.to(x).repeat_interleave(frames, dim=0)            # [(b f), L, D]
        indices = torch.arange(frames) if frame_indices is None else frame_indices
        seconds = indices.to(x.device) / self.module.config.fps
        with self.watched or nullcontext():
            predicted = self.unet(
                self.module.map_noise(x.flatten(0, 1), times, frames),          # [(b f), 4, h, w]
                times, self.module.add_tokens(context, seconds),
                y=None if y is None else y.to(x).repeat_interleave(frames, dim=0),
                transformer_options=options)
        return predicted.unflatten(0, x.shape[:2])

    def features(self) -> Features:
        """What HARIVO's losses look at, of the last pass. Needs `watch`."""
        return self.watched.features()

    def latents_in(self, latents: Tensor) -> Tensor:
        """The VAE's latents -> the model's, e.g. times 0.18215."""
        return self.base.process_latent_in(latents)

    def latents_out(self, latents: Tensor) -> Tensor:
        """The inverse of `latents_in`."""
        return self.base.process_latent_out(latents)


class WatchedFeatures:
    """Captures features of a U-Net inside a `with` block: bottleneck, and queries and keys of the last self-attentions.

    Outside of the block nothing is captured, so that a recomputation in the backward pass changes nothing.
    """

    def __init__(self, unet: nn.Module, frames: int):
        self.frames, self.capturing, self.captured = frames, False, {}
        blocks = [block for part in unet.output_blocks for layer in part if isinstance(layer, SpatialTransformer)
                  for block in layer.transformer_blocks]
        self.attentions = [block.attn1 for block in blocks[-WATCHED_ATTENTIONS:]]
        self.watch_output("h", [layer for layer in unet.middle_block if isinstance(layer, ResBlock)][H_LAYER])
        for number, attention in enumerate(self.attentions):
            self.watch_output(f"q{number}", attention.to_q)
            self.watch_output(f"k{number}", attention.to_k)

    def watch_output(self, name: str, layer: nn.Module) -> None:
        def capture(_, inputs, output):
            if self.capturing:
                self.captured[name] = output

        layer.register_forward_hook(capture)

    def __enter__(self):
        self.capturing = True

    def __exit__(self, *_):
        self.capturing = False

    def features(self) -> Features:
        """Of the last pass. h [B, F, C]; q and k [B, F, heads, N, d]."""
        def heads(name: str, attention: nn.Module) -> Tensor:
            split = self.captured[name].unflatten(-1, (attention.heads, -1)).transpose(1, 2)    # [(B F), heads, N, d]
            return split.unflatten(0, (-1, self.frames))

        return Features(self.captured["h"].mean((2, 3)).unflatten(0, (-1, self.frames)),
                        [(heads(f"q{number}", attention), heads(f"k{number}", attention))
                         for number, attention in enumerate(self.attentions)])


def recompute_in_backward(unet: nn.Module) -> None:
    """Gradient checkpointing: keep only the inputs of residual, attention and motion layers."""
    for layer in unet.modules():
        if isinstance(layer, (ResBlock, SpatialTransformer, MotionSlot)):
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False,
                                              preserve_rng_state=False)     # nothing random inside
