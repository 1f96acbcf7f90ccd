"""Training a motion LoRA on host objects: MODEL, VAE, CLIP, motion module and a clip in, MOTION_LORA out (stage 2)."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import comfy.model_management
import torch
from torch import Tensor, nn

from ...curve import Curve
from ...customize.absorber import Absorber, caption_notes, joined
from ...customize.clip_doctor import diagnose
from ...customize.focus import FOCUSES, WHOLE, Focus, masks_for, subject_mask
from ...customize.looks import Look, Looks, chosen, looks_report, snapshot_of
from ...customize.meters import diversity, fidelity, leakage
from ...customize.recipe import MotionLoRARecipe
from ...data.cache import digest
from ...data.clips import ClipSource
from ...data.encoded import ClipBatch, EncodedClips, Text
from ...motion.motion_lora import MotionLoRA
from ...motion.temporal_lora import attention_projections
from ...seeding import stream
from ...training.denoising import ddim, denoising_loss
from ...training.loop import autocast
from ...training.lora import LoRASet, attach, attach_factors, check_rank
from ...training.lora_keys import Factors
from ...training.updates import Loss
from ..codec import HostCodec, digest_of, outside_inference
from ..files import cache_folder
from ..motion.apply import LoadedMotion, check_family
from ..motion.frozen_copy import FrozenCopy
from ..motion.schedule import with_schedule
from ..motion.train import build_module, name_of_weights
from ..noise_levels import noise_levels
from ..weights import check_trainable, identity_as
from .captions import Captioned, WordsCodec
from .spatial import attach_look
from .text_model import TextModel

SAMPLE_STEPS, SAMPLE_CFG, SEEDS = 8, 5.0, 2     # of the looks at held-out prompts
SHORTEST = 8                                    # frames of a clip; fewer tell no motion


class MotionLoRASubject:
    """A motion LoRA as the subject of a training, see `training/subject.py`.

    It happens on frozen copies of U-Net and motion module; what was given is only read.

    Args:
        caption: of the clips, with the motion's words (y); "" = their own.
        prompts: held-out prompts to look at while it trains, other subjects that are to move alike; () = no looks.
        absorber: frozen at scale 1 while the motion is learned; or one for each clip, which is at work for its own.
        focus: where in the clips to learn, one of `customize.focus.FOCUSES`.
        mask: [N, H, W], 1 where the subject is, see `masks_for`; None = what moves.

    Raises ValueError for inputs that do not belong together.
    """

    assumed: Mapping[str, str] = {}
    current_key = str
    memory = None
    ema = None

    def __init__(self, model, vae, clip, motion: LoadedMotion, source: ClipSource, recipe: MotionLoRARecipe,
                 caption: str = "", prompts: Sequence[str] = (),
                 absorber: Absorber | Sequence[Absorber] | None = None, cache: Path | None = None, focus: str = WHOLE,
                 mask: Tensor | None = None):
        check_trainable(model)
        check_family(model, motion)
        self.model, self.vae, self.motion, self.recipe = model, vae, motion, recipe
        self.absorbers = absorbers_of(absorber, len(source), recipe.batch_size)
        self.settings, self.sample_every = recipe.settings(), recipe.sample_every
        self.clip_frames = source.settings.frames
        self.frames = self.frames_of(recipe, self.clip_frames, motion)
        self.levels = noise_levels(with_schedule(model, motion.config.beta_schedule))
        codec = HostCodec(vae, clip)
        if codec.text_channels != motion.config.text_channels and motion.config.frame_tokens:
            raise ValueError(f"The CLIP gives text of {codec.text_channels} channels, the motion module's frame tokens "
                             f"want {motion.config.text_channels}. Connect the CLIP of the image model's checkpoint.")
        given = Captioned(source, caption)
        self.notes = [note for index in range(len(source)) for note in caption_notes(
            given.caption(index), self.absorbers[index % len(self.absorbers)] if self.absorbers else None)]
        self.notes += [note for index in range(len(source)) for note in clip_notes(source, index)]
        vectors = [each.vectors for each in self.absorbers]
        words = TextModel(clip) if any(each is not None for each in vectors) else None
        self.codec, folder = WordsCodec(codec, words, vectors), cache or cache_folder("clips")
        self.clips = EncodedClips(replace(given, each=len(vectors) > 1), self.codec, folder)
        self.caption, self.prompts = given.caption(0), [prompt.strip() for prompt in prompts if prompt.strip()]
        self.focus, self.masks = focus, None
        if focus not in FOCUSES:
            raise ValueError(f"learn_from is one of {', '.join(FOCUSES)}; {focus!r} was given.")
        if focus != WHOLE:
            self.masks = ([subject_mask(source.pixels(index)) for index in range(len(source))] if mask is None
                          else masks_for(mask, len(source), self.clip_frames))
        self.measured: dict[str, float] = {}
        self.looks = Looks(folder / "looks", self.name())
        self.draws, self.yardsticks = 0, None

    def name(self) -> str:
        """Of all that decides how the training goes and what is looked at."""
        recipe = replace(self.recipe, checkpoint_every=1, sample_every=0)
        if recipe.schedule == "constant":
            recipe = replace(recipe, steps=1)           # a longer training begins alike
        return digest(str(recipe), self.codec.vae_name, *self.prompts, *map(str, self.provenance({}).items()))

    @staticmethod
    def frames_of(recipe: MotionLoRARecipe, available: int, motion: LoadedMotion) -> int:
        """Frames at once. Raises ValueError for clips that are too short, or longer than the motion module can do."""
        if available < SHORTEST:
            raise ValueError(f"The clips have {available} frames; a motion wants at least {SHORTEST}. Build the "
                             "dataset with more frames, or with a higher fps so that the same seconds have more.")
        if recipe.frames > available:
            raise ValueError(f"frames is {recipe.frames}, but the clips have {available}. Give up to {available}, or 0 "
                             "for all.")
        reach = available if recipe.scattered else recipe.frames or available
        if reach > motion.config.max_frames:
            raise ValueError(f"Clips of {reach} frames were given, and the motion module {motion.source} can do "
                             f"{motion.config.max_frames} at most. Build the dataset with fewer, at a lower fps.")
        return recipe.frames or available

    def encode(self, share: tuple[int, int] = (0, 1)) -> Iterator[tuple[int, int]]:
        """Latents and text of the clips; quick where the cache has them."""
        yield from self.clips.encode(share)

    def prepare(self) -> None:
        """Copy the U-Net and the motion module, put absorber and motion LoRA beside their layers."""
        recipe = self.recipe
        with torch.inference_mode(False), torch.no_grad():
            if comfy.model_management.get_torch_device().type != "cpu":
                comfy.model_management.unload_all_models()
            module = build_module(self.motion.config, 0, self.motion)[0].requires_grad_(False)
            self.kept = [attach_factors(module, {path: path for path in lora.factors}, lora.factors)
                         for lora in self.motion.loras]             # of motion LoRAs that it has already
            for lora, beside in zip(self.motion.loras, self.kept, strict=True):
                beside.requires_grad_(False).set_scale(lora.strength)
            self.predict = FrozenCopy(self.model, module, self.frames, recipe.precision == "bf16",
                                      recipe.gradient_checkpointing)
            paths = {path: path for path in attention_projections(module)}
            check_rank(module, paths, recipe.rank)
            self.loras: LoRASet = attach(module, paths, recipe.rank, seed=recipe.seed).to(self.predict.device)
            self.trained = nn.ModuleDict({"motion": self.loras})
            self.absorbing = [attach_look(self.model, self.predict.unet, each.factors).to(self.predict.device)
                              for each in self.absorbers]
            self.empty = outside_inference(self.codec.text(""))
            self.texts = [outside_inference(self.codec.codec.text(prompt)) for prompt in self.prompts]

    def loss(self) -> Loss:
        """The denoising loss of clips (equation 5), with the recipe's weights and noise levels."""
        recipe = self.recipe
        denoise = denoising_loss(self.predict, self.levels, self.predict.latents_in, self.predict.device,
                                 recipe.snr_limit, recipe.noise_shift, recipe.pure_noise,
                                 None if self.masks is None else Focus(self.focus, self.masks,
                                                                       self.clips.latents(0).shape[-2:]))

        def loss(batch: ClipBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
            if len(self.absorbing) > 1:
                for clip, look in enumerate(self.absorbing):
                    look.set_scale(float(clip == batch.clips[0]))
            return denoise(batch, generator), dict(self.measured)

        return loss

    def batch(self, draw: int) -> ClipBatch:
        comfy.model_management.throw_exception_if_processing_interrupted()
        recipe, self.draws = self.recipe, draw + 1
        return self.clips.batch(recipe.batch_size, self.frames, 0.0, recipe.seed, draw, recipe.scattered)

    def rate(self, name: str) -> float:
        return 1.0

    def decay(self, name: str) -> float:
        return 1.0

    def provenance(self, then: Mapping[str, str]) -> dict[str, str]:
        """What a checkpoint must agree on to be resumed here."""
        recipe = self.recipe
        look = [tensor for each in self.absorbers for tensor in (
            *(pair.down for pair in each.factors.values()), *[each.vectors] * (each.vectors is not None))]
        focus = self.focus if self.masks is None else f"{self.focus} {digest_of(*self.masks)}"
        return {"clips": self.clips.name, "text model": self.codec.clip_name, "frames": str(self.frames),
                "batch size": str(recipe.batch_size), "rank": str(recipe.rank), "scattered": str(recipe.scattered),
                "SNR limit": str(recipe.snr_limit), "noise shift": str(recipe.noise_shift),
                "pure noise": str(recipe.pure_noise), "absorber": digest_of(*look) if look else "none", "focus": focus,
                "motion module": f"{self.motion.source} ({name_of_weights(self.motion.module)})",
                "image model": identity_as(self.model, then.get("image model"))}

    def factors(self) -> dict[str, Factors]:
        """The motion LoRA as it is now."""
        return {path: Factors(lora.down.detach().cpu().clone(), lora.up.detach().cpu().clone(), lora.alpha)
                for path, lora in self.loras.by_name.items()}

    def clip_of(self, text: Text, seed: int, with_lora: bool) -> Tensor:
        """A clip of a prompt [F, H, W, 3], without the absorber, faded out as Load Motion LoRA does by default."""
        device = self.predict.device
        latents = self.clips.latents(0)
        noise = torch.randn(1, self.clip_frames, *latents.shape[1:], generator=stream("look at", seed)).to(device)
        halves = (1.0, 0.0) if with_lora else (0.0, 0.0)
        with autocast(device, self.recipe.precision):
            for estimate in ddim(self.stepped(halves), self.levels, noise, text, self.empty, SAMPLE_STEPS, SAMPLE_CFG):
                comfy.model_management.throw_exception_if_processing_interrupted()
                x0 = estimate
        return self.vae.decode(self.predict.latents_out(x0)[0].float().cpu()).clamp(0, 1).cpu()

    def stepped(self, halves: tuple[float, float]):
        """The predictor with the motion LoRA at one scale in the first half of the noise levels, another after it."""
        last = len(self.levels.abar) - 1

        def predict(x: Tensor, t: Tensor, text: Text, indices: Tensor | None) -> Tensor:
            with self.loras.scaled(halves[0] if float(t[0]) >= last / 2 else halves[1]):
                return self.predict(x, t, text, indices)

        return predict

    def sample(self) -> Tensor:
        """Held-out prompts with the LoRA, a clip a row of the first ones, and the meters; [N, H, W, 3] in 0..1."""
        with torch.inference_mode(False), torch.no_grad():
            reference = self.clips.source.pixels(0).movedim(1, -1).float() / 255
            if not self.texts:
                return reference
            for look in self.absorbing:
                look.set_scale(0.0)
            try:
                if self.yardsticks is None:
                    self.yardsticks = [self.clip_of(text, number, False) for number, text in enumerate(self.texts)]
                made = [self.clip_of(text, number, True) for number, text in enumerate(self.texts)]
                others = [self.clip_of(self.texts[0], 100 + number, True) for number in range(SEEDS - 1)]
            finally:
                for look in self.absorbing:
                    look.set_scale(1.0)
            self.measured = {
                "fidelity": mean(fidelity(clip, reference) for clip in made),
                "leakage": mean(leakage(clip, reference, before) for clip, before in zip(made, self.yardsticks,
                                                                                         strict=True)),
                "diversity": diversity(torch.stack([made[0], *others]))}
            self.looks.keep(Look(self.draws, self.measured, self.factors()))
        return torch.cat([reference, *made])

    def seen(self) -> list[Look]:
        """The looks so far, those before a resume included."""
        return self.looks.find(self.draws)

    def report(self) -> str:
        """The looks and what was kept, in words."""
        return looks_report(self.seen(), self.notes, bool(self.absorbers))

    def result(self, name: str, steps: int) -> MotionLoRA:
        """The earliest of the looks that moves nearly as well as the best, or what it is now, as a MOTION_LORA."""
        self.draws = max(self.draws, steps * self.recipe.accumulate)        # of a training that was done before
        looks, config = self.seen(), self.motion.config
        metadata = {"method": "Customize-A-Video", "caption": self.caption, "train_steps": str(steps),
                    "motion_module": self.motion.source, "motion_kind": config.kind,
                    "beta_schedule": config.beta_schedule, "frames": str(self.clip_frames),
                    "fps": str(self.clips.source.settings.fps), "resolution": self.clips.source.settings.size,
                    "rank": str(self.recipe.rank), "learned_from": self.focus,
                    "absorber": " and ".join(dict.fromkeys(each.kind for each in self.absorbers)) or "none",
                    "appearance_caption": " | ".join(dict.fromkeys(each.caption for each in self.absorbers))}
        if looks:
            metadata["snapshot"] = snapshot_of(looks)
        factors = looks[chosen(looks)].factors if looks else self.factors()
        return MotionLoRA(name, factors, 1.0, Curve(((0.0, 1.0),)), metadata)


def clip_notes(source: ClipSource, index: int) -> list[str]:
    """What a person should know about a clip before its motion is learned."""
    found = diagnose(source.pixels(index).movedim(1, -1) / 255, source.settings.fps)
    notes = []
    if found.what == "nothing":
        notes.append(f"hardly anything moves in clip {index + 1}: there is no motion to learn in it")
    if found.cuts:
        notes.append(f"clip {index + 1} has a cut at frame {found.cuts[0]}, across which nothing can be learned. Its "
                     f"best part is frames {found.start} to {found.end - 1}; Clip Doctor hands it out")
    return notes


def absorbers_of(given: Absorber | Sequence[Absorber] | None, clips: int, batch_size: int) -> tuple[Absorber, ...]:
    """None, one for all clips, or one for each. Raises ValueError for another number."""
    absorbers = () if given is None else joined(given)
    if len(absorbers) > 1 and len(absorbers) != clips:
        raise ValueError(f"{len(absorbers)} absorbers were given for {clips} clips. Give one for all, or join one for "
                         "each clip, in the order of the clips.")
    if len(absorbers) > 1 and batch_size > 1:
        raise ValueError(f"With an absorber for each clip a batch is one clip; batch_size is {batch_size}. Set "
                         "accumulate instead, for several clips a step.")
    return absorbers


def mean(values: Iterator[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
