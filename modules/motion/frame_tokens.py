"""HARIVO's frame-wise tokens: every frame gets its own few words besides the prompt (Kwon et al., ECCV 2024, sec. 3.5).

A reconstruction: number of tokens, layers and initial values are not public. Ours are the constants below.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .transformer import attend

TOKENS, LAYERS, HEADS = 4, 2, 8
ENCODING_FPS = 8.0      # a frame at s seconds has the positional encoding of index 8 s, whatever the clip's own rate


def timestamp_encoding(seconds: Tensor, channels: int) -> Tensor:
    """Timestamps [F] in seconds -> sinusoidal encoding [F, channels], fp32; at 8 fps those of `sinusoids`."""
    even = torch.arange(0, channels, 2, dtype=torch.float32, device=seconds.device)
    angle = seconds.float()[:, None] * ENCODING_FPS * 10000.0 ** (-even / channels)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)


class Attention(nn.Module):
    """Multi-head attention of [B, N, C] to [B, M, C]."""

    def __init__(self, channels: int, heads: int, operations, **factory):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (operations.Linear(channels, channels, bias=False, **factory)
                                           for _ in range(3))
        self.to_out = operations.Linear(channels, channels, **factory)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        return self.to_out(attend(self.to_q(x), self.to_k(source), self.to_v(source), self.heads))


class TokenLayer(nn.Module):
    """The tokens look at the prompt, then at each other over all frames, then a feed-forward part."""

    def __init__(self, channels: int, heads: int, operations, **factory):
        super().__init__()
        self.norms = nn.ModuleList(operations.LayerNorm(channels, **factory) for _ in range(3))
        self.to_prompt, self.to_frames = (Attention(channels, heads, operations, **factory) for _ in range(2))
        self.expand = operations.Linear(channels, 4 * channels, **factory)
        self.contract = operations.Linear(4 * channels, channels, **factory)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """x [B, F K, D], text [B, L, D]"""
        x = x + self.to_prompt(self.norms[0](x), text)
        h = self.norms[1](x)
        x = x + self.to_frames(h, h)
        return x + self.contract(functional.gelu(self.expand(self.norms[2](x))))


class FrameTokens(nn.Module):
    """The generator of K tokens a frame, from the prompt's embedding and the moment of the frame.

    At initialisation every token is the prompt's last one (CLIP's padding), because `out` starts at zero: the frozen
    model changes only by a little more weight on that token.

    Args:
        channels: D of the text embedding, a multiple of `heads`.
        tokens: K.
    """

    def __init__(self, channels: int = 768, tokens: int = TOKENS, heads: int = HEADS, operations=nn, dtype=None,
                 device=None):
        super().__init__()
        factory = {"dtype": dtype, "device": device}
        self.queries = nn.Parameter(torch.empty(tokens, channels, **factory))
        self.layers = nn.ModuleList(TokenLayer(channels, heads, operations, **factory) for _ in range(LAYERS))
        self.norm = operations.LayerNorm(channels, **factory)
        self.out = operations.Linear(channels, channels, bias=False, **factory)
        nn.init.normal_(self.queries)
        nn.init.zeros_(self.out.weight)

    def forward(self, text: Tensor, seconds: Tensor) -> Tensor:
        """text [B, L, D], seconds [F] from the clip's beginning -> tokens [B, F, K, D]."""
        encoding = timestamp_encoding(seconds, text.shape[-1]).to(text)                  # [F, D]
        h = (encoding[:, None] + self.queries.to(text)).flatten(0, 1)              # [(F K), D]
        h = h.expand(text.shape[0], -1, -1)
        for layer in self.layers:
            h = layer(h, text)
        return (text[:, -1:] + self.out(self.norm(h))).unflatten(1, (len(seconds), -1))


def with_frame_tokens(context: Tensor, tokens: Tensor) -> Tensor:
    """What cross-attention sees: context [(b f), L, D] and tokens [b, f, K, D] -> [(b f), L + K, D]."""
    return torch.cat((context, tokens.flatten(0, 1).to(context)), dim=1)
