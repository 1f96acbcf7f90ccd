"""The host's U-Net up to one of its blocks as a function that can be differentiated: what the latent basis is computed
from. The block is the middle one, h-space, unless another is asked for.

The host prepares one call as it always does; it is recorded instead of run. Then a frozen copy in fp32 of the U-Net up
to this block is called with what was recorded: LoRAs are merged into it, attention and block patches act, the MODEL is
only read.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import comfy.model_management
import comfy.ops
import comfy.samplers
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel, forward_timestep_embed, timestep_embedding
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...basis.basis import MIDDLE
from ...basis.products import check_latent
from ..attention import attend, attend_plainly
from ..bottleneck import check_bottleneck
from ..calls import without_guidance
from ..clips import has_motion_module
from ..guiders import guider_of
from ..weights import PREFIX, merged_weights

CONTROLLED = ("input", "middle", "output")       # the host's names of where ControlNets and T2I-Adapters add
COPY_FACTOR = 2                    # times the copy's weights that are made free for it: weights and activations


@dataclass(frozen=True)
class RecordedCall:
    """What the host would have called the U-Net with, as plain fp32 tensors on the host's device.

    Attributes:
        x: [1, C, h, w] in the variance-preserving scale.
        held: [1, C', h, w] further channels of an inpainting model, which stay as they are; C' may be 0.
        control: what T2I-Adapters and ControlNets add, by CONTROLLED, each from the first block on.
        hooked: patches of weights by the hooks on the prompt, by key.
    """
    x: Tensor
    held: Tensor
    timesteps: Tensor
    context: Tensor
    y: Tensor | None
    control: Mapping[str, tuple[Tensor | None, ...]]
    options: Mapping
    hooked: Mapping[str, list] = field(default_factory=dict)


class OneCall(comfy.samplers.Sampler):
    """A sampler that asks the model once, at the first noise level, and gives its latent back."""

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
               disable_pbar=False):
        at = latent_image.new_full((len(latent_image),), float(sigmas[0]))
        model_wrap(latent_image, at, model_options=extra_args["model_options"], seed=extra_args.get("seed"))
        return latent_image


def record_call(model, positive, latent: Tensor, sigma: float) -> RecordedCall:
    """The U-Net's inputs for a LATENT's samples [1, C, h, w] at noise level `sigma`, without guidance.

    Raises ValueError for models, latents and noise levels that have no latent basis.
    """
    check_encodable(model, latent, sigma)
    seen = []

    def listen(executor, x, timesteps, context, y=None, control=None, transformer_options=None, *args, **kwargs):
        parts = {side: tuple(None if part is None else _plain(part) for part in reversed((control or {}).get(side, [])))
                 for side in CONTROLLED}
        options = {key: value for key, value in transformer_options.items() if key != "wrappers"}
        channels = latent.shape[1]
        seen.append(RecordedCall(_plain(x[:, :channels]), _plain(x[:, channels:]), _plain(timesteps), _plain(context),
                                 None if y is None else _plain(y), parts, options,
                                 guider.model_patcher.get_combined_hook_patches(guider.model_patcher.current_hooks)))
        return torch.zeros_like(x[:, :channels])

    model = without_guidance(model)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "frozen_record_call", listen)
    guider = guider_of(model, positive)     # newer hosts give it another patcher than `model` where there are hooks
    guider.sample(torch.zeros_like(latent), latent, OneCall(), torch.tensor([sigma, 0.0]), disable_pbar=True, seed=0)
    if len(seen) != 1:
        raise ValueError(f"The U-Net was called {len(seen)} times for one latent; a latent basis needs one prompt "
                         "for the whole picture. Take regional prompts and wrappers that call it again away.")
    return seen[0]


def check_encodable(model, latent: Tensor, sigma: float) -> None:
    """Raises ValueError unless a latent basis is defined for these."""
    check_bottleneck(model)
    if has_motion_module(model):
        raise ValueError("The MODEL has a motion module, which mixes the frames; a latent basis belongs to one "
                         "picture. Connect the MODEL from before Apply Motion Module.")
    if len(latent) != 1:
        raise ValueError(f"A latent basis belongs to one latent; a batch of {len(latent)} was given. Use Latent From "
                         "Batch, and one node for each.")
    check_latent(latent)
    sampling = model.get_model_object("model_sampling")
    least, most = float(sampling.sigma_min), float(sampling.sigma_max)
    if not 0.99 * least <= sigma <= 1.01 * most:
        raise ValueError(f"The latent's noise level is {sigma:.4g}; it must be between {least:.4g} and {most:.4g}. "
                         "Connect the sigmas that are still to come, e.g. low_sigmas of SplitSigmas, and the latent "
                         "that was sampled down to there, not a finished picture.")


@dataclass(frozen=True)
class Encoder:
    """f: x [1, C, h, w] -> h [1, C', h', w'], the output of the whole block, before what others add behind it."""
    unet: UNetModel             # of `copy_encoder`
    call: RecordedCall
    block: str = MIDDLE

    @property
    def x(self) -> Tensor:
        """The recorded latent."""
        return self.call.x

    def fused(self, x: Tensor) -> Tensor:
        """f with torch's fused attention: fast backward, no forward mode."""
        return self.run(x, attend)

    def plain(self, x: Tensor) -> Tensor:
        """f with attention written out, so that forward mode works; by chunks of queries, since no graph is kept."""
        return self.run(x, attend_plainly)

    def run(self, x: Tensor, attention: Callable) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        wanted = block_id(self.block)
        return next(h for place, h in self.outputs(x, attention) if place == wanted)

    def outputs(self, x: Tensor, attention: Callable) -> Iterator[tuple[tuple[str, int], Tensor]]:
        """(block id, output) of every block, in the order of the host's forward."""
        unet, call = self.unet, self.call
        h, skips = torch.cat([x, call.held], 1), []
        options = {**call.options, "optimized_attention_override": attention, "transformer_index": 0,
                   "original_shape": list(h.shape)}             # what the host's forward sets, for patches
        patches = options.get("patches", {})
        times = timestep_embedding(call.timesteps, unet.model_channels, repeat_only=False)
        emb = unet.time_embed(times.to(x.dtype))
        for patch in patches.get("emb_patch", []):
            emb = patch(emb, unet.model_channels, options)
        if unet.num_classes is not None:
            emb = emb + unet.label_emb(call.y)
        for number, block in enumerate(unet.input_blocks):
            options["block"] = ("input", number)
            h = forward_timestep_embed(block, h, emb, call.context, options)
            yield ("input", number), h
            h = self.controlled(h, "input", number)
            for patch in patches.get("input_block_patch", []):
                h = patch(h, options)
            skips.append(h)
            for patch in patches.get("input_block_patch_after_skip", []):
                h = patch(h, options)
        options["block"] = ("middle", 0)
        h = forward_timestep_embed(unet.middle_block, h, emb, call.context, options)
        yield ("middle", 0), h
        h = self.controlled(h, "middle", 0)
        for number, block in enumerate(unet.output_blocks):
            options["block"] = ("output", number)
            skip = self.controlled(skips.pop(), "output", number)
            for patch in patches.get("output_block_patch", []):
                h, skip = patch(h, skip, options)
            shape = skips[-1].shape if skips else None
            h = forward_timestep_embed(block, torch.cat([h, skip], 1), emb, call.context, options, shape)
            yield ("output", number), h

    def controlled(self, h: Tensor, side: str, number: int) -> Tensor:
        """h with what ControlNets and T2I-Adapters add there."""
        parts = self.call.control[side]
        return h if number >= len(parts) or parts[number] is None else h + parts[number]


def block_id(block: str) -> tuple[str, int]:
    """The host's id of a block of BLOCKS: "output 3" -> ("output", 3), "middle" -> ("middle", 0)."""
    side, _, number = block.partition(" ")
    return side, int(number or 0)


def check_block(model, block: str) -> None:
    """Raises ValueError for a block that the MODEL's U-Net does not have."""
    unet, (side, number) = model.model.diffusion_model, block_id(block)
    blocks = {"input": unet.input_blocks, "middle": [unet.middle_block], "output": unet.output_blocks}
    if number >= len(blocks[side]):
        raise ValueError(f"block is {block}; the U-Net of this MODEL has {side} 0 to {side} {len(blocks[side]) - 1}.")


def copy_encoder(model, block: str = MIDDLE, hooked: Mapping[str, list] | None = None) -> UNetModel:
    """The MODEL's U-Net up to `block` in fp32 on the host's device, frozen; `hooked` of a call's hooks.

    Raises ValueError for a MODEL whose weights cannot be read (`merged_weights`).
    """
    config = {**model.model.model_config.unet_config, "dtype": torch.float32}
    with torch.inference_mode(False), torch.no_grad():
        unet = UNetModel(**config, device="meta", operations=comfy.ops.disable_weight_init)
        cut_after(unet, block)
        names = [PREFIX + name for name in unet.state_dict()]
        weights = merged_weights(model, names, hooked)
        unet.load_state_dict({key.removeprefix(PREFIX): weight for key, weight in weights.items()}, assign=True)
        device = comfy.model_management.get_torch_device()
        size = sum(weight.numel() * weight.element_size() for weight in unet.parameters())
        comfy.model_management.free_memory(COPY_FACTOR * size, device)
        unet = unet.to(device)
    return unet.eval().requires_grad_(False)


def cut_after(unet: UNetModel, block: str) -> None:
    """Take away what comes after a block."""
    side, number = block_id(block)
    unet.out, ends = torch.nn.Identity(), number + 1
    unet.output_blocks = unet.output_blocks[:ends] if side == "output" else torch.nn.ModuleList()
    if side == "input":
        unet.input_blocks, unet.middle_block = unet.input_blocks[:ends], torch.nn.Identity()


def _plain(x: Tensor) -> Tensor:
    """A clone outside of inference mode, in fp32, on the host's device."""
    with torch.inference_mode(False), torch.no_grad():
        return x.detach().to(comfy.model_management.get_torch_device(), torch.float32, copy=True)
