"""The base of a guide in the host: a frozen copy of a MODEL's U-Net that takes residuals."""
from __future__ import annotations

import comfy.model_management
from torch import Tensor

from ...data.encoded import Text
from ...guide.networks import Walk
from ..attention import attend
from ..weights import frozen_unet, size_vector
from .inject import Injection


class FrozenBase:
    """The copy, as a predictor with or without residuals. The MODEL is read, never written."""

    def __init__(self, model, low_precision: bool = False):
        self.device = comfy.model_management.get_torch_device()
        self.base = model.model         # asked for its latent factor and its size embedding
        self.unet = frozen_unet(model, low_precision)
        self.skips = len(self.unet.input_blocks)

    def vector(self, text: Text, height: int, width: int) -> Tensor | None:
        """See `size_vector`."""
        return size_vector(self.base, text.pooled, height, width)

    def __call__(self, x: Tensor, t: Tensor, text: Text, walk: Walk | None = None) -> Tensor:
        """x [B, 4, h, w], t [B], B texts -> what the model predicts, of x's shape, with the residuals of a guide."""
        options, control = {"optimized_attention_override": attend}, None
        if walk is not None:
            injection = Injection([(slice(None), walk)], self.skips)
            options, control = injection.options(options), injection.control
        return self.unet(x, t.float(), context=text.tokens.to(x), y=self.vector(text, *x.shape[-2:]), control=control,
                         transformer_options=options)

    def latents_out(self, latents: Tensor) -> Tensor:
        """The model's latents -> the VAE's."""
        return self.base.process_latent_out(latents)
