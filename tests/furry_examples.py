"""A small FurryGAN with random weights, for tests."""
from __future__ import annotations

import torch

from frozen_diffusion.modules.furrygan.discriminator import Discriminator
from frozen_diffusion.modules.furrygan.files import FurryFile
from frozen_diffusion.modules.furrygan.networks import Generator, Shape
from frozen_diffusion.modules.furrygan.training import latent_means

SHAPE = Shape(32, 32, 16, 512)


def furry_file(seed: int = 3, noise: float = 0.1, shape: Shape = SHAPE) -> FurryFile:
    """Its noise counts, as that of a trained one does."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generator, discriminator = Generator(shape).requires_grad_(False), Discriminator(shape)
    for name, weight in generator.named_parameters():
        if name.endswith("noise.weight"):
            weight.fill_(noise)
    judge = {key: value.detach() for key, value in discriminator.state_dict().items()}
    return FurryFile(shape, generator.state_dict(), judge, latent_means(generator), {"steps": "0"})
