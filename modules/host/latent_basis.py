"""The latent basis in the host: computing it, editing along it, and directions from prompts."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import comfy.model_management
import comfy.samplers
import comfy.utils
import torch
import torch.nn.functional as F
from torch import Tensor

from ..about import different_models
from ..basis.basis import LatentBasis, latent_basis
from ..basis.directions import one_direction
from ..basis.guidance import (
    TOO_FAR,
    direct_addition,
    norm_drift,
    normalise,
    official_scale,
    restore_norm,
    x_space_guidance,
)
from ..basis.lanczos import expected_products, lanczos
from ..basis.products import Jacobian, finite
from ..basis.report import angle_in_words
from ..basis.subspace_iteration import subspace_iteration
from ..basis.transport import prompt_direction, pull_direction
from ..basis.triplets import Step
from .calls import without_guidance
from .encoder import Encoder, check_encodable, copy_encoder, record_call
from .inversion import guider_of
from .weights import fingerprint, hooks_identity, model_identity, same_hooks, weights_told

LANCZOS, OFFICIAL = "lanczos", "official"
SOLVERS = (LANCZOS, OFFICIAL)
IN_H, IN_X = "h", "x"
GUIDANCE, ADDITION, NORMALISED = "x-space guidance", "addition", "addition, normalised"
METHODS = (GUIDANCE, ADDITION, NORMALISED)
MOST = 64                   # directions of one basis


@dataclass(frozen=True)
class BasisRequest:
    """What Compute Latent Basis asks for: how many directions, by which solver, where."""
    rank: int = 4
    solver: str = LANCZOS
    tolerance: float = 1e-3
    seed: int = 0
    mask_space: str = IN_H


def compute_basis(model, positive, latent: Tensor, sigmas: Tensor, request: BasisRequest, mask: Tensor | None = None,
                  start: LatentBasis | None = None, say: Callable[[str], None] = lambda text: None
                  ) -> tuple[LatentBasis, Step]:
    """The basis of a latent [1, C, h, w] at noise level sigmas[0], and the solver's last record.

    mask [1, H, W] at any size; start: a basis to begin from; say: hears how far it is. Fewer directions than asked for
    come out where x or h has no more. Raises ValueError; RuntimeError if the Jacobian is broken.
    """
    encoder, sigma = encoder_of(model, positive, latent, sigmas)
    jacobian = jacobian_of(encoder, mask, request.mask_space)
    jacobian.check_adjoint()
    rank = min(request.rank, MOST, jacobian.n, jacobian.m)
    if request.solver == LANCZOS:
        steps = lanczos(jacobian, rank, request.tolerance, seed=request.seed, start=None if start is None else start.V)
        total = expected_products(rank)
    else:
        steps, total = subspace_iteration(jacobian, rank, official=True, seed=request.seed), 24 * rank
    bar = comfy.utils.ProgressBar(total)
    for step in steps:
        bar.update_absolute(min(step.products, total), max(total, step.products))
        say(f"{step.products} products; {angle_in_words(step.angle, step.residuals, step.converged)}")
    about = {**weights_told(model, options_of(positive)), "solver": request.solver, "products": str(step.products),
             "converged": str(step.converged), "angle": f"{step.angle:.3g}", "masked": str(mask is not None),
             "derivative": "central differences" if jacobian.difference else "forward mode",
             "prompt": fingerprint(*(text for text, _ in positive)), "latent": fingerprint(latent)}
    return latent_basis(step.found, timestep(model, sigma), sigma, about), step


def encoder_of(model, positive, latent: Tensor, sigmas: Tensor) -> tuple[Encoder, float]:
    """(differentiable encoder, noise level) for a latent at sigmas[0]. Raises ValueError."""
    sigma = first_level(sigmas)
    call = record_call(model, positive, latent, sigma)
    return Encoder(copy_encoder(model, call.hooked), call), sigma


def jacobian_of(encoder: Encoder, mask: Tensor | None = None, mask_space: str = IN_H) -> Jacobian:
    """J at the encoder's latent, restricted to a mask in h or in x."""
    masks = {}
    if mask is not None:
        with torch.inference_mode(False), torch.no_grad():
            size = encoder.x.shape[-2:] if mask_space == IN_X else encoder.fused(encoder.x).shape[-2:]
            masks[f"{mask_space}_mask"] = F.interpolate(mask[:1, None].float().clone(), size, mode="area")[0, 0]
    return Jacobian(encoder.fused, encoder.x, push_f=encoder.plain, pull_f=encoder.fused, keep=True,
                    before=comfy.model_management.throw_exception_if_processing_interrupted, **masks)


def options_of(conditioning) -> list[dict]:
    """What a CONDITIONING says of its prompts besides their text."""
    return [options for _, options in conditioning]


def first_level(sigmas: Tensor) -> float:
    """The noise level that the latent has. Raises ValueError for an empty list."""
    if len(sigmas) == 0 or float(sigmas[0]) == 0:
        raise ValueError("The latent is fully denoised (noise level 0): a latent basis needs one that is still "
                         "noisy. Split the sigmas earlier, e.g. at step 15 of 50.")
    return float(sigmas[0])


def timestep(model, sigma: float) -> float:
    return float(model.get_model_object("model_sampling").timestep(torch.tensor(sigma)))


def strengths(strength: float, count: int) -> list[float]:
    """`count` values from -strength to strength; a single one is strength itself."""
    return [strength] if count == 1 else torch.linspace(-strength, strength, count).tolist()


@dataclass(frozen=True)
class EditRequest:
    """What Edit along Basis asks for.

    Attributes:
        direction: index in the basis, -1 = each.
        strength, count: see `strengths`; travel in x of unit directions, gamma times steps.
        by_noise: guidance goes farther at low noise, by the released code's table: strength is the travel at gamma 1.
    """
    direction: int = 0
    strength: float = 16.0
    count: int = 3
    method: str = GUIDANCE
    steps: int = 16
    eta: float = 1.0
    keep_norm: bool = False
    by_noise: bool = False


def edit(model, positive, latent: Tensor, sigmas: Tensor, basis: LatentBasis, request: EditRequest
         ) -> tuple[Tensor, str]:
    """(edited LATENT samples, directions x strengths rows; what happened, in words). latent [1, C, h, w].

    Raises ValueError.
    """
    sigma = first_level(sigmas)
    check_encodable(model, latent, sigma)
    if basis.V.shape[1:] != latent.shape[1:]:
        raise ValueError(f"The basis belongs to latents of shape {list(basis.V.shape[1:])}; this one is "
                         f"{list(latent.shape[1:])}. Compute the basis at this size.")
    if not -1 <= request.direction < len(basis.V):
        raise ValueError(f"direction is {request.direction}; the basis has directions 0 to {len(basis.V) - 1}. -1 "
                         "takes each of them.")
    chosen = range(len(basis.V)) if request.direction == -1 else [request.direction]
    t, travel = timestep(model, sigma), request.strength
    if request.by_noise and request.method == GUIDANCE:
        travel *= official_scale(t)
    pairs = [(index, value) for index in chosen for value in strengths(travel, request.count)]
    sampler = EditSampler(sigma, basis.V[[index for index, _ in pairs]], [value for _, value in pairs], request)
    rows = latent.repeat(len(pairs), 1, 1, 1)           # so that the host makes room for all of them
    guider = guider_of(without_guidance(model), positive)
    edited = guider.sample(torch.zeros_like(rows), rows, sampler, torch.tensor([sigma, 0.0]), disable_pbar=True, seed=0)
    text = edit_text(pairs, sampler.drift, t) + notes(basis, model, positive, t)
    return edited.to(comfy.model_management.intermediate_device()), text


def notes(basis: LatentBasis, model, positive, t: float) -> str:
    """Lines about a basis that was computed elsewhere than it is used."""
    text = ""
    if abs(t - basis.t) > 1:
        text += f"\nNote: the basis was computed at t {basis.t:.0f}, the latent is at {t:.0f}."
    if different_models([basis.about, {"model": model_identity(model)}]) or not same_hooks(
            basis.about.get("hooks", ""), hooks_identity(options_of(positive))):
        text += "\nNote: the basis was computed on another model, or with other LoRAs."
    return text


class EditSampler(comfy.samplers.Sampler):
    """A SAMPLER that stays at one noise level and moves the rows of one latent along directions, each by its value."""

    def __init__(self, sigma: float, V: Tensor, values: Sequence[float], request: EditRequest):
        self.sigma, self.V, self.values, self.request = sigma, V, list(values), request
        self.drift: list[float] = []

    @torch.no_grad()
    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
               disable_pbar=False):
        """See the host's samplers. Latents in and out are the host's; the edit is in the scale of the U-Net."""
        scale, request = (1 + self.sigma ** 2) ** 0.5, self.request

        def eps(x: Tensor) -> Tensor:
            big = x * scale
            denoised = model_wrap(big, big.new_full((len(big),), self.sigma), model_options=extra_args["model_options"],
                                  seed=extra_args.get("seed"))
            return (big - denoised) / self.sigma

        latent_image = latent_image[:1]
        x, V = latent_image / scale, self.V.to(latent_image)
        if request.method == GUIDANCE:
            gammas = [value / max(1, request.steps) for value in self.values]
            moved, bar = x.expand(len(V), -1, -1, -1), comfy.utils.ProgressBar(request.steps)
            for after in x_space_guidance(x, V, eps, gammas, request.steps, request.eta):
                moved = after
                bar.update(1)
        else:
            moved = direct_addition(x, V, self.values)
            if request.method == NORMALISED:
                still = torch.tensor(self.values, device=moved.device).view(-1, 1, 1, 1) == 0
                fixed = normalise(x.expand_as(moved), moved, eps, 1 / (1 + self.sigma ** 2))
                moved = torch.where(still, moved, fixed)
        self.drift = norm_drift(x.expand_as(moved), moved).tolist()
        if request.keep_norm:
            moved = restore_norm(x, moved)
        unmoved = [index for index, value in enumerate(self.values) if value == 0]
        moved = moved * scale
        moved[unmoved] = latent_image.expand_as(moved)[unmoved]        # bit for bit, without the way there and back
        return moved


def edit_text(pairs: Sequence[tuple[int, float]], drift: Sequence[float], t: float) -> str:
    """What was done, and whether it went too far."""
    lines = [f"{len(pairs)} latents: directions {sorted({index for index, _ in pairs})} x strengths "
             f"{sorted({round(value, 2) for _, value in pairs})} at t {t:.0f}"]
    worst = max(drift, key=abs)
    if abs(worst) > TOO_FAR:
        lines.append(f"Warning: the latent's norm changed by {worst:+.0%}; beyond {TOO_FAR:.0%} pictures fall apart. "
                     "Use a smaller strength, or switch keep_norm on.")
    lines.append("Sample on with a sampler that adds no noise (euler, dpmpp_2m): ancestral and SDE ones hide small "
                 "edits.")
    return "\n".join(lines)


def direction_between(model, positive_a, positive_b, latent: Tensor, sigmas: Tensor, basis: LatentBasis | None
                      ) -> tuple[LatentBasis, str]:
    """The direction that moves h from what prompt A makes of the latent towards what prompt B makes of it.

    Within `basis` if there is one, else J^T of the difference. A basis of one direction. Raises ValueError.
    """
    sigma = first_level(sigmas)
    one, other = (record_call(model, positive, latent, sigma) for positive in (positive_a, positive_b))
    encoder = Encoder(copy_encoder(model, one.hooked), one)
    towards = Encoder(copy_encoder(model, other.hooked) if one.hooked or other.hooked else encoder.unet, other)
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
    about, t = {**weights_told(model, options_of(positive_a)), "solver": "prompt direction"}, timestep(model, sigma)
    told = f"direction between two prompts: {told}" + ("" if basis is None else notes(basis, model, positive_a, t))
    return one_direction(v, u, t, sigma, about), told
