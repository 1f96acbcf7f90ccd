"""Random guides for tests on a tiny random model. Needs a booted host."""
from __future__ import annotations

import torch

from frozen_diffusion.modules.guide.files import GuideConfig
from frozen_diffusion.modules.guide.networks import fresh_guide
from frozen_diffusion.modules.guide.shape import shape_of
from frozen_diffusion.modules.host.guide.files import hold_guide


def guide_for(model, seed=1, std=0.3, **changes):
    """A random guide for a MODEL."""
    unet = model.model.model_config.unet_config
    shape = shape_of(unet, widths=[8] * len(unet["channel_mult"]), embedding=16)
    config = GuideConfig(**{"kind": "tiny", "family": "sd15", "prediction": "eps", "shape": shape, **changes})
    network = fresh_guide(shape, seed, output_std=std, fed=config.fed, negative=config.negative_aware)
    for block in network.text_blocks() if config.negative_aware else ():
        block.to_out_neg.weight.data.normal_(generator=torch.Generator().manual_seed(seed))
    return hold_guide(config, network.state_dict(), "random.safetensors")
