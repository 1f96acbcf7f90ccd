"""Mitigating-gradient sampling in the host: the predicted clip is smoothed along time after guidance, at every step."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import comfy.model_base
import comfy.model_sampling
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...motion.mitigating_gradient import (
    REFERENCE,
    energy,
    is_limited,
    keep_locked,
    limited_alpha,
    mitigate,
    step_size,
)
from ..attention import attend
from ..calls import extra_calls
from ..clips import clips_of, rows_of
from ..control import parse_frames
from ..progress import take_back_warnings, warn
from ..schedules import check_percents

KEY = "frozen_mitigating_gradient"
# Of the check of a gradient by differences: their step as a share of the latent's length, and the error it may have.
DIFFERENCE, HALF_DIFFERENCE = (0.001, 0.05), (0.005, 0.5)
FAST, EXACT = "fast", "exact"
MODES = (FAST, EXACT)


def mitigate_gradient(model, alpha: float, mode: str = FAST, order: int = 1, start_percent: float = 0.0,
                      end_percent: float = 1.0, frames_per_clip: int = 0, locked_frames: str = ""):
    """A clone of the MODEL that samples with mitigating gradient; alpha 0 gives a plain clone.

    Args:
        alpha: guidance scale, the paper's; 40 by default there. Negative values roughen, with a warning.
        mode: "fast" (no backward pass) or "exact" (through the guided U-Net, two to three times slower).
        order: 1 smooths every change along time, 2 spares even motion.
        start_percent, end_percent: part of the sampling in which it acts.
        frames_per_clip: 0 takes a whole batch as one clip.
        locked_frames: e.g. "0, -1": these frames keep their values exactly, their neighbours still feel them.

    Raises ValueError for settings that do not belong together.
    """
    check_percents(start_percent, end_percent)
    model = model.clone()
    if alpha == 0:
        return model
    if is_limited(alpha, order):
        warn(f"Alpha {alpha:g} is more than can be done in a stable way at high noise levels; it is limited there.")
    if alpha < 0:
        warn(f"Alpha {alpha:g} is below 0, so frames are driven apart: the clip gets rougher, not smoother.")
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, around_sampling)
    mitigation = Mitigation(alpha, order, (start_percent, end_percent), frames_per_clip, locked_frames)
    if mode == FAST:
        model.set_model_sampler_post_cfg_function(mitigation.after_guidance)
    else:
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, mitigation.around_guidance)
    return model


@dataclass(frozen=True)
class Mitigation:
    """The settings of one Mitigating Gradient node, and how they act."""
    alpha: float
    order: int
    percents: tuple[float, float]
    frames_per_clip: int
    locked_frames: str

    def after_guidance(self, args: dict) -> Tensor:
        """The host's post-CFG function: `fast` mode on the denoised prediction [(b f), ...]."""
        denoised, sampling = args["denoised"], args["model"].model_sampling
        sigma = self.active_sigma(args["sigma"], sampling)
        if sigma is None:
            return denoised
        clips = self.clips(denoised)
        smooth = mitigate(clips, step_size(self.alpha, sigma, self.order), self.order, self.locked(clips))
        return rows_of(smooth, denoised)

    def around_guidance(self, executor, x: Tensor, timestep: Tensor, model_options: dict | None = None, seed=None):
        """PREDICT_NOISE: `exact` mode, x0' = x0 - alpha sigma^2 J^T grad E through the guided U-Net. x [(b f), ...]

        Once a run the gradient is compared with differences of the prediction, for two more calls of the U-Net.
        """
        guider = executor.class_obj
        sigma = self.active_sigma(timestep, guider.inner_model.model_sampling)
        if sigma is None:
            return executor(x, timestep, model_options, seed)
        if isinstance(guider.inner_model.model_sampling, comfy.model_sampling.CONST):
            raise ValueError("Mode exact is for U-Nets that predict noise or v (SD1.5, SD2, SDXL); this MODEL is a "
                             "flow model. Use mode fast.")
        check_gradients(guider.model_patcher)
        if self.clips(x).shape[1] <= self.order:        # too short to change along time
            return executor(x, timestep, model_options, seed)
        options = {**model_options, "transformer_options": {**model_options["transformer_options"],
                                                            "optimized_attention_override": attend}}
        with torch.inference_mode(False), torch.no_grad():
            denoised, pull_back = torch.func.vjp(
                lambda given: executor(given, timestep.clone(), options, seed), x.clone())
            with torch.enable_grad():
                leaf = denoised.detach().clone().requires_grad_()
                gradient, = torch.autograd.grad(self.energy(leaf), leaf)
            slope, = pull_back(gradient)
        if not slope.isfinite().all():
            raise ValueError("The gradient through the U-Net is not finite. Use mode fast, or run ComfyUI with "
                             "--force-fp32.")
        if not slope.any() and gradient.any():
            raise ValueError("No gradient came back from the U-Net: another node replaces a part of it by something "
                             "without a derivative. Use mode fast, or take that node away.")
        checked = model_options["transformer_options"].get(KEY, set())
        if self not in checked and gradient.any():
            with torch.inference_mode(False), torch.no_grad(), extra_calls(options):
                check_slope(lambda given: executor(given, timestep.clone(), options, seed), x.clone(), gradient, slope,
                            HALF_DIFFERENCE if in_half_precision(guider.inner_model) else DIFFERENCE)
            checked.add(self)
        clips = self.clips(denoised)
        alpha = limited_alpha(self.alpha, sigma, self.order)
        moved = clips - alpha * sigma ** 2 * self.clips(slope.to(denoised))
        return rows_of(keep_locked(clips, moved, self.locked(clips)), denoised)

    def active_sigma(self, sigmas: Tensor, sampling) -> float | None:
        """The noise level as standard deviation over signal, None outside of the node's part of the sampling."""
        sigma = float(sigmas.flatten()[0])
        highest, lowest = map(sampling.percent_to_sigma, self.percents)
        if not lowest <= sigma <= highest:
            return None
        flow = isinstance(sampling, comfy.model_sampling.CONST)     # x = (1 - sigma) x0 + sigma n
        return sigma / max(1e-6, 1 - sigma) if flow else sigma

    def clips(self, x: Tensor) -> Tensor:
        """[(b f), C, H, W] -> [b, f, C, H, W]. Raises ValueError."""
        return clips_of(x, self.frames_per_clip)

    def locked(self, clips: Tensor) -> Tensor | None:
        """[F] bool of the frames that keep their values. Raises ValueError for frames that are not there."""
        if not self.locked_frames.strip():
            return None
        locked = torch.zeros(clips.shape[1], dtype=torch.bool, device=clips.device)
        locked[parse_frames(self.locked_frames, clips.shape[1], "locked_frames")] = True
        return locked

    def energy(self, denoised: Tensor) -> Tensor:
        """E of all clips, with the mean over the reference's numbers of a frame, so that alpha means the same."""
        clips = self.clips(denoised)
        return energy(clips, self.order).sum() * clips[0, 0].numel() / REFERENCE


def around_sampling(executor, noise: Tensor, *args, **kwargs):
    """OUTER_SAMPLE: warn once a run of what cannot be smoothed, and note the nodes whose gradient was checked in it."""
    take_back_warnings()
    guider = executor.class_obj
    options = guider.model_options["transformer_options"]
    if KEY not in options:
        options[KEY] = set()
        warn_of_pictures(guider.model_patcher, noise)
    return executor(noise, *args, **kwargs)


def warn_of_pictures(patcher, noise: Tensor) -> None:
    """Say that a batch of an image model is no clip. A motion module, ours or another pack's, is an injection."""
    if noise.ndim == 4 and not patcher.injections and not isinstance(patcher.model, comfy.model_base.SVD_img2vid):
        warn("Mitigating Gradient smooths the frames of a clip, but this MODEL has no motion module: its batch is "
             "pictures of their own, which it makes alike. Put Apply Motion Module before it.")


def in_half_precision(base) -> bool:
    """Whether the host's BaseModel `base` computes in fewer than 32 bits."""
    return (base.manual_cast_dtype or base.get_dtype()) not in (torch.float32, torch.float64)


def check_slope(predict: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor, slope: Tensor,
                difference: tuple[float, float]) -> None:
    """Raises RuntimeError unless slope = J^T gradient for the J of `predict` at x: <gradient, J v> = <slope, v> along
    v = slope / || slope ||, J v by central differences. difference: (share of || x || for a step, tolerance)."""
    share, tolerance = difference
    length = slope.double().norm()
    step = share * float(x.double().norm() / length) * slope.to(x)
    change = ((predict(x + step) - predict(x - step)).double() * gradient.double()).sum() / 2
    expected = (slope.double() * step.double()).sum()
    error = float((change - expected).abs() / expected)
    if not error <= tolerance:
        raise RuntimeError(
            f"The gradient through the U-Net differs by {error:.0%} from how its prediction changes, at most "
            f"{tolerance:.0%} is allowed. The usual cause are weights that ComfyUI or another node moves or overwrites "
            "in the middle of a run. Use mode fast, or start ComfyUI with --highvram.")


def check_gradients(patcher) -> None:
    """Raises ValueError where the U-Net's weights come and go during a run, so that gradients would be wrong."""
    is_dynamic = getattr(patcher, "is_dynamic", None)       # of newer hosts
    if is_dynamic is not None and is_dynamic():
        raise ValueError("Mode exact needs the whole U-Net in the device's memory, but ComfyUI streams its weights "
                         "layer by layer here (dynamic loading). Use mode fast, or start ComfyUI with "
                         "--disable-dynamic-vram.")
    if getattr(patcher.model, "model_lowvram", False):
        raise ValueError("Mode exact needs the whole U-Net in the device's memory, but ComfyUI loads it piece by piece "
                         "here. Use mode fast, free memory, or make fewer frames or smaller ones.")
