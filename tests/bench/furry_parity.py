"""The official size of FurryGAN: numbers of both networks, and whether the official key layout comes back as it went.

Name: furry-parity.
"""
from __future__ import annotations

import torch

from frozen_diffusion.modules.furrygan.discriminator import Discriminator
from frozen_diffusion.modules.furrygan.files import count, official_file, official_state
from frozen_diffusion.modules.furrygan.networks import Generator, Shape

OFFICIAL = {"generator": 16_966_306, "discriminator": 29_159_585}
KEYS = 185


def run() -> dict:
    generator, discriminator = Generator(Shape()), Discriminator(Shape())
    found = {name: count(dict(network.named_parameters())) for name, network in (("generator", generator),
                                                                                ("discriminator", discriminator))}
    state = official_state(generator)
    back = official_file({"g_ema": state, "d": discriminator.state_dict()}, "000000.pt")
    same = (back.shape == Shape() and back.generator.keys() == generator.state_dict().keys()
            and all(torch.equal(value, generator.state_dict()[key]) for key, value in back.generator.items()))
    return {"figures": {**found, "parameters_exact": float(found == OFFICIAL), "keys": len(state),
                        "layout_exact": float(same and len(state) == KEYS)}, "context": {}}
