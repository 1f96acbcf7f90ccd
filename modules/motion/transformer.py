"""The layers that move: temporal attention over the frames of a clip, and an optional temporal convolution.

A clip is a batch of frames, [(b f), C, H, W], b-major: frame f of clip b is row b * frames + f.
"""
from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

MAX_SEQUENCES = 65535       # CUDA's attention kernels take no longer batch
FEW_FRAMES = 4              # up to here plain attention is quicker on a CPU, backward 2 to 7 times
LOGIT = 8.0                 # of two equal frames in the heads that know their place at the start of a training
ROW_POSITIONS = 64                   # positions in a row of the temporal convolution


def sinusoids(length: int, channels: int, device: torch.device | str | None = None) -> Tensor:
    """Sinusoidal positional encoding, [1, length, channels], fp32: sin on even channels, cos on odd, base 10000.

    Source: Vaswani et al. 2017, section 3.5.
    """
    position = torch.arange(length, dtype=torch.float32, device=device)[:, None]
    even = torch.arange(0, channels, 2, dtype=torch.float32, device=device)
    angle = position * torch.exp(even * (-math.log(10000.0) / channels))        # [length, channels / 2]
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)[None]


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head softmax(q k^T / sqrt(d)) v along dimension 1 of [N, F, C]; d = C / heads."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v)) # [N, heads, F, d]
    if q.shape[-2] <= FEW_FRAMES and q.device.type == "cpu":
        out = torch.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2), -1) @ v
    else:
        split = zip(*(t.split(MAX_SEQUENCES) for t in (q, k, v)), strict=True)
        parts = [functional.scaled_dot_product_attention(*part) for part in split]
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out.transpose(1, 2).flatten(2)


class PositionalEncoding(nn.Module):
    """Adds to every frame the positional encoding of its index in the clip; in fp32 whatever the other weights are."""

    def __init__(self, channels: int, max_frames: int, device=None):
        super().__init__()
        self.register_buffer("pe", sinusoids(max_frames, channels, device))

    def _apply(self, fn, recurse=True):
        self.pe = self.pe.to(fn(self.pe).device)        # moves with the module, never changes type
        return self

    def forward(self, x: Tensor, frame_indices: Tensor | None = None) -> Tensor:
        """x [N, F, C]; frame_indices [F] in the clip, None = the first F. Raises ValueError when F > max_frames."""
        if x.shape[1] > self.pe.shape[1]:
            raise ValueError(f"A clip of {x.shape[1]} frames was given to a motion module with positional "
                             f"encodings for {self.pe.shape[1]}. Make shorter clips, or use context windows.")
        encoding = self.pe[:, :x.shape[1]] if frame_indices is None else self.pe[:, frame_indices]
        return (x + encoding.to(x.device)).to(x.dtype)


class TemporalAttention(nn.Module):
    """Self-attention over the frames of each pixel."""

    def __init__(self, channels: int, max_frames: int, heads: int, operations, **factory):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (operations.Linear(channels, channels, bias=False, **factory)
                                           for _ in range(3))
        self.to_out = nn.Sequential(operations.Linear(channels, channels, **factory))
        self.pos_encoder = PositionalEncoding(channels, max_frames, factory.get("device"))

    def forward(self, x: Tensor, frame_indices: Tensor | None = None) -> Tensor:
        x = self.pos_encoder(x, frame_indices)                                         # [N, F, C]
        return self.to_out(attend(self.to_q(x), self.to_k(x), self.to_v(x), self.heads))


def init_positional_attention(attention: TemporalAttention) -> None:
    """Positional-attention initialisation: half of the heads attend to the frame itself and its neighbours.

    With torch's own values every head looks at all frames nearly alike, so all frames get the same mean encoding and
    none can tell where in the clip it is; small trainings end before that changes. Here the first half of the heads
    compares the encoding of highest frequency, and values pass through at full strength.
    """
    channels, heads = attention.to_q.weight.shape[0], attention.heads // 2
    width = channels // attention.heads
    with torch.no_grad():
        for layer in (attention.to_q, attention.to_k):
            nn.init.eye_(layer.weight[:width]).mul_((LOGIT / width ** 0.5) ** 0.5)
            layer.weight[:heads * width] = layer.weight[:width].repeat(heads, 1)
        for layer in (attention.to_v, attention.to_out[0]):
            nn.init.orthogonal_(layer.weight)


class GEGLU(nn.Module):
    """A gated linear unit: half of a projection, times GELU of the other half."""

    def __init__(self, channels: int, hidden: int, operations, **factory):
        super().__init__()
        self.proj = operations.Linear(channels, 2 * hidden, **factory)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * functional.gelu(gate)


class FeedForward(nn.Module):
    """C -> 4C -> C. Place 1 of `net` is a dropout in the files' layout and has no weights."""

    def __init__(self, channels: int, operations, **factory):
        super().__init__()
        self.net = nn.Sequential(GEGLU(channels, 4 * channels, operations, **factory), nn.Identity(),
                                 operations.Linear(4 * channels, channels, **factory))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TemporalBlock(nn.Module):
    """Two attentions over time and a feed-forward part, each behind a LayerNorm and with a residual."""

    def __init__(self, channels: int, max_frames: int, heads: int, operations, **factory):
        super().__init__()
        self.attention_blocks = nn.ModuleList(
            TemporalAttention(channels, max_frames, heads, operations, **factory) for _ in range(2))
        self.norms = nn.ModuleList(operations.LayerNorm(channels, **factory) for _ in range(2))
        self.ff = FeedForward(channels, operations, **factory)
        self.ff_norm = operations.LayerNorm(channels, **factory)

    def forward(self, x: Tensor, frame_indices: Tensor | None = None) -> Tensor:
        for attention, norm in zip(self.attention_blocks, self.norms, strict=True):
            x = x + attention(norm(x), frame_indices)                                  # [N, F, C]
        return x + self.ff(self.ff_norm(x))


class TemporalTransformer(nn.Module):
    """AnimateDiff's temporal transformer; the identity at initialisation, because `proj_out` starts at zero.

    Args:
        channels: C, a multiple of 32 (groups of the norm) and of `heads`.
        max_frames: longest clip that has positional encoding.
        operations: where the layers come from: torch.nn, or one of the host's comfy.ops classes.

    Source: Guo et al., "AnimateDiff", ICLR 2024, section 4.2; layer for layer as in its published code. The
    GroupNorm sees one frame at a time; torch computes its statistics in fp32 for every input type.
    """

    def __init__(self, channels: int, max_frames: int, heads: int = 8, operations=nn, dtype=None,
                 device=None):
        super().__init__()
        factory = {"dtype": dtype, "device": device}
        self.norm = operations.GroupNorm(32, channels, eps=1e-6, **factory)
        self.proj_in = operations.Linear(channels, channels, **factory)
        self.transformer_blocks = nn.ModuleList(
            [TemporalBlock(channels, max_frames, heads, operations, **factory)])
        self.proj_out = operations.Linear(channels, channels, **factory)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor, frames: int, frame_indices: Tensor | None = None) -> Tensor:
        """x [(b f), C, H, W] with f = `frames` <= max_frames; returns the same shape.

        frame_indices [f]: of these frames in their clip, None = the first f.
        """
        height, width = x.shape[-2:]
        h = self.norm(x).unflatten(0, (-1, frames)).flatten(3)                  # [b, f, C, HW]
        h = h.permute(0, 3, 1, 2).flatten(0, 1)                                 # [(b HW), f, C]
        h = self.proj_in(h)
        for block in self.transformer_blocks:
            h = block(h, frame_indices)
        h = self.proj_out(h).unflatten(0, (-1, height * width))                 # [b, HW, f, C]
        h = h.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, (height, width))   # [(b f), C, H, W]
        return x + h


class TemporalConv(nn.Module):
    """Two convolutions along time with a residual; the identity at initialisation, because the second starts at zero.

    Our reconstruction of the 3-D convolutions named in Kwon et al., "HARIVO", ECCV 2024, section 3.1.
    """

    def __init__(self, channels: int, operations=nn, dtype=None, device=None):
        super().__init__()
        factory = {"dtype": dtype, "device": device}
        along_time = {"kernel_size": (3, 1, 1), "padding": (1, 0, 0), **factory}
        self.norm1 = operations.GroupNorm(32, channels, **factory)
        self.conv1 = operations.Conv3d(channels, channels, **along_time)
        self.norm2 = operations.GroupNorm(32, channels, **factory)
        self.conv2 = operations.Conv3d(channels, channels, **along_time)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """x [(b f), C, H, W]; returns the same shape."""
        h = x.unflatten(2, (-1, rows_in_one(*x.shape[2:]))).flatten(3)
        for norm, conv in ((self.norm1, self.conv1), (self.norm2, self.conv2)):
            h = functional.silu(norm(h))                                        # each frame alone
            h = conv(h.unflatten(0, (-1, frames)).transpose(1, 2))              # [b, C, f, H, W]
            h = h.transpose(1, 2).flatten(0, 1)                                 # [(b f), C, H, W]
        return x + h.reshape(x.shape)


def rows_in_one(height: int, width: int) -> int:
    """How many rows of a picture to lay side by side, none left over: no row grows beyond ROW_POSITIONS.

    A kernel along time does not see the difference, but a processor takes up to twice as long for narrow rows.
    """
    fitting = [rows for rows in range(1, height + 1) if height % rows == 0 and rows * width <= ROW_POSITIONS]
    return max(fitting, default=1)
