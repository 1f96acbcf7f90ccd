"""Progress and previews of sampling in the host's page."""
from __future__ import annotations

import latent_preview


def step_callback(model, steps: int):
    """What the host's samplers call after each step: (step, denoised, x, steps) -> None."""
    return latent_preview.prepare_callback(model, steps)
