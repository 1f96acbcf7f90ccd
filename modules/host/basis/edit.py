"""Editing in the host: a latent moved along the directions of a basis, at one noise level."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import comfy.model_management
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ...basis.basis import LatentBasis
from ...basis.guidance import (
    CONTRAST,
    TOO_FAR,
    direct_addition,
    keep_in_distribution,
    lengths,
    norm_drift,
    normalise,
    official_scale,
    restore_norm,
    x_space_guidance,
)
from ...basis.transport import WEAK, ZERO_NORM, subtract_complement
from ..calls import without_guidance
from ..guiders import guider_of
from .compute import first_level, notes, timestep
from .encoder import check_encodable

GUIDANCE, ADDITION, NORMALISED = "x-space guidance", "addition", "addition, normalised"
METHODS = (GUIDANCE, ADDITION, NORMALISED)
SHORTER = 0.99              # share of its strength below which a move is told of


def strengths(strength: float, count: int) -> list[float]:
    """`count` values from -strength to strength; a single one is strength itself."""
    return [strength] if count == 1 else torch.linspace(-strength, strength, count).tolist()


@dataclass(frozen=True)
class EditRequest:
    """What Edit along Basis asks for.

    Attributes:
        direction: index in the basis, -1 = each.
        strength, count: see `strengths`; travel in x of unit directions: of guidance gamma times steps, of "addition,
            normalised" the most.
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


def edit(model, positive, latent: Tensor, sigmas: Tensor, basis: LatentBasis, request: EditRequest,
         complement: LatentBasis | None = None) -> tuple[Tensor, str]:
    """(edited LATENT samples, directions x strengths rows; what happened, in words). latent [1, C, h, w].

    complement: a basis whose directions are taken out of the edit's. Raises ValueError.
    """
    sigma = first_level(sigmas)
    check_encodable(model, latent, sigma)
    if basis.V.shape[1:] != latent.shape[1:]:
        raise ValueError(f"The basis belongs to latents of shape {list(basis.V.shape[1:])}; this one is "
                         f"{list(latent.shape[1:])}. Compute the basis at this size.")
    if not -1 <= request.direction < len(basis.V):
        raise ValueError(f"direction is {request.direction}; the basis has directions 0 to {len(basis.V) - 1}. -1 "
                         "takes each of them.")
    chosen = list(range(len(basis.V))) if request.direction == -1 else [request.direction]
    V, told = directions(basis, chosen, complement)
    t, travel = timestep(model, sigma), request.strength
    if request.by_noise and request.method == GUIDANCE:
        travel *= official_scale(t)
    pairs = [(index, value) for index in chosen for value in strengths(travel, request.count)]
    sampler = EditSampler(sigma, V.repeat_interleave(request.count, 0), [value for _, value in pairs], request)
    rows = latent.repeat(len(pairs), 1, 1, 1)           # so that the host makes room for all of them
    guider = guider_of(without_guidance(model), positive)
    edited = guider.sample(torch.zeros_like(rows), rows, sampler, torch.tensor([sigma, 0.0]), disable_pbar=True, seed=0)
    text = edit_text(pairs, sampler, t) + told + notes(basis, model, positive, t)
    return edited.to(comfy.model_management.intermediate_device()), text


def directions(basis: LatentBasis, chosen: Sequence[int], complement: LatentBasis | None) -> tuple[Tensor, str]:
    """(the chosen directions [k, C, h, w] without what lies in the complement's, lines on what was left of them).

    Raises ValueError if nothing is left of one.
    """
    V = basis.V[chosen]
    if complement is None:
        return V, ""
    V, left = subtract_complement(V, complement)
    shares = {index: share for index, share in zip(chosen, left.tolist(), strict=True)}
    gone = [str(index) for index, share in shares.items() if share <= ZERO_NORM]
    if gone:
        raise ValueError(f"Nothing is left of direction {', '.join(gone)} without the complement's directions: it lies "
                         "in them. Choose another direction, or a complement with fewer directions.")
    text = f"\ncomplement: {len(complement.V)} directions taken out; left of each: " + ", ".join(
        f"{index}: {share:.2f}" for index, share in shares.items())
    if min(shares.values()) < WEAK:
        text += f"\nWarning: below {WEAK} little of the direction is left; what remains may be noise."
    return V, text


class EditSampler(comfy.samplers.Sampler):
    """A SAMPLER that stays at one noise level and moves the rows of one latent along directions, each by its value."""

    def __init__(self, sigma: float, V: Tensor, values: Sequence[float], request: EditRequest):
        self.sigma, self.V, self.values, self.request = sigma, V, list(values), request
        self.drift: list[float] = []
        self.travel: list[float] = []           # length of each row's move, in the scale of the U-Net

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
                alpha_bar, most = 1 / (1 + self.sigma ** 2), torch.tensor(self.values, device=x.device).abs()
                moved = normalise(x.expand_as(moved), moved, eps, alpha_bar)
                moved = keep_in_distribution(x, moved, eps, alpha_bar, most)
        self.travel = lengths(moved - x).tolist()
        self.drift = norm_drift(x.expand_as(moved), moved).tolist()
        if request.keep_norm:
            moved = restore_norm(x, moved)
        unmoved = [index for index, value in enumerate(self.values) if value == 0]
        moved = moved * scale
        moved[unmoved] = latent_image.expand_as(moved)[unmoved]        # bit for bit, without the way there and back
        return moved


def edit_text(pairs: Sequence[tuple[int, float]], sampler: EditSampler, t: float) -> str:
    """What was done, and whether it went too far."""
    lines = [f"{len(pairs)} latents: directions {sorted({index for index, _ in pairs})} x strengths "
             f"{sorted({round(value, 2) for _, value in pairs})} at t {t:.0f}"]
    if sampler.request.method == NORMALISED:
        lines.append("moved by " + ", ".join(f"{length:.2f}" for length in sampler.travel))
        if any(length < SHORTER * abs(value) for length, (_, value) in zip(sampler.travel, pairs, strict=True)):
            lines.append("Shorter than the strength: farther on, the contrast of the predicted picture would change "
                         f"by more than {CONTRAST:.0%}, or the latent's norm by more than {TOO_FAR:.0%}.")
    worst = max(sampler.drift, key=abs)
    if abs(worst) > TOO_FAR:
        lines.append(f"Warning: the latent's norm changed by {worst:+.0%}; beyond {TOO_FAR:.0%} pictures fall apart. "
                     "Use a smaller strength, or switch keep_norm on.")
    lines.append("Sample on with a sampler that adds no noise (euler, dpmpp_2m): ancestral and SDE ones hide small "
                 "edits.")
    return "\n".join(lines)
