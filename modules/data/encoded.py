"""Latents and text of clips, encoded once and kept on disk."""
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..seeding import batch_indices, seed_for, stream
from .cache import WHOLE, Share, TensorCache, digest, part
from .clips import ClipSource

PIECE = "An encoded clip"
ADVICE = "Run the {} in float32 (start ComfyUI with --fp32-vae --fp32-text-enc), or remove the clip."


@dataclass(frozen=True)
class Text:
    """What the U-Net gets of a caption."""

    tokens: Tensor                  # [B, L, D] for cross-attention
    pooled: Tensor | None           # [B, P], None if the text model has none


@dataclass(frozen=True)
class ClipBatch:
    """Clips to train on."""

    latents: Tensor                 # [B, F, C, h, w] as the VAE gives them, without the model's factor
    text: Text
    videos: tuple[int, ...] = ()    # a number for the video that each clip is from
    frame_indices: Tensor | None = None    # [F] of the frames in their clips; None: they follow each other
    clips: tuple[int, ...] = ()     # numbers of the clips in their set
    drawn: Tensor | None = None     # [B, F], which frames of each clip these are


class Codec(Protocol):
    """The frozen encoders. The two names change when the encoders give other values."""

    vae_name: str
    clip_name: str

    def latents(self, pixels: Tensor) -> Tensor: ...        # [F, 3, H, W] uint8 -> [F, C, h, w]
    def text(self, caption: str) -> Text: ...               # with B = 1


class EncodedClips:
    """The clips of a source through the encoders, cached in a folder: one fp16 file a clip, one a caption.

    A file is named after all that decides its content (video file, times, size, encoder), so adding a video
    encodes no other again, and an interrupted encoding goes on where it was.
    """

    def __init__(self, source: ClipSource, codec: Codec, folder: Path):
        self.source, self.codec = source, codec
        self._captions = sorted({source.caption(index) for index in range(len(source))} | {""})
        self._latents, self._text = (TensorCache(folder / name, PIECE) for name in ("latents", "text"))
        self._keys = [(codec.vae_name, source.key(index)) for index in range(len(source))]

    def __len__(self) -> int:
        return len(self.source)

    @property
    def name(self) -> str:
        """Of the set's latents and captions: a checkpoint trained on them is resumed on no others."""
        return digest(*(self._latents.path(key).name for key in self._keys),
                      *map(self.source.caption, range(len(self))))

    def encode(self, share: Share = WHOLE) -> Iterator[tuple[int, int]]:
        """Encode what is missing; yields (pieces done, pieces in all), once for what was there already.

        With `share` = (index, count), process number `index` of `count` does its part only, and counts that: every
        process has to be through before one of them reads. Raises ValueError for latents that are not finite,
        CheckpointError when the disk is full.
        """
        missing_text = self._text.missing([self._text_key(caption) for caption in self._captions], share)
        missing = self._latents.missing(self._keys, share)
        total = len(part(range(len(self._captions)), share)) + len(part(range(len(self)), share))
        done = total - len(missing_text) - len(missing)
        yield done, total
        for caption in (self._captions[index] for index in missing_text):
            text = self.codec.text(caption)
            tensors = {"tokens": text.tokens} | ({} if text.pooled is None else {"pooled": text.pooled})
            self._text.write(self._text_key(caption), tensors, f"the caption {caption!r}", "text model",
                             ADVICE.format("text model"))
            yield (done := done + 1), total
        for index in missing:
            latents = self.codec.latents(self.source.pixels(index))
            self._latents.write(self._keys[index], {"latents": latents}, f"clip {index + 1}", "VAE",
                                ADVICE.format("VAE"))
            yield (done := done + 1), total

    def latents(self, index: int) -> Tensor:
        """[F, C, h, w] float32."""
        return self._latents.read(self._keys[index])["latents"]

    def text(self, caption: str) -> Text:
        """Of a caption of the set, or of the empty one."""
        tensors = self._text.read(self._text_key(caption))
        return Text(tensors["tokens"], tensors.get("pooled"))

    def batch(self, size: int, frames: int, dropout: float, seed: int, draw: int, scattered: bool = False) -> ClipBatch:
        """Batch number `draw`: `size` clips, of each `frames` frames, some without text.

        The frames are a random run; if `scattered`, they are drawn from all over the clip, in order, the same ones of
        every clip in the batch.
        """
        generator = stream("clips", seed, draw)
        latents, texts, videos, drawn, frame_indices = [], [], [], [], None
        chosen = batch_indices(len(self), size, seed, draw)
        for index in chosen:
            clip = self.latents(index)
            if scattered and frame_indices is None:
                frame_indices = torch.randperm(len(clip), generator=generator)[:frames].sort().values
            start = 0 if scattered else int(torch.randint(len(clip) - frames + 1, (), generator=generator))
            drawn.append(frame_indices if scattered else torch.arange(start, start + frames))
            latents.append(clip[drawn[-1]])
            dropped = torch.rand((), generator=generator) < dropout
            texts.append(self.text("" if dropped else self.source.caption(index)))
            videos.append(seed_for("video", self.source.video(index)))
        return ClipBatch(torch.stack(latents), stack_texts(texts), tuple(videos), frame_indices, tuple(chosen),
                         torch.stack(drawn))

    def _text_key(self, caption: str) -> tuple[str, str]:
        return self.codec.clip_name, caption


def stack_texts(texts: list[Text]) -> Text:
    """One batch of texts whose lengths may differ: each is repeated up to their least common multiple.

    Cross-attention gives the same values for a text and its repetition; the host samples likewise.
    """
    length = math.lcm(*(text.tokens.shape[1] for text in texts))
    tokens = torch.cat([text.tokens.repeat(1, length // text.tokens.shape[1], 1) for text in texts])
    pooled = [text.pooled for text in texts if text.pooled is not None]
    return Text(tokens, torch.cat(pooled) if pooled else None)
