"""The host's CLIP and CLIP_VISION as the two encoders of the metrics, if they share one space."""
from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from typing import Protocol

import comfy.model_management
import torch
from comfy.sd1_clip import SDClipModel
from torch import Tensor

from ..weights import Sketch

TEXTS_AT_ONCE = 64
# The probe: flat pictures of these colours, and texts that name them.
PROBE = {"red": (0.86, 0.16, 0.16), "green": (0.2, 0.66, 0.27), "blue": (0.18, 0.36, 0.86),
         "yellow": (0.96, 0.85, 0.2), "purple": (0.54, 0.22, 0.7), "white": (0.96, 0.96, 0.96),
         "black": (0.07, 0.07, 0.08), "pink": (0.98, 0.6, 0.76)}
PROBE_TEXTS = ("a photo of the colour {}", "{}", "a {} background")
ENOUGH = 5              # of the colours that their text must find


class ClipPairError(ValueError):
    """Two encoders, or a file, that give no joint space of pictures and texts."""


class ClipPair(Protocol):
    """A picture and a text encoder with one joint space. `check_pair` tells whether that is so."""

    name: str               # for people
    identity: str           # of the weights, for files: compare by files.provenance.same_model
    size: int               # pixels across a picture
    width: int              # D of the joint space

    def images(self, pixels: Tensor) -> Tensor: ...                 # [B, 3, size, size] uint8 -> [B, D] float32
    def texts(self, texts: Sequence[str]) -> Tensor: ...            # -> [N, D] float32


class HostPair:
    """The host's CLIP and CLIP_VISION.

    Raises ClipPairError for encoders that share no space: text encoders that are no CLIP, widths that differ, and what
    the probe shows.
    """

    def __init__(self, clip, vision):
        self.clip, self.vision = clip, vision
        self.encoder = text_encoder(clip)
        self.size = getattr(vision, "image_size", 224)
        text, image = self.texts(["a photo"]), self.images(torch.zeros(1, 3, self.size, self.size, dtype=torch.uint8))
        if text.shape[1] != image.shape[1]:
            raise ClipPairError(f"The CLIP gives {text.shape[1]} numbers for a text and the CLIP_VISION "
                                f"{image.shape[1]} for a picture; a pair gives as many for both. {MATCHES}")
        self.width = text.shape[1]
        self.name = f"CLIP and CLIP_VISION, {self.width} wide"
        self.identity = identity_of(clip.cond_stage_model, getattr(clip.patcher, "patches", {}), vision.model)
        check_pair(self)

    @property
    def notes(self) -> list[str]:
        """What should be known of it."""
        if not getattr(self.clip.patcher, "patches", {}):
            return []
        return ["a LoRA changes the CLIP: scores are those of the changed text encoder. Connect the CLIP from before "
                "the LoRA to compare with others"]

    @torch.inference_mode()
    def images(self, pixels: Tensor) -> Tensor:
        found = self.vision.encode_image(pixels.movedim(1, -1).float() / 255, crop=True)["image_embeds"]
        if found is None or found.ndim != 2:
            raise ClipPairError("The CLIP_VISION gives no projected feature of a picture; SigLIP and DINOv2 have none. "
                                f"{MATCHES}")
        return found.float().cpu()

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        tokens = [self._tokens(text) for text in texts]
        with _projected(self.encoder):
            self.clip.load_model()
            found = [self.encoder.encode(tokens[start:start + TEXTS_AT_ONCE])[1]
                     for start in range(0, len(tokens), TEXTS_AT_ONCE)]
        return torch.cat(found).float().cpu()

    def _tokens(self, text: str) -> list[int]:
        parts = self.clip.tokenize(text, disable_weights=True)
        names = [name for name in parts if getattr(self.clip.cond_stage_model, f"clip_{name}", None) is self.encoder]
        sections = parts[names[0]] if names else next(iter(parts.values()))
        if len(sections) > 1:
            raise ClipPairError(f"The text {text[:60]!r}... has more tokens than the CLIP reads (75). Shorten it: cut "
                                "off, it would mean something else.")
        return [token for token, *_ in sections[0]]


MATCHES = ("Pairs that belong together: SDXL's CLIP with ViT-bigG, SD2's with ViT-H, a full CLIP-L file loaded as CLIP "
           "with ViT-L. Or load one full CLIP file with Load CLIP Pair.")


def text_encoder(clip) -> SDClipModel:
    """The CLIP text model in a CLIP of the host whose pooled output can be joint with pictures.

    Raises ClipPairError for others: T5 and language models, and mixtures with such.
    """
    model = getattr(clip, "cond_stage_model", None)
    found = {name: part for name, part in (model.named_children() if model is not None else ())
             if isinstance(part, SDClipModel)}
    clips = {name: part for name, part in found.items() if hasattr(part.transformer, "text_projection")}
    if not clips or len(clips) < len(found):
        raise ClipPairError(f"The CLIP holds {', '.join(found) or 'no text encoder'}; only CLIP text encoders share a "
                            f"space with pictures, T5 and language models do not. {MATCHES}")
    return clips.get("clip_g", next(iter(clips.values())))


@contextmanager
def _projected(encoder: SDClipModel):
    """The encoder with its projected pooled output, whatever the family's default; put back after."""
    before = (encoder.layer, encoder.layer_idx, encoder.return_projected_pooled)
    encoder.reset_clip_options()
    encoder.set_clip_options({"projected_pooled": True})
    try:
        yield
    finally:
        encoder.layer, encoder.layer_idx, encoder.return_projected_pooled = before


def check_pair(pair: ClipPair) -> None:
    """The probe: flat pictures of eight colours must find the texts that name them.

    Raises ClipPairError where fewer than five do: then the two encoders share no space, or a projection is missing.
    """
    pictures = (torch.tensor(list(PROBE.values()))[:, :, None, None] * 255).round().to(torch.uint8)
    images = pair.images(pictures.expand(-1, -1, pair.size, pair.size))
    texts = torch.stack([pair.texts([text.format(colour) for text in PROBE_TEXTS]).mean(0) for colour in PROBE])
    found = _matched(images, texts)
    if found < ENOUGH:
        raise ClipPairError(f"These two encoders do not share a space: of 8 flat colours, {found} found the text that "
                            "names them. Either they are of different CLIPs, or the file of the text encoder lacks its "
                            f"text_projection, as SD1.5 checkpoints and most clip_l files do. {MATCHES}")


def _matched(images: Tensor, texts: Tensor) -> int:
    """Of pictures and texts in one order, how many pictures are nearest to their own text, both sides centred."""
    if not (images.isfinite().all() and texts.isfinite().all()):
        return 0
    one, other = (torch.nn.functional.normalize(part.double() - part.double().mean(0), dim=1)
                  for part in (images, texts))
    return int(((one @ other.T).argmax(1) == torch.arange(len(one))).sum())


def identity_of(*parts) -> str:
    """A name of weights and what changes them, the same in every precision."""
    sketch = Sketch()
    with torch.inference_mode(False), torch.no_grad():
        for part in parts:
            entries = part.state_dict() if isinstance(part, torch.nn.Module) else part
            for key, value in sorted(entries.items()):
                sketch.take((key, value))
    return sketch.name()


def interruptible() -> None:
    """Raises the host's exception where the user cancelled."""
    comfy.model_management.throw_exception_if_processing_interrupted()
