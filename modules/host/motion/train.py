"""Training a motion module on host objects: MODEL, VAE, CLIP and clips in, MOTION_MODULE out."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import comfy.model_management
import torch
from torch import Tensor, nn

from ...data.clips import ClipSource
from ...data.encoded import ClipBatch, EncodedClips
from ...motion.module import MotionConfig, MotionModule, fresh_motion_module
from ...motion.recipe import FRESH_SCHEDULE, MotionRecipe
from ...motion.smoothness import check_videos, unit_length
from ...motion.temporal_lora import adapt_attentions, current_key, plain_state
from ...motion.total_loss import LossMemory, TotalLoss, fresh_head
from ...seeding import stream
from ...training.denoising import ddim, denoising_loss
from ...training.ema import MovingAverage, trainable
from ...training.loop import autocast
from ...training.updates import Loss
from ..codec import HostCodec, digest_of, outside_inference
from ..files import cache_folder
from ..noise_levels import noise_levels
from ..weights import check_trainable, identity_as
from .apply import FAMILIES, LoadedMotion, check_family, hold_motion
from .frozen_copy import FrozenCopy
from .schedule import AUTO, with_schedule

SAMPLE_STEPS, SAMPLE_CFG = 20, 5.0


class MotionSubject:
    """The motion module as the subject of a training, see `training/subject.py`.

    It happens on a frozen copy of the U-Net; `model` is never written. Raises ValueError for inputs that do not belong
    together.
    """

    current_key = staticmethod(current_key)
    assumed = {"DC negatives": "queue", "DC head": "mlp"}      # of checkpoints from before these could be chosen

    def __init__(self, model, vae, clip, source: ClipSource, recipe: MotionRecipe,
                 warm: LoadedMotion | None = None, cache: Path | None = None):
        check_trainable(model)
        if recipe.lora_rank and warm is None:
            raise ValueError(f"lora_rank is {recipe.lora_rank}, but there is no motion module to start from. A "
                             "low-rank change of fresh layers stays zero; connect a motion module, or set lora_rank to "
                             "0.")
        self.model, self.vae, self.recipe = model, vae, recipe
        self.settings, self.sample_every = recipe.settings(), recipe.sample_every
        self.config = module_config(model, source, recipe, warm)
        self.frames = recipe.frames_of(source.settings.frames, self.config.max_frames)
        if recipe.scattered and self.config.groupnorm == "pooled":
            raise ValueError("scattered frames were asked for, but the motion module to start from is of AnimateDiff "
                             "v1, whose norms are over all frames of a clip. Train it on runs of frames.")
        if recipe.dc:
            check_videos(len({source.video(index) for index in range(len(source))}), recipe.dc_negatives)
        self.levels = noise_levels(with_schedule(model, self.config.beta_schedule))
        self.warm = warm
        self.codec = HostCodec(vae, clip)
        if self.codec.text_channels != self.config.text_channels:
            raise ValueError(f"The CLIP gives text of {self.codec.text_channels} channels, but the MODEL reads "
                             f"{self.config.text_channels}. Connect the CLIP of the image model's checkpoint.")
        self.clips = EncodedClips(source, self.codec, cache or cache_folder("clips"))
        self.memory: LossMemory | None = None

    def encode(self, share: tuple[int, int] = (0, 1)) -> Iterator[tuple[int, int]]:
        """Latents and text of all clips; quick where the cache has them."""
        yield from self.clips.encode(share)

    def prepare(self) -> None:
        """Make room on the device, copy the U-Net and splice the module in."""
        recipe = self.recipe
        prompt = recipe.sample_prompt or self.clips.source.caption(0)
        with torch.inference_mode(False), torch.no_grad():
            self.text, self.empty = (outside_inference(self.codec.text(caption)) for caption in (prompt, ""))
            if comfy.model_management.get_torch_device().type != "cpu":
                comfy.model_management.unload_all_models()
            self.module, self.taken = build_module(self.config, recipe.seed, self.warm)
            self.loras = adapt_attentions(self.module, recipe.lora_rank, recipe.seed) if recipe.lora_rank else None
            self.predict = FrozenCopy(self.model, self.module, self.frames, recipe.precision == "bf16",
                                      recipe.gradient_checkpointing, watch=bool(recipe.trs or recipe.dc))
            self.trained = nn.ModuleDict({"motion": self.module})
            if self.loras is not None:
                self.trained["lora"] = self.loras.to(self.predict.device)
            self.compared = list(trainable(self.trained).values())      # by HARIVO's losses: all but their head
            if recipe.dc and recipe.dc_head == "mlp":
                self.trained["head"] = fresh_head(self.bottleneck, recipe.seed).to(self.predict.device)
            self.ema = MovingAverage(self.trained, recipe.ema)
            if recipe.trs or recipe.dc:
                self.memory = LossMemory(self.bottleneck).to(self.predict.device)

    def loss(self) -> Loss:
        """The denoising loss, with HARIVO's where the recipe has them."""
        recipe = self.recipe
        denoise = denoising_loss(self.predict, self.levels, self.predict.latents_in, self.predict.device,
                                 recipe.snr_limit, recipe.noise_shift, recipe.pure_noise)
        if self.memory is None:
            return denoise
        head = self.trained["head"] if "head" in self.trained else unit_length
        return TotalLoss(denoise, self.predict.features, self.compared, self.memory, recipe.trs,
                         recipe.trs_from, recipe.dc, head, recipe.accumulate, recipe.dc_negatives)

    def batch(self, draw: int) -> ClipBatch:
        comfy.model_management.throw_exception_if_processing_interrupted()
        recipe = self.recipe
        return self.clips.batch(recipe.batch_size, self.frames, recipe.caption_dropout, recipe.seed, draw,
                                recipe.scattered)

    def rate(self, name: str) -> float:
        return self.recipe.warm_start_rate if name.removeprefix("motion.") in self.taken else 1.0

    def decay(self, name: str) -> float:
        return 1.0

    @property
    def bottleneck(self) -> int:
        """Channels of the U-Net's middle block."""
        return self.config.channels[-1]

    def provenance(self, then: Mapping[str, str]) -> dict[str, str]:
        """What a checkpoint must agree on to be resumed here."""
        recipe, start = self.recipe, "scratch"
        contrast = {"DC negatives": recipe.dc_negatives, "DC head": recipe.dc_head} if recipe.dc else {}
        if self.warm:
            start = f"{self.warm.source} ({name_of_weights(self.warm.module)})"
        known = then.get("image model")
        return {"clips": self.clips.name, "text model": self.codec.clip_name,
                "frames": str(self.frames), "batch size": str(recipe.batch_size),
                "beta schedule": self.config.beta_schedule, "caption dropout": str(recipe.caption_dropout),
                "SNR limit": str(recipe.snr_limit), "noise shift": str(recipe.noise_shift),
                "scattered": str(recipe.scattered), "pure noise": str(recipe.pure_noise),
                "start": start, "rate of the warm start": str(recipe.warm_start_rate),
                "temporal convolution": str(self.config.temporal_convolution),
                "mapping network": str(self.config.mapping_width), "frame tokens": str(self.config.frame_tokens),
                "TRS": f"{recipe.trs} from step {recipe.trs_from}", "DC": str(recipe.dc),
                "LoRA rank": str(recipe.lora_rank),
                "image model": known if known in self.older_names() else identity_as(self.model, known)} | contrast

    def older_names(self) -> list[str]:
        """Of the image model in checkpoints from before: the first rows of the frozen copy."""
        return [name_of_weights(self.predict.unet)]

    def sample(self) -> Tensor:
        """A clip of the averaged weights, the same noise every time. Returns [F, H, W, 3] in 0..1."""
        device = self.predict.device
        shape = (1, self.recipe.reach(self.clips.source.settings.frames), *self.clips.latents(0).shape[1:])
        noise = torch.randn(shape, generator=stream("sample", self.recipe.seed)).to(device)
        with torch.inference_mode(False), torch.no_grad(), autocast(device, self.recipe.precision), \
                self.ema.applied(self.trained):
            for estimate in ddim(self.predict, self.levels, noise, self.text, self.empty, SAMPLE_STEPS,
                                 SAMPLE_CFG):
                comfy.model_management.throw_exception_if_processing_interrupted()
                x0 = estimate
        with torch.no_grad():
            return self.vae.decode(self.predict.latents_out(x0)[0].float()).clamp(0, 1).cpu()

    def result(self, name: str, steps: int) -> LoadedMotion:
        """The averaged weights as a MOTION_MODULE."""
        with torch.inference_mode(False), torch.no_grad(), self.ema.applied(self.trained):
            state = plain_state(self.module, self.loras)
        metadata = {"train_data": self.clips.source.report().partition("\n")[0], "train_steps": str(steps)}
        if self.warm:
            metadata["started_from"] = self.warm.source
            if licence := self.warm.metadata.get("licence"):
                metadata["licence"] = licence
        return hold_motion(self.config, state, name, metadata, dtype=torch.float32)


def module_config(model, source: ClipSource, recipe: MotionRecipe, warm: LoadedMotion | None) -> MotionConfig:
    """What the trained module will be. Raises ValueError if the warm start does not fit the model."""
    clip = source.settings
    if warm:
        check_family(model, warm)
        for name in ("mapping_width", "frame_tokens"):
            wanted, there = getattr(recipe, name), getattr(warm.config, name)
            if wanted and there and wanted != there:
                raise ValueError(f"{name} is {wanted}, but {warm.source}, which the training starts from, has {there}. "
                                 f"Set {name} to {there}, or to 0 to keep what it has.")
        schedule = warm.config.beta_schedule if recipe.beta_schedule == AUTO else recipe.beta_schedule
        return replace(warm.config, kind="frozen", fps=clip.fps, frames=recipe.reach(clip.frames),
                       beta_schedule="linear" if schedule == "lcm" else schedule,
                       temporal_convolution=recipe.temporal_convolution or warm.config.temporal_convolution,
                       mapping_width=recipe.mapping_width or warm.config.mapping_width,
                       frame_tokens=recipe.frame_tokens or warm.config.frame_tokens,
                       text_channels=model.model.model_config.unet_config["context_dim"])
    base = model.model.model_config
    family = next((name for name, kind in FAMILIES.items() if isinstance(base, kind)), None)
    if family is None:
        raise ValueError(f"The MODEL is of the family {type(base).__name__}; motion modules are trained for "
                         f"{' and '.join(kind.__name__ for kind in FAMILIES.values())}.")
    width, levels = base.unet_config["model_channels"], base.unet_config["channel_mult"]
    return MotionConfig(
        family, tuple(width * level for level in levels), max_frames=max(32, recipe.reach(clip.frames)),
        temporal_convolution=recipe.temporal_convolution, fps=clip.fps, frames=recipe.reach(clip.frames),
        mapping_width=recipe.mapping_width, frame_tokens=recipe.frame_tokens,
        text_channels=base.unet_config["context_dim"],
        beta_schedule=FRESH_SCHEDULE if recipe.beta_schedule == AUTO else recipe.beta_schedule)


def build_module(config: MotionConfig, seed: int, warm: LoadedMotion | None) -> tuple[MotionModule, set[str]]:
    """A trainable fp32 module on the CPU, and the names of the weights that come from the warm start."""
    module = fresh_motion_module(config, seed)
    given = warm.module.state_dict() if warm else {}
    state = {name: tensor.float().cpu().clone() for name, tensor in given.items()}
    module.load_state_dict(state, strict=False)
    return module.requires_grad_(True), set(state)


def name_of_weights(network: nn.Module) -> str:
    """A name after the first row of every weight, whatever the precision is."""
    return digest_of(*(weight[(0,) * (weight.ndim - 1)].bfloat16() for weight in network.state_dict().values()
                      if weight.ndim))
