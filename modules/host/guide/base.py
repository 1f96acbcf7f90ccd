"""The base of a guide in the host: a frozen copy of a MODEL's U-Net that takes residuals."""
from __future__ import annotations

from collections.abc import Sequence

import comfy.model_management
from torch import Tensor

from ...data.encoded import Text
from ..attention import attend
from ..weights import frozen_unet, size_vector


def as_control(residuals: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """Residuals in the encoder's order, the middle's last, as the host's U-Net takes them from a ControlNet.

    It pops from the end of each list, so that the last skip goes to the decoder's first block.
    """
    return {"input": [], "middle": [residuals[-1]], "output": list(residuals[:-1])}


class FrozenBase:
    """The copy, as a predictor with or without residuals. The MODEL is read, never written."""

    def __init__(self, model, low_precision: bool = False):
        self.device = comfy.model_management.get_torch_device()
        self.base = model.model         # asked for its latent factor and its size embedding
        self.unet = frozen_unet(model, low_precision)

    def vector(self, text: Text, height: int, width: int) -> Tensor | None:
        """See `size_vector`."""
        return size_vector(self.base, text.pooled, height, width)

    def __call__(self, x: Tensor, t: Tensor, text: Text, residuals: Sequence[Tensor] | None = None) -> Tensor:
        """x [B, 4, h, w], t [B], B texts -> what the model predicts, of x's shape."""
        return self.unet(x, t.float(), context=text.tokens.to(x), y=self.vector(text, *x.shape[-2:]),
                         control=None if residuals is None else as_control(residuals),
                         transformer_options={"optimized_attention_override": attend})

    def latents_out(self, latents: Tensor) -> Tensor:
        """The model's latents -> the VAE's."""
        return self.base.process_latent_out(latents)
