"""How many products a latent basis takes on sprite world, and how far it is from the true one (dense SVD).

J of the trained U-Net at a noisy latent of a true picture, t about 0.7 T, empty prompt. `official` is the released
subspace iteration at the settings of the released editing calls (at most 50 iterations, atol 1e-4).
"""
from __future__ import annotations

import random
import sys

import torch
from bench._h_space import empty, latents
from bench._sprite_world import context, load_world

from frozen_diffusion.modules.basis.geometry import principal_angles
from frozen_diffusion.modules.basis.lanczos import lanczos
from frozen_diffusion.modules.basis.products import Jacobian
from frozen_diffusion.modules.basis.subspace_iteration import subspace_iteration
from frozen_diffusion.modules.demo.world import random_scene
from frozen_diffusion.modules.host.basis.compute import encoder_of, jacobian_of
from frozen_diffusion.modules.seeding import stream

SEED, SIGMA, RANKS = 440, 3.43, (2, 5, 10, 50)


def noisy_latent(world, seed: int, sigma: float = SIGMA) -> torch.Tensor:
    """A LATENT of a true picture with noise of level sigma."""
    clean = latents(world, [random_scene(random.Random(seed))], seed)
    noise = torch.randn(clean.shape, generator=stream("noisy latent", seed))
    return clean + sigma * noise / 0.18215


def dense(jacobian: Jacobian) -> torch.Tensor:
    """V [n, n] of the whole Jacobian, from one product a column."""
    columns = []
    for index in range(jacobian.n):
        unit = torch.zeros(jacobian.n)
        unit[index] = 1
        columns.append(jacobian.push(unit.view(jacobian.x.shape)).flatten())
        if index % 200 == 199:
            print(f"{index + 1} of {jacobian.n} columns", file=sys.stderr, flush=True)
    return torch.linalg.svd(torch.stack(columns, 1).double(), full_matrices=False)


@torch.inference_mode()
def run() -> dict:
    """`products_k` and `angle_k` in degrees for every k, ours and `official_`."""
    world, sigmas = load_world(), torch.tensor([SIGMA, 0.0])
    encoder, _ = encoder_of(world.model, empty(world, 1), noisy_latent(world, SEED), sigmas)
    _, s, true = dense(jacobian_of(encoder))
    figures, told = {}, {}
    for k in RANKS:
        for prefix, solver in (("", lambda jacobian, k=k: lanczos(jacobian, k)),
                               ("official_", lambda jacobian, k=k: subspace_iteration(jacobian, k, official=True))):
            *_, last = solver(jacobian_of(encoder))
            angle = principal_angles(last.found.V.flatten(1), true[:k])[-1]
            figures[f"{prefix}products_{k}"] = last.products
            figures[f"{prefix}angle_{k}"] = torch.rad2deg(angle).item()
            told[f"{prefix}{k}"] = {"converged": last.converged, "allowed": 8 * k + 24}
            found = f"{last.products} products, {figures[f'{prefix}angle_{k}']:.3f} degrees"
            print(f"{prefix}{k}: {found}", file=sys.stderr, flush=True)
    return {"figures": figures,
            "context": context(seeds=[SEED], sigma=SIGMA, size={"n": encoder.x.numel(), "m": len(s)},
                               spectrum=s[:12].tolist(), solvers=told)}
