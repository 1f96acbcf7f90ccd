"""The latent basis in the host: computing it, and directions from prompts. edit.py edits along it."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import comfy.model_management
import comfy.utils
import torch
import torch.nn.functional as F
from torch import Tensor

from ...basis.basis import MIDDLE, PROMPT, LatentBasis, latent_basis
from ...basis.directions import IN_H, IN_X, one_direction
from ...basis.lanczos import expected_products, lanczos
from ...basis.products import Jacobian, finite
from ...basis.report import angle_in_words
from ...basis.subspace_iteration import subspace_iteration
from ...basis.transport import prompt_direction, pull_direction
from ...basis.triplets import Step
from ...files.provenance import different_models
from ..guiders import options_of
from ..weights import fingerprint, same_hooks, weights_told
from .encoder import Encoder, check_block, copy_encoder, record_call

LANCZOS, OFFICIAL = "lanczos", "official"
SOLVERS = (LANCZOS, OFFICIAL)
MAX_DIRECTIONS = 64                   # directions of one basis


@dataclass(frozen=True)
class BasisRequest:
    """What Compute Latent Basis asks for: how many directions, by which solver, where.

    Attributes:
        block: the U-Net's block whose output is h, one of BLOCKS.
        network_timestep: what the U-Net is given instead of the latent's own timestep, None = its own. The released
            analysis has two such controls: `fix_xt` (one latent, another timestep) and `fix_t` (another latent, the
            same timestep).
    """
    rank: int = 4
    solver: str = LANCZOS
    tolerance: float = 1e-3
    seed: int = 0
    mask_space: str = IN_H
    block: str = MIDDLE
    network_timestep: float | None = None


def compute_basis(model, positive, latent: Tensor, sigmas: Tensor, request: BasisRequest, mask: Tensor | None = None,
                  start: LatentBasis | None = None, report_progress: Callable[[str], None] = lambda text: None
                  ) -> tuple[LatentBasis, Step]:
    """The basis of a latent [1, C, h, w] at noise level sigmas[0], and the solver's last record.

    mask [1, H, W] at any size; start: a basis to begin from; report_progress: gets a line of text a step. Fewer
    directions than asked for come out where x or h has no more.

    Raises ValueError; RuntimeError if the Jacobian is broken.
    """
    encoder, sigma = encoder_of(model, positive, latent, sigmas, request.block, request.network_timestep)
    jacobian = jacobian_of(encoder, mask, request.mask_space)
    jacobian.check_adjoint()
    rank = min(request.rank, MAX_DIRECTIONS, jacobian.n, jacobian.m)
    if request.solver == LANCZOS:
        steps = lanczos(jacobian, rank, request.tolerance, seed=request.seed, start=None if start is None else start.V)
        total = expected_products(rank)
    else:
        steps, total = subspace_iteration(jacobian, rank, official=True, seed=request.seed), 24 * rank
    bar = comfy.utils.ProgressBar(total)
    for step in steps:
        bar.update_absolute(min(step.products, total), max(total, step.products))
        report_progress(f"{step.products} products; {angle_in_words(step.angle, step.residuals, step.converged)}")
    provenance = {**weights_told(model, options_of(positive)), "solver": request.solver, "products": str(step.products),
             "converged": str(step.converged), "angle": f"{step.angle:.3g}", "masked": str(mask is not None),
             "derivative": "central differences" if jacobian.difference else "forward mode", "block": request.block,
             "prompt": fingerprint(*(text for text, _ in positive)), "latent": fingerprint(latent)}
    if request.network_timestep is not None:
        provenance["network_timestep"] = f"{request.network_timestep:g}"
    return latent_basis(step.found, timestep(model, sigma), sigma, provenance), step


def encoder_of(model, positive, latent: Tensor, sigmas: Tensor, block: str = MIDDLE,
               network_timestep: float | None = None) -> tuple[Encoder, float]:
    """(differentiable encoder up to a block, noise level) for a latent at sigmas[0]. Raises ValueError."""
    sigma = first_level(sigmas)
    call = record_call(model, positive, latent, sigma)
    check_block(model, block)
    if network_timestep is not None:
        call = replace(call, timesteps=torch.full_like(call.timesteps, network_timestep))
    return Encoder(copy_encoder(model, block, call.hooked), call, block), sigma


def jacobian_of(encoder: Encoder, mask: Tensor | None = None, mask_space: str = IN_H) -> Jacobian:
    """J at the encoder's latent, restricted to a mask in h or in x."""
    masks = {}
    if mask is not None:
        with torch.inference_mode(False), torch.no_grad():
            size = encoder.x.shape[-2:] if mask_space == IN_X else encoder.fused(encoder.x).shape[-2:]
            masks[f"{mask_space}_mask"] = F.interpolate(mask[:1, None].float().clone(), size, mode="area")[0, 0]
    return Jacobian(encoder.fused, encoder.x, push_f=encoder.plain, pull_f=encoder.fused, keep=True,
                    before=comfy.model_management.throw_exception_if_processing_interrupted, **masks)


def first_level(sigmas: Tensor) -> float:
    """The noise level that the latent has. Raises ValueError for an empty list."""
    if len(sigmas) == 0 or float(sigmas[0]) == 0:
        raise ValueError("The latent is fully denoised (noise level 0): a latent basis needs one that is still "
                         "noisy. Split the sigmas earlier, e.g. at step 15 of 50.")
    return float(sigmas[0])


def timestep(model, sigma: float) -> float:
    return float(model.get_model_object("model_sampling").timestep(torch.tensor(sigma)))


def notes(basis: LatentBasis, model, positive, t: float) -> str:
    """Lines on a basis that was computed elsewhere than it is used."""
    text = ""
    if abs(basis.network_timestep - basis.t) > 1:
        text += f"\nNote: the basis was computed with the U-Net at timestep {basis.network_timestep:.0f}, not at its " \
                f"latent's own, {basis.t:.0f}."
    if abs(t - basis.t) > 1:
        text += f"\nNote: the basis was computed at t {basis.t:.0f}, the latent is at {t:.0f}."
    told = weights_told(model, options_of(positive))
    hooks = [provenance.get("hooks", "") for provenance in (basis.provenance, told)]
    if different_models([basis.provenance, told]) or not same_hooks(*hooks):
        text += "\nNote: the basis was computed on another model, or with other LoRAs."
    return text


def direction_between(model, positive_a, positive_b, latent: Tensor, sigmas: Tensor, basis: LatentBasis | None,
                      block: str = MIDDLE) -> tuple[LatentBasis, str]:
    """The direction that moves h from what prompt A makes of the latent towards what prompt B makes of it.

    Within `basis` if there is one, else J^T of the difference; h is the output of `block`. A basis of one direction.
    Raises ValueError.
    """
    sigma = first_level(sigmas)
    if basis is not None and basis.block != block:
        raise ValueError(f"The basis is of the block {basis.block}, and block is {block}. Set block to {basis.block}, "
                         "or compute the basis with this one.")
    one, other = (record_call(model, positive, latent, sigma) for positive in (positive_a, positive_b))
    check_block(model, block)
    encoder = Encoder(copy_encoder(model, block, one.hooked), one, block)
    own = one.hooked or other.hooked
    towards = Encoder(copy_encoder(model, block, other.hooked) if own else encoder.unet, other, block)
    with torch.inference_mode(False), torch.no_grad():
        difference = finite(towards.fused(encoder.x) - encoder.fused(encoder.x), "The U-Net's h")[0]
    if not difference.any():
        raise ValueError("Both prompts give the same h: there is nothing between them. Write two different prompts.")
    if basis is None:
        v, told = pull_direction(difference, jacobian_of(encoder)), "steepest ascent, without a basis"
    else:
        found = prompt_direction(difference.cpu(), basis)
        v, told = found.v, f"coverage {found.coverage:.2f} of the basis"
    u = difference.cpu() / difference.norm().cpu()
    provenance = {**weights_told(model, options_of(positive_a)), "solver": PROMPT, "block": block}
    t = timestep(model, sigma)
    told = f"direction between two prompts: {told}" + ("" if basis is None else notes(basis, model, positive_a, t))
    return one_direction(v, u, t, sigma, provenance), told
