"""The tiny guide: a side network of about 1 % of the base's size whose residuals make one conditional pass of the
frozen U-Net give what classifier-free guidance at scale g gives in two (Hsiao et al., CVPR 2024, arXiv 2406.01954).

A reconstruction (guide_model.md 2.2, 2.4): the paper shows where residuals enter and what the guide sees, no layers.
Anchored (9.6): residuals are multiplied by (g - 1) / 4, so that g = 1 is exactly off and no weight has to learn it.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .shape import GuideShape

ANCHOR = 4.0                # g - 1 at which an anchored residual is as the network gives it
G_END = 14.0                # the g that lies where timestep 1000 would on the axis of the sinusoids
MAX_PERIOD = 10000.0
OUTPUT_STD = 0.02           # of the outputs' initial weights: with zeros the rest learns nothing in the first steps

KeysAndValues = tuple[Tensor, ...]          # of the prompt and, for a negative-aware guide, of the negative one


def sinusoids(position: Tensor, channels: int) -> Tensor:
    """Positions [B] -> cosines, then sines [B, channels], fp32, as the U-Net embeds timesteps."""
    half = channels // 2
    rates = torch.exp(-math.log(MAX_PERIOD) * torch.arange(half, device=position.device) / half)
    angle = position.float()[:, None] * rates
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def on_axis(g: Tensor) -> Tensor:
    """Guidance scales [B] on the axis of timesteps: 1 at 0, 14 at 1000."""
    return 1000 * (g - 1) / (G_END - 1)


def anchor(g: Tensor) -> Tensor:
    """The factor of the residuals at guidance scales [B] -> [B, 1, 1, 1]."""
    return ((g - 1) / ANCHOR)[:, None, None, None]


def groups_of(width: int) -> int:
    """Groups of a norm: 16, or as many as leave two channels in each."""
    return math.gcd(16, max(1, width // 2))


def two_layers(inputs: int, width: int, operations, **factory) -> nn.Sequential:
    """The MLP of an embedding."""
    return nn.Sequential(operations.Linear(inputs, width, **factory), nn.SiLU(),
                         operations.Linear(width, width, **factory))


class ResBlock(nn.Module):
    """Two 3x3 convolutions with a residual; the embedding is added between them."""

    def __init__(self, inputs: int, width: int, embedding: int, operations, **factory):
        super().__init__()
        self.norm_in = operations.GroupNorm(groups_of(inputs), inputs, **factory)
        self.conv_in = operations.Conv2d(inputs, width, 3, padding=1, **factory)
        self.emb = operations.Linear(embedding, width, **factory)
        self.norm_out = operations.GroupNorm(groups_of(width), width, **factory)
        self.conv_out = operations.Conv2d(width, width, 3, padding=1, **factory)
        self.skip = nn.Identity() if inputs == width else operations.Conv2d(inputs, width, 1, **factory)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv_in(F.silu(self.norm_in(x)))                               # [B, width, H, W]
        h = h + self.emb(F.silu(emb))[:, :, None, None]
        return self.skip(x) + self.conv_out(F.silu(self.norm_out(h)))


class TextAttention(nn.Module):
    """Cross-attention to the text with a residual, and to the negative prompt where it is asked for (9.2)."""

    def __init__(self, width: int, context: int, head: int, negative: bool, operations, **factory):
        super().__init__()
        self.heads = max(1, width // head)
        self.norm = operations.GroupNorm(groups_of(width), width, **factory)
        self.to_q = operations.Linear(width, width, bias=False, **factory)
        self.to_k = operations.Linear(context, width, bias=False, **factory)
        self.to_v = operations.Linear(context, width, bias=False, **factory)
        self.to_out = operations.Linear(width, width, **factory)
        if negative:
            self.to_k_neg = operations.Linear(context, width, bias=False, **factory)
            self.to_v_neg = operations.Linear(context, width, bias=False, **factory)
            self.to_out_neg = operations.Linear(width, width, bias=False, **factory)

    def keys_and_values(self, context: Tensor, negative: Tensor | None) -> KeysAndValues:
        """context, negative [B, L, D] -> k and v [B, heads, L, d] of each; they depend on nothing else."""
        pairs = [(self.to_k, context), (self.to_v, context)]
        if negative is not None:
            pairs += [(self.to_k_neg, negative), (self.to_v_neg, negative)]
        return tuple(rearrange(project(words), "b l (h d) -> b h l d", h=self.heads) for project, words in pairs)

    def forward(self, x: Tensor, text: KeysAndValues) -> Tensor:
        q = self.to_q(rearrange(self.norm(x), "b c y x -> b (y x) c"))
        q = rearrange(q, "b n (h d) -> b h n d", h=self.heads)
        h = self.to_out(self.attend(q, *text[:2]))
        if len(text) > 2:
            h = h + self.to_out_neg(self.attend(q, *text[2:]))
        return x + rearrange(h, "b (y x) c -> b c y x", y=x.shape[2])

    @staticmethod
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, heads, N, d] -> [B, N, heads d]"""
        return rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")


class Walk:
    """One pass of a guide, block by block, so that it can go along with the base's encoder.

    Args:
        factor: on the residuals.
        outputs: of the skips, the middle's last.
        skip: (number, h, the base's feature there) -> h behind that block.
        middle: h -> h behind the middle.
    """

    def __init__(self, x: Tensor, factor: Tensor, outputs: Sequence[nn.Module],
                 skip: Callable[[int, Tensor, Tensor | None], Tensor], middle: Callable[[Tensor], Tensor]):
        self.h, self.factor, self.outputs, self.step, self.end = x, factor, outputs, skip, middle

    def skip(self, number: int, feature: Tensor | None = None) -> Tensor:
        """The residual of skip `number`; called once for each, in the encoder's order."""
        self.h = self.step(number, self.h, feature)
        return self.factor * self.outputs[number](self.h)

    def middle(self) -> Tensor:
        """The residual of the middle block, after those of all skips."""
        return self.factor * self.outputs[-1](self.end(self.h))

    def residuals(self, features: Sequence[Tensor] = ()) -> list[Tensor]:
        """All of them [B, C_i, H_i, W_i]; a fed guide wants the base's features, which a pass without it gives."""
        skips = range(len(self.outputs) - 1)
        return [*(self.skip(number, features[number] if features else None) for number in skips), self.middle()]


class Block(nn.Module):
    """A residual block, followed by the text where its level sees it."""

    def __init__(self, inputs: int, width: int, sees_text: bool, shape: GuideShape, negative: bool, operations,
                 **factory):
        super().__init__()
        self.res = ResBlock(inputs, width, shape.embedding, operations, **factory)
        self.text = (TextAttention(width, shape.context_dim, shape.widths[0], negative, operations, **factory)
                     if sees_text else None)

    def forward(self, x: Tensor, emb: Tensor, text: KeysAndValues | None) -> Tensor:
        x = self.res(x, emb)
        return x if self.text is None else self.text(x, text)


class TinyGuide(nn.Module):
    """Latents, timestep, g and text in, a residual for every skip tensor and for the middle block out.

    Args:
        shape: of the base and of the guide.
        fed: whether the base's encoder features are read beside the guide's own (10).
        negative: whether a negative prompt is read as well (9.2).
    """

    def __init__(self, shape: GuideShape, fed: bool = False, negative: bool = False, operations=nn, **factory):
        super().__init__()
        self.shape, self.fed, self.negative = shape, fed, negative
        self.time = two_layers(shape.time_channels, shape.embedding, operations, **factory)
        self.scale = two_layers(shape.embedding, shape.embedding, operations, **factory)
        self.vector = two_layers(shape.vector_dim, shape.embedding, operations, **factory) if shape.vector_dim else None
        self.blocks, self.feeds, width = nn.ModuleList(), nn.ModuleList(), shape.widths[0]
        for skip, channels in enumerate(shape.skips):
            level = shape.level(skip)
            if skip == 0:
                self.blocks.append(operations.Conv2d(4, width, 3, padding=1, **factory))
            elif skip in shape.downsamples:
                self.blocks.append(operations.Conv2d(width, width, 3, stride=2, padding=1, **factory))
            else:
                wide = shape.widths[level]
                self.blocks.append(Block(width, wide, level in shape.text_levels, shape, negative, operations,
                                         **factory))
                width = wide
            if fed:
                self.feeds.append(operations.Conv2d(channels, width, 1, bias=False, **factory))
        self.middle = nn.ModuleList([Block(width, width, sees_text, shape, negative, operations, **factory)
                                     for sees_text in (True, False)])
        widths = [shape.widths[max(0, shape.level(skip))] if skip else shape.widths[0] for skip in
                  range(len(shape.skips))]
        self.outputs = nn.ModuleList([operations.Conv2d(inner, outer, 1, **factory) for inner, outer in
                                      zip([*widths, width], [*shape.skips, shape.middle], strict=True)])

    def text_blocks(self) -> list[TextAttention]:
        """The blocks that read the text, in their order."""
        return [block.text for block in [*self.blocks, *self.middle]
                if isinstance(block, Block) and block.text is not None]

    def read_text(self, context: Tensor, negative: Tensor | None = None) -> list[KeysAndValues]:
        """Keys and values of texts [B, L, D] for every block that reads them: the same at every step of a run."""
        return [block.keys_and_values(context, negative) for block in self.text_blocks()]

    def walk(self, x: Tensor, t: Tensor, g: Tensor, text: Sequence[KeysAndValues],
             vector: Tensor | None = None) -> Walk:
        """x [B, 4, H, W] as the U-Net gets it, t and g [B], text of `read_text`, vector [B, vector_dim]."""
        dtype = x.dtype
        emb = self.time(sinusoids(t, self.shape.time_channels).to(dtype))
        emb = emb + self.scale(sinusoids(on_axis(g), self.shape.embedding).to(dtype))           # [B, embedding]
        if self.vector is not None:
            emb = emb + self.vector(vector.to(dtype))
        words = iter(text)

        def through(block: nn.Module, h: Tensor) -> Tensor:
            if not isinstance(block, Block):
                return block(h)
            return block(h, emb, None if block.text is None else next(words))

        def skip(number: int, h: Tensor, feature: Tensor | None) -> Tensor:
            h = through(self.blocks[number], h)
            if not self.fed:
                return h
            if feature.shape[2:] != h.shape[2:]:            # another node has changed the size inside of the U-Net
                feature = F.interpolate(feature.float(), h.shape[2:], mode="bilinear", align_corners=False)
            return h + self.feeds[number](feature.to(h.dtype))

        def middle(h: Tensor) -> Tensor:
            for block in self.middle:
                h = through(block, h)
            return h

        return Walk(x, anchor(g).to(dtype), self.outputs, skip, middle)

    def forward(self, *inputs, features: Sequence[Tensor] = ()) -> list[Tensor]:
        """See `walk` and `Walk.residuals`."""
        return self.walk(*inputs).residuals(features)


def fresh_guide(shape: GuideShape, seed: int, output_std: float = OUTPUT_STD, **kind) -> TinyGuide:
    """A guide to train, fp32, from `seed`; torch's random state is left as it was.

    output_std 0: no residual at all at initialisation.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        guide = TinyGuide(shape, **kind)
        for layer in guide.outputs:
            nn.init.normal_(layer.weight, std=output_std) if output_std else nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(guide.scale[-1].weight)
        nn.init.zeros_(guide.scale[-1].bias)
        for block in guide.text_blocks() if guide.negative else ():
            nn.init.zeros_(block.to_out_neg.weight)         # a guide that did not read it goes on as it was
    return guide
