"""The noise schedule that a motion module was trained with, put on a MODEL."""
from __future__ import annotations

from types import SimpleNamespace

import comfy.model_sampling

LINEAR = {"linear_start": 0.00085, "linear_end": 0.012}
# "linear" is the host's word for betas that are linear in their square root, "sqrt_linear" for linear betas.
SCHEDULES = {
    "sqrt_linear": {"beta_schedule": "sqrt_linear", **LINEAR},
    "linear": {"beta_schedule": "linear", **LINEAR},
    "linear (AnimateDiff-SDXL)": {"beta_schedule": "linear", **LINEAR, "linear_end": 0.02},
    "lcm": {"beta_schedule": "linear", **LINEAR},
}
KEEP, AUTO = "keep", "auto"
CHOICES = [AUTO, KEEP, *SCHEDULES]


def set_schedule(model, name: str) -> None:
    """Give `model`, a clone of ours, the schedule `name`; what it predicts (noise or v) stays as it is.

    Raises ValueError for an unknown name, and for a MODEL whose noise levels are not a table of betas.
    """
    if name == KEEP:
        return
    if name not in SCHEDULES:
        raise ValueError(f"Unknown beta schedule {name!r}; expected one of {CHOICES}.")
    given = model.get_model_object("model_sampling")
    if not isinstance(given, comfy.model_sampling.ModelSamplingDiscrete):
        raise ValueError(f"The model samples with {type(given).__mro__[1].__name__}, which has no table of "
                         f"betas to replace by {name!r}. Set beta_schedule to {KEEP!r}, or take away the "
                         "node that changed the sampling.")
    kind = lcm_sampling() if name == "lcm" else type(given)
    settings = {**model.model.model_config.sampling_settings, **SCHEDULES[name], "zsnr": given.zsnr}
    model.add_object_patch("model_sampling", kind(SimpleNamespace(sampling_settings=settings)))


def with_schedule(model, name: str):
    """A clone of the MODEL with the schedule `name`, see `set_schedule`."""
    model = model.clone()
    set_schedule(model, name)
    return model


def lcm_sampling() -> type:
    """The sampling of a latent consistency model, from the parts that the host's own node uses."""
    from comfy_extras.nodes_model_advanced import LCM, ModelSamplingDiscreteDistilled

    class MotionLCM(ModelSamplingDiscreteDistilled, LCM):
        pass

    return MotionLCM
