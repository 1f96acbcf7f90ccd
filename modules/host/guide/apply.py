"""A guide model on a MODEL: one conditional pass with residuals in place of classifier-free guidance's two.

Two wrappers of the host do it. Around the guidance, the sampler's cfg becomes the guide's scale g and is 1 for the
call, so that the host makes one pass. Around the U-Net, the guide's residuals join those of ControlNets.
"""
from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import comfy.samplers
import torch
import torch.nn.functional as F
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..calls import PROMPT, chunks_of, know_roles, unknown_role
from ..schedules import check_percents
from .files import LoadedGuide, check_fit

KEY = "frozen_guide"
ONE_PASS, HYBRID = "one pass", "hybrid (real cfg too)"
MODES = (ONE_PASS, HYBRID)
CONSTANT, COSINE = "constant", "cosine"
SCHEDULES = (CONSTANT, COSINE)
DISTILLED = ("lcm", "turbo", "lightning", "hyper")      # in the name of a sampling whose guidance is inside already


@dataclass
class GuideReport:
    """What a guide did in a run, a row a step, for the node Guide Report."""
    rows: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class GuideSettings:
    """How a guide acts in a sampling.

    Attributes:
        guidance: the scale g; 0 = the sampler's cfg.
        strength: factor on the residuals.
        percents: (start, end) of the sampling in which it acts.
        schedule: of g over the steps: constant, or half a cosine down to 1.
        mode: ONE_PASS, or HYBRID: the sampler's cfg stays and is real guidance beside the guide.
        extrapolate: whether g may exceed what the guide was trained on.
    """
    guidance: float = 0.0
    strength: float = 1.0
    percents: tuple[float, float] = (0.0, 1.0)
    schedule: str = CONSTANT
    mode: str = ONE_PASS
    extrapolate: bool = False


def apply_guide(model, loaded: LoadedGuide, settings: GuideSettings, allow_distilled: bool = False):
    """A clone of the MODEL that is guided by the guide. Raises ValueError where they do not belong together."""
    check_fit(model, loaded)
    check_percents(*settings.percents)
    if not (math.isfinite(settings.guidance) and settings.guidance >= 0):
        raise ValueError(f"guidance is 0 (the sampler's cfg) or a scale from 1 on; {settings.guidance} was given.")
    if settings.mode == HYBRID and not settings.guidance:
        raise ValueError("Mode hybrid leaves the sampler's cfg to real guidance, so the guide's scale has to be "
                         "given: set guidance, e.g. 5.")
    if KEY in {key for wrappers in model.wrappers.values() for key in wrappers}:
        raise ValueError("This MODEL already has a guide model. Two at once would guide twice; connect the MODEL from "
                         "before the first Apply Guide Model.")
    if not allow_distilled and (found := distilled(model)):
        raise ValueError(f"The MODEL seems to be distilled already ({found}), so that guidance is inside of it; a "
                         "guide on top burns the picture. Switch allow_distilled on if you mean it.")
    model = model.clone()
    if settings.strength == 0:
        return model
    guide = Guide(loaded, settings)
    model.set_additional_models(KEY, [loaded.patcher.clone()])
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, guide.around_sampling)
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, guide.around_guidance)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, guide.around_unet)
    know_roles(model)
    return model


def distilled(model) -> str:
    """A word that tells a MODEL whose guidance is distilled into it, "" if there is none."""
    names = [base.__name__ for base in type(model.get_model_object("model_sampling")).__mro__]
    return next((name for name in names if any(word in name.lower() for word in DISTILLED)), "")


@dataclass
class GuideRun:
    """What one run of a sampler knows: handed over in transformer_options.

    Attributes:
        g: the scale of the call at hand; None outside of a guidance that is known.
        texts: keys and values by conditioning, with the text that they were made of.
    """
    sigmas: tuple[float, float]
    g: float | None = None
    texts: dict = field(default_factory=dict)
    warned: set[str] = field(default_factory=set)
    report: GuideReport | None = None

    def warn(self, text: str) -> None:
        """Once a run, also in the report."""
        if text not in self.warned:
            self.tell(text, logging.WARNING)

    def tell(self, text: str, level: int = logging.INFO) -> None:
        """A line for the log and the report."""
        self.warned.add(text)
        logging.log(level, "Frozen Diffusion: %s", text)
        if self.report is not None:
            self.report.notes.append(text)


@dataclass(frozen=True)
class Guide:
    """The wrappers of one Apply Guide Model node. No state: what a run needs travels with the run."""
    loaded: LoadedGuide
    settings: GuideSettings

    def around_sampling(self, executor, noise: Tensor, *args, **kwargs):
        """OUTER_SAMPLE: a run of its own in the options."""
        guider = executor.class_obj
        sampling = guider.model_patcher.get_model_object("model_sampling")
        options = guider.model_options["transformer_options"]
        sigmas = tuple(map(sampling.percent_to_sigma, self.settings.percents))
        run = options[KEY] = GuideRun(sigmas)
        if guider.conds.get("negative") and self.settings.mode == ONE_PASS:
            run.tell("the guide makes one pass, in which the negative prompt is not read; mode hybrid reads it, in "
                     "two.")
        return executor(noise, *args, **kwargs)

    def around_guidance(self, executor, x: Tensor, timestep: Tensor, model_options: Mapping, seed=None):
        """PREDICT_NOISE: the sampler's cfg becomes g and is 1 for the call."""
        guider, run = executor.class_obj, model_options["transformer_options"].get(KEY)
        if run is None:
            return executor(x, timestep, model_options, seed)
        plain = type(guider).predict_noise is comfy.samplers.CFGGuider.predict_noise
        if not plain and not self.settings.guidance:
            raise ValueError(f"The guider {type(guider).__name__} combines its prompts by scales of its own, so the "
                             "guide's cannot be told from them. Set guidance on Apply Guide Model, or use CFGGuider or "
                             "KSampler.")
        one_pass = plain and self.settings.mode == ONE_PASS
        cfg = guider.cfg if plain else None
        run.g = self.scale(self.settings.guidance or cfg, timestep, model_options)
        if one_pass and model_options.get("disable_cfg1_optimization"):
            run.warn("another node or the sampler (one of the cfg_pp kind) asks for the negative prompt at every "
                     "step, so the guide saves no time here.")
        if plain and not one_pass and not math.isclose(cfg, 1.0):
            run.warn("two passes a step: the guide acts on the prompt, real guidance on what it gives.")
        try:
            if one_pass:
                guider.cfg = 1.0
            return executor(x, timestep, model_options, seed)
        finally:
            run.g = None
            if one_pass:
                guider.cfg = cfg

    def scale(self, g: float, timestep: Tensor, model_options: Mapping) -> float:
        """g of this step by the schedule. Raises ValueError for scales that mean nothing."""
        if not math.isfinite(g) or g < 0:
            raise ValueError(f"The guidance scale is {g}; expected a number from 0 on (1 = off).")
        if self.settings.schedule == COSINE and g > 1:
            levels = model_options["transformer_options"]["sample_sigmas"]
            step = int((levels - float(timestep[0])).abs().argmin())
            g = 1 + (g - 1) * 0.5 * (1 + math.cos(math.pi * step / max(1, len(levels) - 2)))
        return g

    def around_unet(self, executor, x: Tensor, timesteps: Tensor, context: Tensor, y=None, control=None,
                    transformer_options: dict | None = None, *args, **kwargs):
        """DIFFUSION_MODEL: the guide's residuals beside those of ControlNets, on the rows of the prompt."""
        run = transformer_options.get(KEY)
        if run is None or run.g is None or run.g <= 1 or not self.acts(run, transformer_options):
            return executor(x, timesteps, context, y, control, transformer_options, *args, **kwargs)
        residuals = self.residuals(run, x, timesteps, context, y, transformer_options)
        if residuals is not None:
            control = merged(control, residuals)
            transformer_options = with_shape_check(transformer_options, control, residuals, run)
        return executor(x, timesteps, context, y, control, transformer_options, *args, **kwargs)

    def acts(self, run: GuideRun, options: Mapping) -> bool:
        """Whether this step lies in the part of the sampling in which the guide acts."""
        highest, lowest = run.sigmas
        return lowest <= float(options["sigmas"][0]) <= highest

    def residuals(self, run: GuideRun, x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor | None,
                  options: Mapping) -> list[Tensor] | None:
        """Of a whole call, zero where rows do not follow the prompt; None if none does."""
        network, found = self.loaded.network, None
        if x.shape[1] > 4:
            run.warn("the MODEL has more than 4 input channels (inpainting); the guide sees the latents alone, and "
                     "how well it guides then has not been measured.")
        g, factor = self.in_range(run)
        for chunk in chunks_of(len(x), options):
            if chunk.role is None:
                raise unknown_role("A guide model")
            if chunk.role != PROMPT:
                continue
            rows = chunk.rows
            text = run.texts.get(chunk.conditioning)
            if text is None or text[0].shape != context[rows].shape or not torch.equal(text[0], context[rows]):
                text = run.texts[chunk.conditioning] = (context[rows], network.read_text(context[rows]))
            scale = torch.full((len(x[rows]),), g, device=x.device)
            made = network(x[rows, :4], timesteps[rows], scale, text[1], None if y is None else y[rows])
            if found is None:
                found = [residual.new_zeros(len(x), *residual.shape[1:]) for residual in made]
            for whole, residual in zip(found, made, strict=True):
                whole[rows] = residual * (factor * self.settings.strength)
        if found is not None and not all(residual.isfinite().all() for residual in found):
            raise ValueError(f"The guide {self.loaded.source} gave numbers that are not finite, at g {g:g} in "
                             f"{x.dtype}. Lower cfg, or start ComfyUI with --fp32-unet.")
        if found is not None and run.report is not None:
            size = float(torch.stack([residual.float().square().mean() for residual in found]).mean().sqrt())
            run.report.rows.append({"sigma": float(options["sigmas"][0]), "residual": size})
        return found

    def in_range(self, run: GuideRun) -> tuple[float, float]:
        """(scale for the guide, factor on its residuals): below its range it runs at the lower end, fading out to 1."""
        config, g = self.loaded.config, run.g
        if g > config.g_max and not self.settings.extrapolate:
            run.warn(f"cfg {g:g} is above what the guide was trained on; {config.g_max:g} is used. Switch extrapolate "
                     "on to go beyond it.")
            g = config.g_max
        if 1 < g < config.g_min:
            return config.g_min, (g - 1) / (config.g_min - 1)
        return g, 1.0


def merged(control: Mapping | None, residuals: Sequence[Tensor]) -> dict[str, list]:
    """A control of its own with the guide's residuals added to what is there; lists align at their ends."""
    control = control or {}
    own = {name: list(parts) for name, parts in control.items()}
    for name, ours in (("middle", [residuals[-1]]), ("output", list(residuals[:-1]))):
        theirs = own.get(name, [])
        theirs = [None] * (len(ours) - len(theirs)) + theirs
        extra = len(theirs) - len(ours)
        own[name] = theirs[:extra] + [residual if there is None or there.shape != residual.shape else there + residual
                                      for there, residual in zip(theirs[extra:], ours, strict=True)]
    own.setdefault("input", [])
    return own


def with_shape_check(options: Mapping, control: dict[str, list], residuals: Sequence[Tensor], run: GuideRun) -> dict:
    """Options with a last patch of the encoder that compares each skip with the residual that it will meet.

    Nodes that shrink features inside of the U-Net (Deep Shrink) change a skip's size; the host would drop the residual
    with a line in its log, or stretch one of a single cell over all. Here it is resized.
    """
    patches = {name: list(value) for name, value in options.get("patches", {}).items()}
    outputs = control["output"]
    offset = len(outputs) - (len(residuals) - 1)

    def look(h: Tensor, patch_options: Mapping) -> Tensor:
        number = patch_options["block"][1]
        place = offset + number
        there = outputs[place] if 0 <= place < len(outputs) else None
        if there is not None and there.shape[2:] != h.shape[2:]:
            run.warn("another node changes the size of features inside of the U-Net (Deep Shrink and the like); the "
                     "guide's residuals are resized there.")
            outputs[place] = F.interpolate(there.float(), h.shape[2:], mode="bilinear", align_corners=False).to(there)
            if number == len(residuals) - 2:
                control["middle"][-1] = F.interpolate(control["middle"][-1].float(), h.shape[2:], mode="bilinear",
                                                      align_corners=False).to(there)
        return h

    patches["input_block_patch"] = [*patches.get("input_block_patch", []), look]
    return {**options, "patches": patches}
