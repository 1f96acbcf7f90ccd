"""Motion modules in the host: as an object on a socket, and applied to a MODEL."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import comfy.utils
import torch
from comfy.patcher_extension import CallbacksMP, PatcherInjection, WrappersMP
from torch import Tensor

from ...motion.module import MotionConfig, MotionModule
from ...motion.motion_lora import MotionLoRA, MotionLoRAs
from ..calls import chunks_of, know_roles
from ..clips import MOTION, clips_of, has_motion_module
from ..context_windows import frames_of_call, window_length, windows_over_batch
from ..progress import take_back_warnings, warn
from ..schedules import check_percents
from .schedule import AUTO, set_schedule
from .splice import (
    MotionRun,
    MotionSlot,
    call_slot,
    carries,
    check_fit,
    motion_options,
    pooled_groupnorm,
    splice,
    unsplice,
)

__all__ = ["LoadedMotion", "MotionRun", "apply_motion", "hold_motion", "motion_options", "splice",
           "unsplice"]
FAMILIES = {"sd15": comfy.supported_models.SD15, "sdxl": comfy.supported_models.SDXL}
OFFICIAL, POOLED = "official", "pooled"
EVERY_STEP, FIRST_STEP, OFF = "every_step", "first_step", "off"
MAPPING_MODES = (EVERY_STEP, FIRST_STEP, OFF)
LAST_TIMESTEP = 999                     # where percent 0 of a sampling is, by the host's rule
RUNNING = "frozen_motion_running"       # on a U-Net while it is sampled with layers: their source


@dataclass(frozen=True)
class LoadedMotion:
    """What the socket MOTION_MODULE carries.

    Attributes:
        config: what the module is.
        patcher: the host's patcher around the MotionModule, so that the host moves its weights.
        source: file name or other origin, for messages.
        metadata: of the file: train_data, licence and the like.
        loras: motion LoRAs on it; its own weights stay as they are.
    """
    config: MotionConfig
    patcher: comfy.model_patcher.ModelPatcher
    source: str
    metadata: Mapping[str, str]
    loras: tuple[MotionLoRA, ...] = ()

    @property
    def module(self) -> MotionModule:
        return self.patcher.model


def hold_motion(config: MotionConfig, state: Mapping[str, Tensor], source: str,
                metadata: Mapping[str, str] | None = None, dtype: torch.dtype | None = None) -> LoadedMotion:
    """Build a module for sampling from weights with AnimateDiff keys; `dtype` None: as the host chooses."""
    device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    if dtype is None:
        dtype = comfy.model_management.unet_dtype(device, comfy.utils.calculate_parameters(state),
                                                  weight_dtype=comfy.utils.weight_dtype(state))
        dtype = torch.float16 if dtype.itemsize == 1 else dtype     # norms do not work in 8 bits
    module = MotionModule(config, comfy.ops.manual_cast, dtype=dtype, device=offload)
    module.load_state_dict(state)
    make = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    patcher = make(module.eval().requires_grad_(False), load_device=device, offload_device=offload)
    return LoadedMotion(config, patcher, source, dict(metadata or {}))


def apply_motion(model, loaded: LoadedMotion, strength: float = 1.0, frames_per_clip: int = 0,
                 start_percent: float = 0.0, end_percent: float = 1.0, beta_schedule: str = AUTO,
                 groupnorm: str = OFFICIAL, mapping: str = EVERY_STEP, frame_tokens: bool = True, fps: float = 0.0,
                 negative_tokens: bool = True):
    """A clone of the MODEL `model` that samples clips with the motion module.

    Args:
        strength: 1 as trained; 0 returns a plain clone.
        frames_per_clip: 0 takes a whole batch as one clip.
        start_percent, end_percent: part of the sampling in which the layers act.
        beta_schedule: "auto" (the file's), "keep" (the model's) or a name in SCHEDULES.
        groupnorm: "official" (the family's rule) or "pooled".
        mapping: when the mapping network acts, if the module has one: one of MAPPING_MODES.
        frame_tokens: whether frames get their own tokens, if the module makes them.
        fps: of the clip, which gives the timestamps of the frame tokens; 0 = the module's own.
        negative_tokens: whether frames get their own tokens in the negative prompt too, as trained with the empty one.

    Raises ValueError when module and MODEL do not belong together, or the MODEL already has a motion module.
    """
    check_family(model, loaded)
    if has_motion_module(model):
        raise ValueError("This MODEL already has a motion module. Two at once are not supported; connect the "
                         "MODEL from before the first Apply Motion Module node.")
    check_percents(start_percent, end_percent)
    model = model.clone()
    if strength == 0:
        return model
    sampling = MotionSampling(loaded.config, loaded.source, strength, frames_per_clip,
                              (start_percent, end_percent), POOLED in (groupnorm, loaded.config.groupnorm),
                              loaded.module, mapping, frame_tokens, fps or loaded.config.fps, negative_tokens,
                              loaded.loras)
    model.set_additional_models(MOTION, [loaded.patcher.clone()])
    model.set_injections(MOTION, [PatcherInjection(inject, eject)])
    model.add_callback_with_key(CallbacksMP.ON_PRE_RUN, MOTION, inject_if_ejected)
    model.set_model_forward_timestep_embed_patch((MotionSlot, call_slot))
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, MOTION, sampling.around_sampling)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, MOTION, sampling.around_unet)
    know_roles(model)
    set_schedule(model, loaded.config.beta_schedule if beta_schedule == AUTO else beta_schedule)
    return model


def check_family(model, loaded: LoadedMotion) -> None:
    """Raises ValueError naming both families unless the motion module was made for this image model."""
    config, base = loaded.config, model.model.model_config
    if not isinstance(base, FAMILIES[config.family]):
        wanted, given = FAMILIES[config.family].__name__, type(base).__name__
        raise ValueError(f"The motion module {loaded.source} is for {wanted} image models, but the MODEL is "
                         f"{given}. Load a motion module for {given}, or a checkpoint of {wanted}.")
    try:
        check_fit(model.model.diffusion_model, config)
    except ValueError as error:
        raise ValueError(f"{loaded.source} does not fit this {type(base).__name__} model. {error}") from error


def inject(patcher) -> None:
    """The host's injection: splice the motion module that this patcher holds."""
    unet = patcher.model.diffusion_model
    unsplice(unet)
    splice(unet, patcher.get_additional_models_with_key(MOTION)[0].model)


def eject(patcher) -> None:
    """The exact inverse of `inject`."""
    unsplice(patcher.model.diffusion_model)


@contextmanager
def exclusive_sampling(unet: torch.nn.Module, source: str) -> Iterator[None]:
    """For the length of a sampling with the motion module `source`: no other one may take its layers out of the U-Net.

    The mark is on the U-Net, which clones of a MODEL share. Layers without it are left over from a run that ended.
    Raises RuntimeError if another sampling is going on.
    """
    if (running := getattr(unet, RUNNING, None)) is not None:
        raise RuntimeError(f"A sampling with the motion module {source} was started while one with {running} is going "
                           "on, and both use the same image model. Let the first one end, or load the checkpoint a "
                           "second time for the other.")
    setattr(unet, RUNNING, source)
    try:
        yield
    finally:
        delattr(unet, RUNNING)


def inject_if_ejected(patcher) -> None:
    """Before a run: the last one ejected, and a host may find the weights loaded and inject nothing."""
    patcher.inject_model()


@dataclass(frozen=True)
class MotionSampling:
    """The wrappers of one Apply Motion Module node. No state: what a run needs travels with the run."""
    config: MotionConfig
    source: str
    strength: float
    frames_per_clip: int
    percents: tuple[float, float]
    pooled: bool
    module: MotionModule
    mapping: str
    frame_tokens: bool
    fps: float
    negative_tokens: bool
    loras: tuple[MotionLoRA, ...] = ()

    def around_sampling(self, executor, noise: Tensor, *args, **kwargs):
        """OUTER_SAMPLE: check the request, prepare the run, leave the U-Net clean however the run ends."""
        take_back_warnings()
        guider = executor.class_obj
        options, unet = guider.model_options["transformer_options"], guider.model_patcher.model.diffusion_model
        if handler := guider.model_options.get("context_handler"):
            guider.model_options = {**guider.model_options, "context_handler": windows_over_batch(handler)}
        options[MOTION] = run = self.prepare(noise, guider)
        with exclusive_sampling(unet, self.source):
            try:
                return executor(noise, *args, **kwargs)
            finally:
                for beside in run.loras:
                    beside.detach()
                guider.model_patcher.eject_model()
                unsplice(unet)                      # also after a failure during loading

    def prepare(self, noise: Tensor, guider) -> MotionRun:
        """The settings of a run from noise [(b f), C, H, W]. Raises ValueError for clips that cannot be made."""
        if noise.ndim != 4:
            raise ValueError(f"The latent has {noise.ndim} dimensions, {list(noise.shape)}: it is that of a video "
                             "model, as Empty HunyuanVideo 1.0 Latent and the like make it. This MODEL is an image "
                             "model with a motion module, to which the frames of a clip are a batch of pictures (4 "
                             "dimensions). Use Empty Latent Image with batch_size = the number of frames.")
        batch, clip = len(noise), clips_of(noise, self.frames_per_clip).shape[1]
        if clip == 1:
            warn("This clip is a single frame, so nothing can move. Set batch_size of Empty Latent Image to the number "
                 "of frames, e.g. 16.")
        window = window_length(guider.model_options, batch)
        if window and clip != batch:
            raise ValueError(f"Context windows of {window} frames would run across {batch // clip} clips of "
                             f"{clip} frames. Sample one clip at a time (frames_per_clip 0), or remove the "
                             "context windows.")
        most = self.config.max_frames
        if (window or clip) > most:
            raise ValueError(f"{window or clip} frames at once are more than the motion module {self.source} "
                             f"can do: its limit is {most}. Add the node Context Windows (Manual) with a "
                             f"context_length of at most {most}, or make shorter clips.")
        if window and any(has_many_hints(cond) for conds in guider.conds.values() for cond in conds):
            warn(f"The host does not cut ControlNet images into context windows; every window gets the first {window} "
                 "of them.")
        schedule = guider.model_patcher.get_model_object("model_sampling")
        return MotionRun(frames=0 if window else clip, strength=self.strength, pooled=self.pooled,
                         sigmas=tuple(map(schedule.percent_to_sigma, self.percents)), loras=[])

    def around_unet(self, executor, x: Tensor, timesteps, context, y, control, transformer_options: dict,
                    *args, **kwargs):
        """DIFFUSION_MODEL: tell the layers how many frames a clip has in this call; HARIVO's parts act on its inputs.

        x [(n b f), C, H, W]. ControlNet has run before, on unmapped latents and without frame tokens.
        """
        run = transformer_options.get(MOTION)
        if run is None:
            raise RuntimeError("A MODEL with a motion module was called outside of a sampler. Use KSampler "
                               "or SamplerCustomAdvanced, or connect the MODEL without motion module here.")
        if not carries(executor.class_obj, self.module):
            raise RuntimeError(f"The layers of the motion module {self.source} are not in the U-Net any more: another "
                               "use of the same image model began in the middle of this sampling. Let one end before "
                               "the next, or load the checkpoint a second time for the other.")
        self.set_loras(run, x.device, timesteps)
        run = run_of_call(run, x.shape[0], transformer_options)
        options = {**transformer_options, MOTION: run}
        if run.active and self.maps(transformer_options):
            x = self.module.map_noise(x, timesteps, run.frames, run.strength)
        if run.active and self.frame_tokens:
            context = self.add_tokens(context, run.frames, transformer_options)
        pooled = run.pooled and run.active
        with pooled_groupnorm(executor.class_obj, run.frames) if pooled else nullcontext():
            return executor(x, timesteps, context, y, control, options, *args, **kwargs)

    def set_loras(self, run: MotionRun, device: torch.device, timesteps: Tensor) -> None:
        """Put the motion LoRAs beside their layers at the first call, when these are loaded, and set their strength."""
        if not self.loras:
            return
        if not run.loras:
            run.loras.append(MotionLoRAs(self.module, self.loras, device))
        run.loras[0].at(1 - float(timesteps[0]) / LAST_TIMESTEP)

    def add_tokens(self, context: Tensor, frames: int, transformer_options: Mapping) -> Tensor:
        """context [(n b f), L, D], n chunks of cond and uncond, with the tokens of its frames: [(n b f), L + K, D]."""
        full = self.module.add_tokens(context, timestamps(frames, self.fps, transformer_options).to(context.device))
        if self.config.frame_tokens and not self.negative_tokens:
            for chunk in chunks_of(len(context), transformer_options):
                if not chunk.of_prompt("negative_tokens off"):
                    # Its last word again, as tokens are at initialisation: lengths stay equal.
                    full[chunk.rows, context.shape[1]:] = context[chunk.rows, -1:]
        return full

    def maps(self, transformer_options: Mapping) -> bool:
        """Whether the mapping network acts at this step."""
        if self.mapping == FIRST_STEP:
            highest = transformer_options["sample_sigmas"].max()
            return bool(transformer_options["sigmas"][0] > 0.9999 * highest)    # samplers go through its logarithm
        return self.mapping == EVERY_STEP


def timestamps(frames: int, fps: float, transformer_options: Mapping) -> Tensor:
    """Seconds [frames] from the beginning of the whole clip, also inside one of the host's context windows."""
    return torch.tensor(frames_of_call(frames, transformer_options)) / fps


def run_of_call(run: MotionRun, rows: int, transformer_options: Mapping) -> MotionRun:
    """`run` for one call of the U-Net with `rows` rows, which may hold several chunks of cond and uncond."""
    chunks = len(transformer_options.get("cond_or_uncond", (0,)))
    frames = run.frames or rows // max(1, chunks)
    if not chunks or not frames or rows % (chunks * frames):
        raise ValueError(f"The U-Net was called with {rows} rows in {chunks} chunks, which are no whole "
                         f"clips of {frames} frames. Another node changed the batch size. Remove it or move it "
                         "before Apply Motion Module.")
    highest, lowest = run.sigmas
    sigma = float(transformer_options["sigmas"][0])
    return replace(run, frames=frames, strength=run.strength if lowest <= sigma <= highest else 0.0)


def has_many_hints(cond: Mapping) -> bool:
    """Whether a conditioning carries a ControlNet, in a chain of them perhaps, with one image per frame."""
    control = cond.get("control")
    while control is not None:
        if (hint := control.cond_hint_original) is not None and hint.shape[0] > 1:
            return True
        control = control.previous_controlnet
    return False
