"""A motion module: one temporal layer for every place in the U-Net, under the keys of AnimateDiff's files."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .frame_tokens import FrameTokens, with_frame_tokens
from .mapping import MappingNetwork
from .transformer import TemporalAttention, TemporalConv, TemporalTransformer, init_positional_attention

DOWN_LAYERS, UP_LAYERS = 2, 3       # per level, in SD1.5 and SDXL alike


@dataclass(frozen=True)
class MotionConfig:
    """What a motion module is, as far as its weights and its file tell.

    Attributes:
        family: of the image model: "sd15" (four levels) or "sdxl" (three).
        channels: width of every level, from the outermost inwards, e.g. (320, 640, 1280, 1280).
        mid: whether there is a layer at the bottleneck.
        max_frames: longest clip that has positional encoding.
        temporal_convolution: whether a TemporalConv comes before every transformer.
        kind: "animatediff v1" | "animatediff v2" | "animatediff v3" | "animatediff sdxl" | "hotshotxl" |
            "animatelcm" | "pia" | "frozen" (made here).
        beta_schedule: noise schedule it was trained with, a name in modules/host/motion/schedule.py, or
            "keep" for the image model's own.
        groupnorm: "pooled" when the image model's ResBlock norms and final norm take their statistics over
            all frames of a clip (AnimateDiff v1), else "per frame".
        fps: frames per second it was trained with.
        frames: of the clips it was trained on, 0 = not known.
        mapping_width: inner channels of the mapping network, 0 = there is none.
        frame_tokens: tokens a frame, 0 = there is no token generator; text_channels is the width it works in.
    """
    family: str
    channels: tuple[int, ...]
    mid: bool = True
    max_frames: int = 32
    temporal_convolution: bool = False
    kind: str = "frozen"
    beta_schedule: str = "keep"
    groupnorm: str = "per frame"
    fps: float = 8.0
    mapping_width: int = 0
    frame_tokens: int = 0
    text_channels: int = 768
    frames: int = 0


class MotionLayer(NamedTuple):
    """What happens at one place of the U-Net: an optional convolution along time, then the transformer."""
    transformer: TemporalTransformer
    convolution: TemporalConv | None = None

    def __call__(self, x: Tensor, frames: int, frame_indices: Tensor | None = None) -> Tensor:
        """x [(b f), C, H, W] with f = `frames`, at `frame_indices` [f] of their clip; returns the same shape."""
        if self.convolution is not None:
            x = self.convolution(x, frames)
        return self.transformer(x, frames, frame_indices)


class MotionUnit(nn.Module):
    """The name `temporal_transformer` of the files."""

    def __init__(self, transformer: TemporalTransformer):
        super().__init__()
        self.temporal_transformer = transformer


class MotionLevel(nn.Module):
    """The name `motion_modules` of the files: the layers of one level of the U-Net."""

    def __init__(self, units: list[MotionUnit]):
        super().__init__()
        self.motion_modules = nn.ModuleList(units)


class MotionModule(nn.Module):
    """All temporal layers of a U-Net. It has no forward: its layers are spliced into the image model.

    The keys of its state_dict are those of an AnimateDiff file; HARIVO's parts are under `harivo.tconv`, `harivo.map`
    and `harivo.tok`, without the substrings by which other loaders recognise motion weights, so that those skip them.
    """

    def __init__(self, config: MotionConfig, operations=nn, dtype=None, device=None):
        super().__init__()
        self.config = config
        made = {"operations": operations, "dtype": dtype, "device": device}

        def level(channels: int, layers: int) -> MotionLevel:
            return MotionLevel([MotionUnit(TemporalTransformer(channels, config.max_frames, **made))
                                for _ in range(layers)])

        self.down_blocks = nn.ModuleList(level(width, DOWN_LAYERS) for width in config.channels)
        self.up_blocks = nn.ModuleList(level(width, UP_LAYERS) for width in reversed(config.channels))
        self.mid_block = level(config.channels[-1], 1) if config.mid else None
        harivo = {}
        if config.temporal_convolution:
            def convolutions(channels: int, layers: int) -> nn.ModuleList:
                return nn.ModuleList(TemporalConv(channels, **made) for _ in range(layers))

            harivo["tconv"] = nn.ModuleDict({
                "down": nn.ModuleList(convolutions(width, DOWN_LAYERS) for width in config.channels),
                "mid": nn.ModuleList([convolutions(config.channels[-1], 1)] if config.mid else []),
                "up": nn.ModuleList(convolutions(width, UP_LAYERS) for width in reversed(config.channels))})
        if config.mapping_width:
            harivo["map"] = MappingNetwork(width=config.mapping_width, **made)
        if config.frame_tokens:
            harivo["tok"] = FrameTokens(config.text_channels, config.frame_tokens, **made)
        if harivo:
            self.harivo = nn.ModuleDict(harivo)

    def layers(self, part: str) -> list[MotionLayer]:
        """The layers of "down", "mid" or "up", in the order in which the U-Net meets them."""
        levels = {"down": self.down_blocks, "up": self.up_blocks,
                  "mid": [] if self.mid_block is None else [self.mid_block]}[part]
        transformers = [unit.temporal_transformer for level in levels for unit in level.motion_modules]
        if not self.config.temporal_convolution:
            return [MotionLayer(transformer) for transformer in transformers]
        convolutions = [conv for level in self.harivo["tconv"][part] for conv in level]
        return [MotionLayer(*pair) for pair in zip(transformers, convolutions, strict=True)]

    def output_projections(self) -> Iterator[nn.Module]:
        """The last layer of every residual branch. All zero: the module does nothing."""
        for part in ("down", "mid", "up"):
            for layer in self.layers(part):
                yield layer.transformer.proj_out
                if layer.convolution is not None:
                    yield layer.convolution.conv2
        if self.config.mapping_width:
            yield self.harivo["map"].last.conv
        if self.config.frame_tokens:
            yield self.harivo["tok"].out

    def map_noise(self, x: Tensor, t: Tensor, frames: int, strength: float = 1.0) -> Tensor:
        """What the image model gets for x [(b f), C, H, W] at timesteps t [(b f)]: M(x, t), or x without a network.

        Channels beyond the latents', which an inpainting model has, are passed on.
        """
        if not self.config.mapping_width:
            return x
        latents, others = x.tensor_split([self.harivo["map"].channels], dim=1)
        mapped = torch.cat((self.harivo["map"](latents, t, frames), others), dim=1)
        return mapped if strength == 1 else torch.lerp(x, mapped, strength)

    def add_tokens(self, context: Tensor, seconds: Tensor) -> Tensor:
        """context [(b f), L, D] with the tokens of frames at `seconds` [f] of their clip: [(b f), L + K, D].

        Frames may have different prompts; each gets the tokens of its own.
        """
        if not self.config.frame_tokens:
            return context
        frames, generator = len(seconds), self.harivo["tok"]
        clips = context.unflatten(0, (-1, frames))                              # [b, f, L, D]
        if clips.equal(clips[:, :1].expand_as(clips)):
            return with_frame_tokens(context, generator(clips[:, 0], seconds))
        each = generator(context, seconds).unflatten(0, (-1, frames))           # [b, f, f, K, D]
        return with_frame_tokens(context, torch.einsum("bffkd->bfkd", each))


def fresh_motion_module(config: MotionConfig, seed: int = 0, operations=nn) -> MotionModule:
    """A module to train from scratch, fp32: the identity at initialisation.

    Initial values are torch's, drawn from `seed`, but for those of `look_at_own_place`. torch's own random state is
    left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = MotionModule(config, operations)
        for layer in module.modules():
            for kind in (nn.Linear, nn.Conv3d, nn.GroupNorm, nn.LayerNorm):
                if isinstance(layer, kind):
                    kind.reset_parameters(layer)        # the host's layers start as uninitialised memory
        for layer in module.modules():
            if isinstance(layer, TemporalAttention):
                init_positional_attention(layer)
    for layer in module.output_projections():
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
    return module
