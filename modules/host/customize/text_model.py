"""The user's CLIP as a function of a textual inversion's vectors, with a derivative (customize_a_video.md 7, 11).

The host's own layers add in place, which has none; the same layers are called here out of place. The output is the
host's, to the last bit.
"""
from __future__ import annotations

import copy

import comfy.ops
import torch
from torch import Tensor, nn

from ...customize.absorber import PLACEHOLDER
from ...data.encoded import Text
from ..attention import attention

LENGTH = 77                     # tokens of a prompt, begin and end included


class TextModel:
    """A frozen copy of SD1.5's text encoder. The CLIP is read, never written.

    Raises ValueError for a CLIP of another kind.
    """

    def __init__(self, clip):
        clip.load_model()                       # so that LoRAs of the text encoder are in its weights
        inner = getattr(clip.cond_stage_model, "clip_l", None)
        if inner is None or hasattr(clip.cond_stage_model, "clip_g") or not hasattr(clip.tokenizer, "clip_l"):
            raise ValueError("A textual inversion is learned for SD1.5's text encoder (CLIP-L alone), and the CLIP is "
                             "of another kind. Choose S-LoRA for this model.")
        self.clip, self.layer, self.layer_idx = clip, inner.layer, inner.layer_idx
        self.norm_inner = inner.layer_norm_hidden_state
        with torch.inference_mode(False), torch.no_grad():
            self.model: nn.Module = copy.deepcopy(inner.transformer.text_model).float().requires_grad_(False)
        self.start, self.end = inner.special_tokens["start"], inner.special_tokens["end"]
        self.pad = inner.special_tokens.get("pad", self.end)
        self.skip = clip.layer_idx
        if self.skip is not None:
            self.layer, self.layer_idx = "hidden", self.skip

    @property
    def table(self) -> Tensor:
        """[V, D], the vectors of all tokens."""
        return self.model.embeddings.token_embedding.weight

    def ids(self, words: str) -> list[int]:
        """The tokens of a text, without begin and end. Raises ValueError for a text that is too long."""
        if not words.strip():
            return []
        chunks = self.clip.tokenizer.clip_l.tokenize_with_weights(words)
        if len(chunks) > 1:
            raise ValueError(f"The caption {words!r} has more than {LENGTH - 2} tokens; a textual inversion wants one "
                             "that fits. Shorten it.")
        ids = [int(token[0]) for token in chunks[0]][1:]
        return ids[:ids.index(self.end)]

    def fresh_vectors(self, words: str, count: int) -> Tensor:
        """[count, D] to start from: the mean of the vectors of a text, with a little noise to tell them apart."""
        ids = self.ids(words)
        mean = self.table[ids].mean(0) if ids else self.table.mean(0)
        spread = self.table.std(0)
        noise = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(0)).to(mean)
        return mean + 0.1 * spread * noise

    @property
    def longest(self) -> float:
        """Three times the mean length of a token's vector: vectors that learn are held below it."""
        return 3 * float(self.table.norm(dim=1).mean())

    def __call__(self, caption: str, vectors: Tensor | None) -> Text:
        """A caption in which PLACEHOLDER stands for vectors [n, D]; appended if it does not stand there.

        Raises ValueError for a caption that is too long with them.
        """
        if vectors is not None and PLACEHOLDER not in caption:
            caption = f"{caption} {PLACEHOLDER}".strip()
        parts = [self.ids(part) for part in caption.split(PLACEHOLDER)]
        count = 0 if vectors is None else len(vectors)
        tokens, slots = [self.start], []
        for number, ids in enumerate(parts):
            if number and count:
                slots += range(len(tokens), len(tokens) + count)
                tokens += [self.pad] * count
            tokens += ids
        if len(tokens) + 1 > LENGTH:
            raise ValueError(f"The caption {caption!r} has {len(tokens) + 1} tokens with its {count} vectors; {LENGTH} "
                             "fit. Shorten it, or take fewer vectors.")
        last = len(tokens)
        tokens += [self.end] + [self.pad] * (LENGTH - len(tokens) - 1)
        x = self.model.embeddings.token_embedding(torch.tensor([tokens], device=self.table.device))
        if slots:
            x = x.clone()
            x[0, slots] = vectors[torch.arange(len(slots)) % count].to(x)
        return self.encode(x, last)

    def encode(self, x: Tensor, last: int) -> Text:
        """Token vectors [1, L, D], the place of the end -> what the U-Net gets."""
        model = self.model
        x = x + comfy.ops.cast_to(model.embeddings.position_embedding.weight, dtype=x.dtype, device=x.device)
        mask = torch.full((x.shape[1], x.shape[1]), -torch.finfo(x.dtype).max, dtype=x.dtype, device=x.device).triu_(1)
        layers, hidden = list(model.encoder.layers), None
        wanted = self.layer_idx if self.layer == "hidden" else None
        wanted = None if wanted is None else wanted % len(layers)
        for number, layer in enumerate(layers):
            x = x + layer.self_attn(layer.layer_norm1(x), mask, attention)
            x = x + layer.mlp(layer.layer_norm2(x))
            if number == wanted:
                hidden = x
        if hidden is not None:
            return Text(model.final_layer_norm(hidden) if self.norm_inner else hidden, None)
        return Text(model.final_layer_norm(x), None)
