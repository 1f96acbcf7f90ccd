"""Training a motion LoRA on host objects: MODEL, VAE, CLIP, motion module and a clip in, MOTION_LORA out (stage 2)."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import torch
from torch import Tensor, nn

from ...curve import Curve
from ...customize.absorber import PLACEHOLDER, Absorber, caption_notes
from ...customize.meters import best_snapshot, diversity, fidelity, leakage
from ...customize.recipe import MotionLoRARecipe
from ...data.clips import ClipSource
from ...data.encoded import ClipBatch, EncodedClips, Text
from ...motion.motion_lora import MotionLoRA
from ...motion.temporal_lora import attention_projections
from ...seeding import stream
from ...training.denoising import ddim, denoising_loss
from ...training.loop import autocast
from ...training.lora import LoRASet, attach, attach_factors
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
from .spatial import attach_look
from .text_model import TextModel

SAMPLE_STEPS, SAMPLE_CFG, SEEDS = 8, 5.0, 2     # of the looks at held-out prompts
LEAK, ALIKE = 0.15, 0.002                       # of the meters: what a person is told about
SHORTEST = 8                                    # frames of a clip; fewer tell no motion


@dataclass(frozen=True)
class Captioned:
    """Clips under one caption, in place of their own."""
    source: ClipSource
    text: str

    @property
    def settings(self):
        return self.source.settings

    def __len__(self) -> int:
        return len(self.source)

    def caption(self, index: int) -> str:
        return self.text or self.source.caption(index)

    def pixels(self, index: int) -> Tensor:
        return self.source.pixels(index)

    def key(self, index: int) -> str:
        return self.source.key(index)

    def video(self, index: int) -> str:
        return self.source.video(index)

    def report(self) -> str:
        return self.source.report()


class WordsCodec:
    """The VAE and the CLIP, with a textual inversion's vectors where PLACEHOLDER stands in a caption."""

    def __init__(self, codec: HostCodec, words: TextModel | None, vectors: Tensor | None):
        self.codec, self.words, self.vectors = codec, words, vectors
        self.vae_name, self.latents = codec.vae_name, codec.latents
        self.clip_name = codec.clip_name if vectors is None else f"{codec.clip_name}+{digest_of(vectors)}"

    def text(self, caption: str) -> Text:
        if self.words is None or PLACEHOLDER not in caption:
            return self.codec.text(caption)
        with torch.inference_mode(False), torch.no_grad():
            return self.words(caption, self.vectors)


class MotionLoRASubject:
    """A motion LoRA as the subject of a training, see `training/subject.py`.

    It happens on frozen copies of U-Net and motion module; what was given is only read.

    Args:
        caption: of the clips, with the motion's words (y); "" = their own.
        prompts: held-out prompts to look at while it trains, other subjects that are to move alike; () = no looks.
        absorber: frozen at scale 1 while the motion is learned.

    Raises ValueError for inputs that do not belong together.
    """

    assumed: Mapping[str, str] = {}
    current_key = str
    memory = None
    ema = None

    def __init__(self, model, vae, clip, motion: LoadedMotion, source: ClipSource, recipe: MotionLoRARecipe,
                 caption: str = "", prompts: Sequence[str] = (), absorber: Absorber | None = None,
                 cache: Path | None = None):
        check_trainable(model)
        check_family(model, motion)
        self.model, self.vae, self.motion, self.recipe, self.absorber = model, vae, motion, recipe, absorber
        self.settings, self.sample_every = recipe.settings(), recipe.sample_every
        self.clip_frames = source.settings.frames
        self.frames = self.frames_of(recipe, self.clip_frames, motion)
        self.levels = noise_levels(with_schedule(model, motion.config.beta_schedule))
        codec = HostCodec(vae, clip)
        if codec.text_channels != motion.config.text_channels and motion.config.frame_tokens:
            raise ValueError(f"The CLIP gives text of {codec.text_channels} channels, the motion module's frame tokens "
                             f"want {motion.config.text_channels}. Connect the CLIP of the image model's checkpoint.")
        captions = [caption] if caption else [source.caption(index) for index in range(len(source))]
        self.notes = [note for text in captions for note in caption_notes(text, absorber.caption if absorber else "",
                                                                          absorber)]
        vectors = absorber.vectors if absorber else None
        self.codec = WordsCodec(codec, TextModel(clip) if vectors is not None else None, vectors)
        self.clips = EncodedClips(Captioned(source, caption), self.codec, cache or cache_folder("clips"))
        self.caption, self.prompts = captions[0], [prompt.strip() for prompt in prompts if prompt.strip()]
        self.measured: dict[str, float] = {}
        self.history: list[dict[str, float]] = []
        self.snapshots: list[dict[str, Factors]] = []
        self.yardsticks: list[Tensor] | None = None

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
            self.loras: LoRASet = attach(module, paths, recipe.rank, seed=recipe.seed).to(self.predict.device)
            self.trained = nn.ModuleDict({"motion": self.loras})
            self.look = None
            if self.absorber is not None and self.absorber.factors:
                self.look = attach_look(self.model, self.predict.unet, self.absorber.factors).to(self.predict.device)
            self.empty = outside_inference(self.codec.text(""))
            self.texts = [outside_inference(self.codec.codec.text(prompt)) for prompt in self.prompts]

    def loss(self) -> Loss:
        """The denoising loss of clips (equation 5), with the recipe's weights and noise levels."""
        recipe = self.recipe
        denoise = denoising_loss(self.predict, self.levels, self.predict.latents_in, self.predict.device,
                                 recipe.snr_limit, recipe.noise_shift, recipe.pure_noise)

        def loss(batch: ClipBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
            return denoise(batch, generator), dict(self.measured)

        return loss

    def batch(self, draw: int) -> ClipBatch:
        comfy.model_management.throw_exception_if_processing_interrupted()
        recipe = self.recipe
        return self.clips.batch(recipe.batch_size, self.frames, 0.0, recipe.seed, draw, recipe.scattered)

    def rate(self, name: str) -> float:
        return 1.0

    def decay(self, name: str) -> float:
        return 1.0

    def provenance(self, then: Mapping[str, str]) -> dict[str, str]:
        """What a checkpoint must agree on to be resumed here."""
        recipe, absorber = self.recipe, self.absorber
        look = [] if absorber is None else [pair.down for pair in absorber.factors.values()]
        if absorber is not None and absorber.vectors is not None:
            look.append(absorber.vectors)
        return {"clips": self.clips.name, "text model": self.codec.clip_name, "frames": str(self.frames),
                "batch size": str(recipe.batch_size), "rank": str(recipe.rank), "scattered": str(recipe.scattered),
                "SNR limit": str(recipe.snr_limit), "noise shift": str(recipe.noise_shift),
                "pure noise": str(recipe.pure_noise), "absorber": digest_of(*look) if look else "none",
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
                self.snapshots.append(self.factors())
                return reference
            off = [] if self.look is None else [self.look]
            for look in off:
                look.set_scale(0.0)
            try:
                if self.yardsticks is None:
                    self.yardsticks = [self.clip_of(text, number, False) for number, text in enumerate(self.texts)]
                made = [self.clip_of(text, number, True) for number, text in enumerate(self.texts)]
                others = [self.clip_of(self.texts[0], 100 + number, True) for number in range(SEEDS - 1)]
            finally:
                for look in off:
                    look.set_scale(1.0)
            self.measured = {
                "fidelity": mean(fidelity(clip, reference) for clip in made),
                "leakage": mean(leakage(clip, reference, before) for clip, before in zip(made, self.yardsticks,
                                                                                         strict=True)),
                "diversity": diversity(torch.stack([made[0], *others]))}
            self.history.append(self.measured)
            self.snapshots.append(self.factors())
        return torch.cat([reference, *made])

    def report(self, result: MotionLoRA) -> str:
        """The looks and what was kept, in words."""
        lines = [f"Note: {note}" for note in dict.fromkeys(self.notes)]
        for number, look in enumerate(self.history, 1):
            lines.append(f"look {number}: fidelity {look['fidelity']:.2f} (1 = moves alike), leakage "
                         f"{look['leakage']:.2f} (0 = nothing of the look), diversity {look['diversity']:.3f}")
        if self.history:
            lines.append(f"kept: {result.metadata['snapshot']}, the earliest that moves nearly as well as the best")
            if self.history[-1]["leakage"] > LEAK and self.absorber is None:
                lines.append("Warning: the clip's look comes along. Train an absorber first, take fewer steps, or keep "
                             "fade_after at 0.5 when sampling.")
            if self.history[-1]["diversity"] < ALIKE:
                lines.append("Warning: all seeds give nearly the same clip: it is over-trained. Take fewer steps, or a "
                             "strength of 0.7.")
        return "\n".join(lines or ["no prompts to look at were given: the last step is kept"])

    def result(self, name: str, steps: int) -> MotionLoRA:
        """The earliest of the looks' snapshots that is nearly the best, or what it is now, as a MOTION_LORA."""
        chosen = best_snapshot([look["fidelity"] for look in self.history])
        factors = self.factors() if chosen < 0 else self.snapshots[chosen]
        config = self.motion.config
        metadata = {"method": "Customize-A-Video", "caption": self.caption, "train_steps": str(steps),
                    "motion_module": self.motion.source, "motion_kind": config.kind,
                    "beta_schedule": config.beta_schedule, "frames": str(self.clip_frames),
                    "fps": str(self.clips.source.settings.fps), "resolution": self.clips.source.settings.size,
                    "rank": str(self.recipe.rank), "absorber": self.absorber.kind if self.absorber else "none",
                    "appearance_caption": self.absorber.caption if self.absorber else ""}
        if chosen >= 0:
            metadata["snapshot"] = f"look {chosen + 1} of {len(self.history)}"
        return MotionLoRA(name, factors, 1.0, Curve(((0.0, 1.0),)), metadata)


def mean(values: Iterator[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
