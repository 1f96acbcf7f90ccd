"""Captions of clips in a training: one for all in place of their own, and words that stand for vectors in them."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...customize.absorber import PLACEHOLDER
from ...data.clips import ClipSource
from ...data.encoded import Text
from ..codec import HostCodec, digest_of
from .text_model import TextModel


@dataclass(frozen=True)
class Captioned:
    """Clips under one caption, in place of their own. `each`: the clips have a word for the look of their own."""
    source: ClipSource
    text: str
    each: bool = False

    @property
    def settings(self):
        return self.source.settings

    def __len__(self) -> int:
        return len(self.source)

    def caption(self, index: int) -> str:
        text = self.text or self.source.caption(index)
        return text.replace(PLACEHOLDER, placeholder(index)) if self.each else text

    def pixels(self, index: int) -> Tensor:
        return self.source.pixels(index)

    def key(self, index: int) -> str:
        return self.source.key(index)

    def video(self, index: int) -> str:
        return self.source.video(index)

    def report(self) -> str:
        return self.source.report()


class WordsCodec:
    """The VAE and the CLIP, with the vectors of textual inversions where their words stand in a caption.

    Args:
        vectors: of PLACEHOLDER, or of each clip's word; None for a clip without.
    """

    def __init__(self, codec: HostCodec, words: TextModel | None, vectors: Sequence[Tensor | None]):
        self.codec, self.words, self.vectors = codec, words, vectors
        self.vae_name, self.latents = codec.vae_name, codec.latents
        known = [each for each in vectors if each is not None]
        self.clip_name = f"{codec.clip_name}+{digest_of(*known)}" if known else codec.clip_name

    def text(self, caption: str) -> Text:
        for number, vectors in enumerate(self.vectors):
            word = PLACEHOLDER if len(self.vectors) == 1 else placeholder(number)
            if vectors is not None and word in caption:
                with torch.inference_mode(False), torch.no_grad():
                    return self.words(caption.replace(word, PLACEHOLDER), vectors)
        return self.codec.text(caption)


def placeholder(clip: int) -> str:
    """A clip's own word for its look."""
    return PLACEHOLDER.replace(">", f" {clip + 1}>")
