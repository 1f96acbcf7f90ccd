"""The host's VAE and CLIP as the frozen encoders of a training."""
from __future__ import annotations

from hashlib import blake2b

import comfy.model_management
import torch
from torch import Tensor

from ..data.encoded import Text


class HostText:
    """The CLIP of the host as the frozen text encoder of a training, named after what it gives for a fixed probe.

    Raises ValueError for a CLIP that training cannot use.
    """

    def __init__(self, clip):
        if clip is None:
            raise ValueError("Training needs a CLIP; connect that of your checkpoint. If it gives none because it "
                             "holds no text model, load one with Load CLIP.")
        if getattr(clip, "apply_hooks_to_conds", None) is not None:
            raise ValueError("The CLIP has hooks that would change the MODEL for each prompt (Set CLIP Hooks); a "
                             "training has one model for all captions. Connect the CLIP from before that node, and "
                             "load the LoRA with Load LoRA.")
        self.clip = clip
        tokens = self.text("a probe for the text model").tokens
        self.clip_name, self.text_channels = digest_of(tokens), tokens.shape[-1]

    def text(self, caption: str) -> Text:
        """One caption as the text model gives it."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        tokens, pooled = self.clip.encode_from_tokens(self.clip.tokenize(caption), return_pooled=True)
        return Text(tokens.float().cpu(), None if pooled is None else pooled.float().cpu())


class HostCodec:
    """The VAE and CLIP of the host as the frozen encoders of a training.

    Each is named after what it gives for a fixed probe, so that LoRA patches and other settings count too.
    """

    def __init__(self, vae, clip):
        if clip is None or vae is None:
            raise ValueError("Training needs a VAE and a CLIP; connect those of your checkpoint. If it gives "
                             "no CLIP because it holds no text model, load one with Load CLIP.")
        self.words = HostText(clip)
        self.text, self.clip_name, self.text_channels = (self.words.text, self.words.clip_name,
                                                         self.words.text_channels)
        self.vae = vae
        ramp = torch.linspace(0, 255, 64).to(torch.uint8)
        probe = self.latents(torch.stack([ramp[:, None] + ramp, ramp.expand(64, 64),
                                          ramp[:, None].expand(64, 64)])[None])
        if probe.ndim != 4 or probe.shape[1] != 4:
            raise ValueError(f"The VAE gives latents of shape {list(probe.shape)} for a picture; those of SD1.5 "
                             "and SDXL have 4 channels. Connect the VAE of the image model's checkpoint.")
        self.vae_name = digest_of(probe)

    def latents(self, pixels: Tensor) -> Tensor:
        """[F, 3, H, W] uint8 -> [F, C, H/8, W/8]: the most likely latents, not a draw around them."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        return self.vae.encode(pixels.permute(0, 2, 3, 1).float() / 255).cpu()


def outside_inference(text: Text) -> Text:
    """Clones, so that nothing made in inference mode enters a training."""
    return Text(text.tokens.clone(), None if text.pooled is None else text.pooled.clone())


def digest_of(*tensors: Tensor) -> str:
    """A name of tensors, in fp32."""
    digest = blake2b(digest_size=12)
    for tensor in tensors:
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
