"""Putting the layers of a motion module into a U-Net and taking them out again, exactly.

A spliced layer is an extra child of one of the U-Net's blocks. It owns no weights and the other children keep
their names, so the U-Net's state_dict is the same with and without it.
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import Tensor, nn

from ...motion.module import DOWN_LAYERS, UP_LAYERS, MotionConfig, MotionLayer, MotionModule
from ...motion.motion_lora import MotionLoRAs
from ..clips import MOTION

CHILD = "frozen_motion"         # name of the extra child in a block of the U-Net
EVER = (float("inf"), 0.0)


@dataclass(frozen=True)
class MotionRun:
    """How the layers act in one run of the U-Net; handed over in transformer_options["frozen_motion"].

    Attributes:
        frames: per clip. 0, only before the U-Net is called: all rows of a chunk are one clip.
        strength: how much of a layer's change is added; 0 leaves the features untouched, bit for bit.
        sigmas: (highest, lowest) noise level at which the layers act.
        pooled: whether the U-Net's ResBlock norms and final norm see all frames of a clip at once.
        frame_indices: [frames], which frames of their clip these are; None = the first ones.
        loras: the motion LoRAs of the run, once they are beside their layers.
    """
    frames: int
    strength: float = 1.0
    sigmas: tuple[float, float] = EVER
    pooled: bool = False
    frame_indices: Tensor | None = None
    loras: list[MotionLoRAs] = field(default_factory=list)

    @property
    def active(self) -> bool:
        return self.strength != 0 and self.frames > 1


class MotionSlot(nn.Module):
    """One layer at its place. The layer's weights belong to the motion module, not to the U-Net."""

    def __init__(self, layer: MotionLayer):
        super().__init__()
        self.layer = layer      # a tuple, so torch registers no child

    def forward(self, x: Tensor, run: MotionRun | None = None) -> Tensor:
        """x [(n b f), C, H, W]; returns the same shape."""
        if run is None:
            raise RuntimeError("A motion layer was called without settings. Call the U-Net with the "
                               "options of `motion_options`, or sample through the node Apply Motion Module.")
        if not run.active:
            return x
        y = self.layer(x, run.frames, run.frame_indices)
        return y if run.strength == 1 else torch.lerp(x, y, run.strength)


def call_slot(slot: MotionSlot, x: Tensor, emb, context, transformer_options: dict, *_) -> Tensor:
    """The host's forward_timestep_embed_patch: how a block of the U-Net calls an extra child."""
    return slot(x, transformer_options.get(MOTION))


def motion_options(run: MotionRun) -> dict[str, object]:
    """transformer_options for calling a spliced U-Net by hand, as a trainer does."""
    return {MOTION: run, "patches": {"forward_timestep_embed_patch": [(MotionSlot, call_slot)]}}


def insertion_points(unet: nn.Module) -> dict[str, list[tuple[nn.Module, str, int]]]:
    """Where the layers belong: (block, name of the child to follow, channels) for "down", "mid" and "up".

    After the last SpatialTransformer of a block, else after its first ResBlock; blocks with neither are
    skipped. So a layer always comes before an Upsample, and in the middle before the second ResBlock.
    """
    def place_in(block: nn.Module) -> tuple[nn.Module, str, int] | None:
        resblocks = [(name, child) for name, child in block.named_children() if isinstance(child, ResBlock)]
        if not resblocks:
            return None
        spatial = [name for name, child in block.named_children() if isinstance(child, SpatialTransformer)]
        return block, spatial[-1] if spatial else resblocks[0][0], resblocks[0][1].out_channels

    return {part: [place for place in map(place_in, blocks) if place] for part, blocks in parts(unet).items()}


def parts(unet: nn.Module) -> dict[str, list[nn.Module]]:
    """The U-Net's blocks by part. Some distilled models have no middle block."""
    return {"down": list(unet.input_blocks), "up": list(unet.output_blocks),
            "mid": [] if unet.middle_block is None else [unet.middle_block]}


def widths(config: MotionConfig) -> dict[str, list[int]]:
    """Channels of every layer of a motion module, in the order of `insertion_points`."""
    return {"down": [width for width in config.channels for _ in range(DOWN_LAYERS)],
            "mid": [config.channels[-1]] if config.mid else [],
            "up": [width for width in reversed(config.channels) for _ in range(UP_LAYERS)]}


def check_fit(unet: nn.Module, config: MotionConfig) -> None:
    """Raises ValueError if the layers do not fit the U-Net's insertion points one by one."""
    wanted = widths(config)
    for part, found in insertion_points(unet).items():
        channels = [width for *_, width in found]
        if wanted[part] != channels and (part != "mid" or wanted[part]):
            raise ValueError(f"The motion module has layers of width {wanted[part]} for the {part} blocks of "
                             f"the U-Net, which are {channels} wide. Use one made for this model.")


def splice(unet: nn.Module, module: MotionModule) -> None:
    """Put the layers of `module` into the U-Net; `unsplice` is the exact inverse.

    Raises ValueError if they do not fit, or if the U-Net already carries layers; it is untouched then.
    """
    if any(isinstance(part, MotionSlot) for part in unet.modules()):
        raise ValueError("This U-Net already carries motion layers. Take them out with unsplice first.")
    check_fit(unet, module.config)
    for part, found in insertion_points(unet).items():
        for (block, name, _), layer in zip(found, module.layers(part), strict=False):     # middle may be bare
            insert_after(block, name, MotionSlot(layer))


def unsplice(unet: nn.Module) -> None:
    """Take all motion layers out of the U-Net; does nothing where there are none."""
    for blocks in parts(unet).values():
        for block in blocks:
            block._modules.pop(CHILD, None)


def carries(unet: nn.Module, module: MotionModule) -> bool:
    """Whether the layers in the U-Net are those of `module`, all of them and no others."""
    slots = {part: [block._modules[CHILD] for block in blocks if CHILD in block._modules]
             for part, blocks in parts(unet).items()}
    return all([slot.layer.transformer for slot in found] == [layer.transformer for layer in module.layers(part)]
               for part, found in slots.items())


def insert_after(block: nn.Module, name: str, slot: MotionSlot) -> None:
    """Make `slot` the child that follows child `name`. A Sequential runs its children in this order."""
    children = block._modules
    names = list(children)
    children[CHILD] = slot
    for later in names[names.index(name) + 1:]:
        children[later] = children.pop(later)


class PooledNorm(nn.Module):
    """A GroupNorm whose statistics are taken over all frames of a clip."""

    def __init__(self, norm: nn.Module, frames: int):
        super().__init__()
        self.norm, self.frames = norm, frames

    def forward(self, x: Tensor) -> Tensor:
        """x [(n b f), C, H, W]; returns the same shape."""
        clips = x.unflatten(0, (-1, self.frames)).transpose(1, 2)               # [(n b), C, f, H, W]
        return self.norm(clips).transpose(1, 2).flatten(0, 1)


@contextmanager
def pooled_groupnorm(unet: nn.Module, frames: int) -> Iterator[None]:
    """Inside, the first norm of both halves of every ResBlock and the final norm are pooled over `frames`.

    AnimateDiff v1 was trained so: its U-Net runs these norms, and no others, on five-dimensional features.
    """
    blocks = [part for part in unet.modules() if isinstance(part, ResBlock)]
    holders = [half for block in blocks for half in (block.in_layers, block.out_layers)] + [unet.out]
    norms = [holder._modules["0"] for holder in holders]
    try:
        for holder, norm in zip(holders, norms, strict=True):
            holder._modules["0"] = PooledNorm(norm, frames)
        yield
    finally:
        for holder, norm in zip(holders, norms, strict=True):
            holder._modules["0"] = norm
