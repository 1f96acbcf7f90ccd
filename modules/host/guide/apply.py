"""A guide model on a MODEL: one conditional pass with residuals in place of classifier-free guidance's two.

Wrappers of the host do it. Around the guidance, the sampler's cfg becomes the guide's scale g and is 1 for the call, so
that the host makes one pass; its prediction stands in for the second one too, so that nodes which compare the two find
no difference instead of an empty one. Around the U-Net, the guide's residuals join those of ControlNets.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import comfy.samplers
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...guide.files import GuideConfig, marks_of_text
from ...guide.networks import Walk
from ..calls import PROMPT, Chunk, chunks_of, know_roles, unknown_role
from ..progress import warn
from ..schedules import check_percents
from .files import LoadedGuide, check_fit
from .inject import Injection

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
        scales: of the pictures of a batch, one each, in place of guidance; () = one for all.
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
    scales: tuple[float, ...] = ()


def apply_guide(model, loaded: LoadedGuide, settings: GuideSettings, allow_distilled: bool = False):
    """A clone of the MODEL that is guided by the guide. Raises ValueError where they do not belong together."""
    check_fit(model, loaded)
    check_percents(*settings.percents)
    if not (math.isfinite(settings.guidance) and settings.guidance >= 0):
        raise ValueError(f"guidance is 0 (the sampler's cfg) or a scale from 1 on; {settings.guidance} was given.")
    if not all(math.isfinite(scale) and scale >= 0 for scale in settings.scales):
        raise ValueError(f"The scales of a batch's pictures are numbers from 0 on (1 = off); {settings.scales} were "
                         "given.")
    if settings.mode == HYBRID and not (settings.guidance or settings.scales):
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
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, guide.around_calls)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, guide.around_unet)
    know_roles(model)
    return model


def scales_of(text: str) -> tuple[float, ...]:
    """Scales that a person has written, apart by commas or spaces. Raises ValueError for what is no number."""
    try:
        return tuple(map(float, text.replace(",", " ").split()))
    except ValueError as error:
        raise ValueError("The scales of a batch's pictures are numbers such as 2, 5, 8; "
                         f"{text!r} was given.") from error


def distilled(model) -> str:
    """A word that tells a MODEL whose guidance is distilled into it, "" if there is none."""
    names = [base.__name__ for base in type(model.get_model_object("model_sampling")).__mro__]
    return next((name for name in names if any(word in name.lower() for word in DISTILLED)), "")


def of_two_predictions(options: Mapping) -> str:
    """The nodes that combine two predictions in a way of their own, "" if there are none."""
    functions = [*options.get("sampler_pre_cfg_function", []), options.get("sampler_cfg_function")]
    modules = {getattr(function, "function", function).__module__.rpartition(".")[2]     # of one marked in `calls`
               for function in functions if function is not None}
    return ", ".join(sorted(modules))


def on_grid(sigmas: Tensor, grid: Sequence[float]) -> bool:
    """Whether a sampling's noise levels are those of a grid, or its end."""
    levels = [float(sigma) for sigma in sigmas]
    return len(levels) <= len(grid) and all(math.isclose(one, other, rel_tol=0.02, abs_tol=1e-3)
                                            for one, other in zip(levels, grid[-len(levels):], strict=True))


def empty_prompt(conds: Sequence[Mapping] | None, config: GuideConfig) -> bool:
    """Whether there is no negative prompt, or one whose text is that of "" as the guide knows it from its training."""
    texts = [cond["cross_attn"] for cond in conds or () if cond.get("cross_attn") is not None]
    return all(not text.any() or is_empty_text(text, config) for text in texts)


def is_empty_text(text: Tensor, config: GuideConfig) -> bool:
    """Whether an encoded text is that of "", as the guide knows it from its training."""
    known = torch.tensor(config.empty_text)
    return len(known) > 0 and torch.allclose(marks_of_text(text), known, rtol=0.02, atol=0.02)


def active(cond: Mapping, sigma: float) -> bool:
    """Whether the part of the sampling that a conditioning is for holds this noise level."""
    return sigma <= cond.get("timestep_start", math.inf) and sigma >= cond.get("timestep_end", -math.inf)


def same_text(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two encoded texts are one, or both missing."""
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and torch.equal(one, other)


@dataclass
class GuideRun:
    """What one run of a sampler knows: handed over in transformer_options.

    Attributes:
        g: the scale of the call at hand, or one of each picture; None outside of a guidance that is known.
        negative: text [1 or B, L, D] to be guided away from, for a negative-aware guide.
        texts: keys and values by conditioning, with the text that they were made of.
        empty: whether a conditioning is the empty prompt.
    """
    sigmas: tuple[float, float]
    g: tuple[float, ...] | None = None
    negative: Tensor | None = None
    texts: dict = field(default_factory=dict)
    empty: dict = field(default_factory=dict)
    warned: set[str] = field(default_factory=set)
    report: GuideReport | None = None

    def warn(self, text: str) -> None:
        """Once a run, into the log and the report."""
        if text in self.warned:
            return
        self.warned.add(text)
        warn(text)
        if self.report is not None:
            self.report.notes.append(text)


@dataclass(frozen=True)
class Guide:
    """The wrappers of one Apply Guide Model node. No state: what a run needs travels with the run."""
    loaded: LoadedGuide
    settings: GuideSettings

    def around_sampling(self, executor, noise: Tensor, *args, **kwargs):
        """OUTER_SAMPLE: a run of its own in the options."""
        guider, (sampler, sigmas) = executor.class_obj, (args[1], args[2])
        sampling, options = guider.model_patcher.get_model_object("model_sampling"), guider.model_options
        run = options["transformer_options"][KEY] = GuideRun(tuple(map(sampling.percent_to_sigma,
                                                                       self.settings.percents)))
        config, one_pass = self.loaded.config, self.settings.mode == ONE_PASS
        if one_pass and not config.negative_aware and not empty_prompt(guider.conds.get("negative"), config):
            run.warn("the negative prompt is not empty, but this guide makes one pass, in which it is not read. A "
                     "negative-aware guide reads it (Train Guide Model, negatives), and so does mode hybrid, in two "
                     "passes.")
        if one_pass and (names := of_two_predictions(options)):
            run.warn(f"{names} changes how two predictions are combined, and in one pass there is only one: it does "
                     "nothing here. Mode hybrid makes both.")
        if config.sigmas and not on_grid(sigmas, config.sigmas):
            run.warn(f"{self.loaded.source} was taught {config.steps} steps at noise levels of its own, and this "
                     "sampling has others, for which it is worse. Use Stage-2 Sigmas, and sampler euler.")
        if "lcm" in getattr(getattr(sampler, "sampler_function", None), "__name__", ""):
            run.warn("the sampler is lcm, so the MODEL is likely distilled by a LoRA, which its weights do not tell: "
                     "guidance is inside of it then, and a guide on top burns the picture. What was looked at: its "
                     "kind of sampling, and the sampler's name.")
        return executor(noise, *args, **kwargs)

    def around_guidance(self, executor, x: Tensor, timestep: Tensor, model_options: Mapping, seed=None):
        """PREDICT_NOISE: the sampler's cfg becomes g and is 1 for the call."""
        guider, run = executor.class_obj, model_options["transformer_options"].get(KEY)
        if run is None:
            return executor(x, timestep, model_options, seed)
        plain = type(guider).predict_noise is comfy.samplers.CFGGuider.predict_noise
        if not plain and not (self.settings.guidance or self.settings.scales):
            raise ValueError(f"The guider {type(guider).__name__} combines its prompts by scales of its own, so the "
                             "guide's cannot be told from them. Set guidance on Apply Guide Model, or use CFGGuider or "
                             "KSampler.")
        one_pass = plain and self.settings.mode == ONE_PASS
        cfg = guider.cfg if plain else None
        factor = self.faded(timestep, model_options)
        given = self.settings.scales or (self.settings.guidance or cfg,)
        if not all(math.isfinite(g) and g >= 0 for g in given):
            raise ValueError(f"The guidance scale is {given[0]:g}; expected a number from 0 on (1 = off).")
        run.g = tuple(1 + (g - 1) * factor if g > 1 else g for g in given)
        run.negative = self.negative_of(run, guider, float(timestep[0]))
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

    def faded(self, timestep: Tensor, model_options: Mapping) -> float:
        """Factor of this step on g - 1, by the schedule."""
        if self.settings.schedule != COSINE:
            return 1.0
        levels = model_options["transformer_options"]["sample_sigmas"]
        step = int((levels - float(timestep[0])).abs().argmin())
        return 0.5 * (1 + math.cos(math.pi * step / max(1, len(levels) - 2)))

    def negative_of(self, run: GuideRun, guider, sigma: float) -> Tensor | None:
        """The text [1 or B, L, D] of the negative prompt of this step, for a guide that reads one."""
        if not self.loaded.config.negative_aware:
            return None
        there = [cond for cond in guider.conds.get("negative") or () if active(cond, sigma)]
        if not there:
            raise ValueError(f"{self.loaded.source} is a negative-aware guide, and {type(guider).__name__} has no "
                             "negative prompt at this step. Use CFGGuider or KSampler with one (it may be empty), or a "
                             "guide that reads none.")
        if len(there) > 1 or any(name in there[0] for name in ("area", "mask")):
            run.warn("of several negative prompts, or of one for a part of the picture, the guide reads the first, for "
                     "the whole picture.")
        return there[0]["model_conds"]["c_crossattn"].cond

    def around_calls(self, executor, model, conds: list, *args, **kwargs) -> list[Tensor]:
        """CALC_COND_BATCH: where the second prediction was left out, the first one stands in for it."""
        made = executor(model, conds, *args, **kwargs)
        options = args[2] if len(args) > 2 else kwargs.get("model_options", {})
        run = options.get("transformer_options", {}).get(KEY)
        if run is None or run.g is None or self.settings.mode != ONE_PASS or len(conds) != 2 or conds[1] is not None:
            return made
        return [made[0], made[0]]

    def around_unet(self, executor, x: Tensor, timesteps: Tensor, context: Tensor, y=None, control=None,
                    transformer_options: dict | None = None, *args, **kwargs):
        """DIFFUSION_MODEL: the guide's residuals beside those of ControlNets, on the rows of the prompt."""
        run = transformer_options.get(KEY)
        if run is None or run.g is None or max(run.g) <= 1 or not self.acts(run, transformer_options):
            return executor(x, timesteps, context, y, control, transformer_options, *args, **kwargs)
        walks = self.walks(run, x, timesteps, context, y, transformer_options)
        if not walks:
            return executor(x, timesteps, context, y, control, transformer_options, *args, **kwargs)
        injection = Injection(walks, len(self.loaded.config.shape.skips), control, self.settings.strength, run.warn)
        made = executor(x, timesteps, context, y, injection.control, injection.options(transformer_options), *args,
                        **kwargs)
        self.check(run, injection, x, transformer_options)
        return made

    def acts(self, run: GuideRun, options: Mapping) -> bool:
        """Whether this step lies in the part of the sampling in which the guide acts."""
        highest, lowest = run.sigmas
        return lowest <= float(options["sigmas"][0]) <= highest

    def walks(self, run: GuideRun, x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor | None,
              options: Mapping) -> list[tuple[slice, Walk]]:
        """A walk of the guide for each part of the call that follows the prompt."""
        if x.shape[1] > 4:
            run.warn("the MODEL has more than 4 input channels (inpainting); the guide sees the latents alone, and "
                     "how well it guides then has not been measured.")
        network, found = self.loaded.network, []
        for chunk in chunks_of(len(x), options):
            if chunk.role is None:
                raise unknown_role("A guide model")
            if chunk.role != PROMPT:
                continue
            rows = chunk.rows
            g, factor = self.in_range(run, self.of_rows(run, chunk, x.device))
            text, negative = context[rows], None
            if run.negative is None and self.is_empty(run, chunk.conditioning, text):       # nor is that from itself
                continue
            if run.negative is not None:
                negative = comfy.utils.repeat_to_batch_size(run.negative, len(g)).to(context)
                if torch.equal(text, negative):         # guidance of a text away from itself is none
                    continue
            words = self.read(run, chunk.conditioning, text, negative)
            made = network.walk(x[rows, :4], timesteps[rows], g, words, None if y is None else y[rows])
            made.factor = made.factor * factor.to(made.factor)[:, None, None, None]
            found.append((rows, made))
        return found

    def is_empty(self, run: GuideRun, name, text: Tensor) -> bool:
        """Whether a prompt is the empty one, looked at once a run."""
        if name not in run.empty:
            run.empty[name] = is_empty_text(text, self.loaded.config)
        return run.empty[name]

    def read(self, run: GuideRun, name, *texts: Tensor | None):
        """What the guide has read of prompt and negative prompt, kept over the steps of a run."""
        known = run.texts.get(name)
        if known is None or not all(same_text(*pair) for pair in zip(known[0], texts, strict=True)):
            known = run.texts[name] = (texts, self.loaded.network.read_text(*texts))
        return known[1]

    def of_rows(self, run: GuideRun, chunk: Chunk, device: torch.device) -> Tensor:
        """g of each row of a part of the call. Raises ValueError where a list does not name every picture."""
        if len(run.g) == 1:
            return torch.full((len(chunk.items),), run.g[0], device=device)
        if max(chunk.items) >= len(run.g):
            raise ValueError(f"Apply Guide Model has scales for {len(run.g)} pictures, and the batch has at least "
                             f"{max(chunk.items) + 1}. Give one for each, or a single one for all.")
        return torch.tensor([run.g[item] for item in chunk.items], device=device)

    def check(self, run: GuideRun, injection: Injection, x: Tensor, options: Mapping) -> None:
        """Raises ValueError where a residual was not finite; reports how large they were."""
        size = float(torch.stack(injection.squares).mean().sqrt()) if injection.squares else 0.0
        if not math.isfinite(size):
            raise ValueError(f"The guide {self.loaded.source} gave numbers that are not finite, at g {max(run.g):g} in "
                             f"{x.dtype}. Lower cfg, or start ComfyUI with --fp32-unet.")
        if run.report is not None:
            run.report.rows.append({"sigma": float(options["sigmas"][0]), "residual": size})

    def in_range(self, run: GuideRun, g: Tensor) -> tuple[Tensor, Tensor]:
        """(scales for the guide, factors on its residuals) of scales [B].

        Below its range it runs at the lower end, fading out to 1.
        """
        config, highest = self.loaded.config, float(g.max())
        if highest > config.g_max and not self.settings.extrapolate:
            run.warn(f"cfg {highest:g} is above what the guide was trained on; {config.g_max:g} is used. Switch "
                     "extrapolate on to go beyond it.")
            g = g.clamp(max=config.g_max)
        factor = ((g - 1) / max(config.g_min - 1, 1e-6)).clamp(0, 1)
        return g.clamp(min=max(1.0, config.g_min)), factor
