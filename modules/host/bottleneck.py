"""Which MODELs have h-space: the output of a U-Net's middle block, its bottleneck."""
from __future__ import annotations

import comfy.model_sampling
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel


def check_bottleneck(model) -> None:
    """Raises ValueError for a MODEL whose network has no bottleneck, or that does not sample as Stable Diffusion."""
    network = model.model.diffusion_model
    if not isinstance(network, UNetModel) or network.middle_block is None:
        raise ValueError(f"h-space is the output of a U-Net's middle block; this MODEL is a {type(network).__name__}, "
                         "which has no bottleneck here. Use a checkpoint of SD1.5, SD2 or SDXL.")
    sampling = model.get_model_object("model_sampling")
    kinds = comfy.model_sampling
    known = isinstance(sampling, kinds.EPS) and isinstance(sampling, kinds.ModelSamplingDiscrete)
    if not known or isinstance(sampling, (kinds.EDM, kinds.X0, kinds.ModelSamplingDiscreteEDM)):
        kind = " with ".join(base.__name__ for base in type(sampling).__bases__)
        raise ValueError(f"The MODEL samples by {kind}; h-space here needs the noise of SD1.5, SD2 and SDXL (eps or v "
                         "prediction). Take away nodes that change its sampling to flow or EDM.")
