"""The noise levels of a MODEL as a training sees them."""
from __future__ import annotations

import comfy.model_sampling as host

from ..training.denoising import NoiseLevels


def noise_levels(model) -> NoiseLevels:
    """The noise levels of a MODEL, and what it predicts.

    Raises ValueError for other samplings, such as those of flow, EDM and LCM models.
    """
    sampling = model.get_model_object("model_sampling")
    known = isinstance(sampling, host.EPS) and not isinstance(sampling, (host.EDM, host.X0))
    table = isinstance(sampling, host.ModelSamplingDiscrete) and len(sampling.sigmas) == sampling.num_timesteps
    if not (known and table):
        kind = " with ".join(base.__name__ for base in type(sampling).__bases__)
        raise ValueError(f"The MODEL samples by {kind}. Training needs an SD1.5 or SDXL model that predicts noise "
                         "or v at 1000 noise levels; take away nodes that change its sampling.")
    prediction = "v" if isinstance(sampling, host.V_PREDICTION) else "eps"
    return NoiseLevels(1 / (1 + sampling.sigmas.cpu().double().square()), prediction)
