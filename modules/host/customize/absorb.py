"""Training an appearance absorber on host objects: MODEL, VAE, CLIP and clips in, ABSORBER out (stage 1).

The temporal layers are bypassed exactly: what is trained on is the image model alone, on single frames.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import torch
from torch import Tensor, nn

from ...customize.absorber import PLACEHOLDER, Absorber, cropped, draw_crop
from ...customize.recipe import BOTH, JOINT, S_LORA, TEXT_INVERSION, AbsorberRecipe
from ...data.cache import TensorCache
from ...data.clips import ClipSource
from ...data.encoded import Text
from ...seeding import batch_indices, stream
from ...training.lora import attach, check_rank
from ...training.lora_keys import Factors
from ...training.updates import Loss
from ..attention import attend
from ..codec import HostCodec, outside_inference
from ..files import cache_folder
from ..motion.frozen_copy import recompute_in_backward
from ..noise_levels import noise_levels
from ..weights import check_trainable, frozen_unet, identity_as, size_vector
from .spatial import attention_paths
from .text_model import TextModel

SHOWN = 4                       # frames of the sample
MEASURED_T = (100, 500, 900)    # of the absorb meter


@dataclass(frozen=True)
class Frames:
    """A batch: latents [B, C, h, w] as the VAE gives them."""
    latents: Tensor


class AbsorberSubject:
    """An appearance absorber as the subject of a training, see `training/subject.py`. The MODEL is only read.

    Args:
        caption: of the look alone, without the motion (y_S).
        clip_number: of the clip to learn from, from 1 on; 0 = from all.
    """

    assumed: Mapping[str, str] = {}
    current_key = str
    memory = None
    ema = None

    def __init__(self, model, vae, clip, source: ClipSource, recipe: AbsorberRecipe, caption: str,
                 cache: Path | None = None, clip_number: int = 0):
        check_trainable(model)
        if not caption.strip():
            raise ValueError("An absorber learns the look that a caption names. Write an appearance caption: what is "
                             "to be seen, without how it moves.")
        if clip_number > len(source):
            raise ValueError(f"clip_number is {clip_number}, but there are {len(source)} clips. Give 1 to "
                             f"{len(source)}, or 0 for all.")
        self.numbers = [clip_number - 1] if clip_number else list(range(len(source)))
        self.model, self.vae, self.source, self.recipe, self.caption = model, vae, source, recipe, caption.strip()
        self.settings, self.sample_every = recipe.settings(), recipe.sample_every
        self.levels, self.codec = noise_levels(model), HostCodec(vae, clip)
        self.words = TextModel(clip) if recipe.kind != S_LORA else None
        self.cache = TensorCache(cache or cache_folder("crops"), "An encoded crop")
        self.pieces = list(self.drawn())
        self.keys = [(self.codec.vae_name, source.key(clip), str(frame), str(box), str(recipe.native_scale))
                     for clip, frame, box in self.pieces]
        self.measured: dict[str, float] = {}

    def drawn(self) -> Iterator[tuple[int, int, tuple[int, int, int, int] | None]]:
        """(clip, frame, crop or None for all of it) of what is learned from."""
        frames = self.source.settings.frames
        if not self.recipe.crops:
            yield from ((clip, frame, None) for clip in self.numbers for frame in range(frames))
            return
        settings = self.source.settings
        for number in range(self.recipe.crops):
            generator = stream("crop", self.recipe.seed, number)
            clip, frame = (int(torch.randint(count, (), generator=generator)) for count in (len(self.numbers), frames))
            yield self.numbers[clip], frame, draw_crop(settings.height, settings.width, generator)

    def encode(self, share: tuple[int, int] = (0, 1)) -> Iterator[tuple[int, int]]:
        """Latents of all crops; quick where the cache has them."""
        missing, total = self.cache.missing(self.keys, share), len(self.keys)
        done = total - len(missing)
        yield done, total
        for index in missing:
            clip, frame, box = self.pieces[index]
            pixels = self.source.pixels(clip)[frame]
            part = pixels if box is None else cropped(pixels, box, not self.recipe.native_scale)
            self.cache.write(self.keys[index], {"latents": self.codec.latents(part[None])[0]}, f"frame {frame + 1}",
                             "VAE")
            yield (done := done + 1), total

    def prepare(self) -> None:
        """Copy the U-Net, put what is trained beside it."""
        recipe = self.recipe
        with torch.inference_mode(False), torch.no_grad():
            self.device = comfy.model_management.get_torch_device()
            if self.device.type != "cpu":
                comfy.model_management.unload_all_models()
            self.unet = frozen_unet(self.model, recipe.precision == "bf16")
            if recipe.gradient_checkpointing and recipe.kind != BOTH:
                recompute_in_backward(self.unet)
            self.trained = nn.ModuleDict()
            self.loras = None
            if recipe.kind != TEXT_INVERSION:
                paths = attention_paths(self.model, self.unet)
                check_rank(self.unet, paths.values(), recipe.rank)
                self.loras = attach(self.unet, paths, recipe.rank, seed=recipe.seed)
                self.trained["look"] = self.loras.to(self.device)
            if self.words is not None:
                vectors = self.words.fresh_vectors(self.caption.replace(PLACEHOLDER, " "), recipe.vectors)
                self.trained["words"] = nn.ParameterDict({"vectors": nn.Parameter(vectors.clone())})
            self.plain = outside_inference(self.codec.text(self.caption.replace(PLACEHOLDER, " ").strip()))
            self.before = self.losses_by_t(self.plain)

    def text(self) -> Text:
        """The caption with the vectors as they are now."""
        return self.words(self.caption, self.trained["words"]["vectors"])

    def predict(self, x: Tensor, t: Tensor, text: Text) -> Tensor:
        """x [B, 4, h, w], t [B], one text -> what the model predicts."""
        context = text.tokens.to(x).expand(len(x), -1, -1)
        vector = size_vector(self.model.model, text.pooled, *x.shape[-2:])
        return self.unet(x, t.float(), context=context, y=None if vector is None else vector.to(x).expand(len(x), -1),
                         transformer_options={"optimized_attention_override": attend})

    def loss(self) -> Loss:
        """Mean squared error of single frames (equations 3 and 4); of `both` the sum, each against the clean base."""
        def loss(batch: Frames, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
            x0 = self.model.model.process_latent_in(batch.latents.to(self.device))
            t = torch.randint(len(self.levels.abar), (len(x0),), generator=generator).to(self.device)
            eps = torch.randn(x0.shape, generator=generator).to(self.device)
            error = 0
            for look, words in self.ways():
                error = error + self.error(x0, eps, t, look, self.text() if words else self.plain)
            return error, dict(self.measured)

        return loss

    def ways(self) -> list[tuple[bool, bool]]:
        """(with the S-LoRA, with the textual inversion) of each pass."""
        return {S_LORA: [(True, False)], TEXT_INVERSION: [(False, True)], BOTH: [(True, False), (False, True)],
                JOINT: [(True, True)]}[self.recipe.kind]

    def error(self, x0: Tensor, eps: Tensor, t: Tensor, look: bool, text: Text) -> Tensor:
        """The denoising loss of frames, with or without the S-LoRA."""
        if self.loras is None or look:
            made = self.predict(self.levels.add_noise(x0, eps, t), t, text)
        else:
            with self.loras.off():
                made = self.predict(self.levels.add_noise(x0, eps, t), t, text)
        return (made.float() - self.levels.target(x0, eps, t)).square().mean()

    def batch(self, draw: int) -> Frames:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if self.words is not None:
            self.hold_vectors()
        if self.recipe.native_scale:            # crops of one size only fit into a batch
            first = batch_indices(len(self.keys), 1, self.recipe.seed, draw)[0]
            return Frames(self.cache.read(self.keys[first])["latents"][None].repeat(self.recipe.batch_size, 1, 1, 1))
        chosen = batch_indices(len(self.keys), self.recipe.batch_size, self.recipe.seed, draw)
        return Frames(torch.stack([self.cache.read(self.keys[index])["latents"] for index in chosen]))

    @torch.no_grad()
    def hold_vectors(self) -> None:
        """A rate that is too high lets vectors grow without end: hold them below three times a token's length."""
        vectors = self.trained["words"]["vectors"]
        vectors.mul_((self.words.longest / vectors.norm(dim=1, keepdim=True)).clamp(max=1))

    def rate(self, name: str) -> float:
        return self.recipe.embedding_rate / self.recipe.learning_rate if name.startswith("words") else 1.0

    def decay(self, name: str) -> float:
        return 0.0 if name.startswith("words") else 1.0

    def provenance(self, then: Mapping[str, str]) -> dict[str, str]:
        """What a checkpoint must agree on to be resumed here."""
        recipe = self.recipe
        return {"clips": "/".join(map(self.source.key, self.numbers)), "kind": recipe.kind,
                "rank": str(recipe.rank), "vectors": str(recipe.vectors), "crops": f"{recipe.crops}",
                "native scale": str(recipe.native_scale), "batch size": str(recipe.batch_size),
                "caption": self.caption, "text model": self.codec.clip_name,
                "image model": identity_as(self.model, then.get("image model"))}

    @torch.no_grad()
    def losses_by_t(self, text: Text) -> dict[int, float]:
        """The denoising loss of whole frames at fixed timesteps and noise, with the S-LoRA as it is now."""
        found = {}
        latents = self.codec.latents(self.source.pixels(self.numbers[0])[:SHOWN])
        x0 = self.model.model.process_latent_in(latents.clone().to(self.device))
        eps = torch.randn(x0.shape, generator=stream("absorbed", self.recipe.seed)).to(self.device)
        for time in MEASURED_T:
            t = torch.full((len(x0),), time, device=self.device)
            found[time] = float(self.error(x0, eps, t, True, text))
        return found

    def sample(self) -> Tensor:
        """The clip's frames above, and what the image model with the absorber makes of them from half noise."""
        with torch.inference_mode(False), torch.no_grad():
            text = self.text() if self.words is not None else self.plain
            now = self.losses_by_t(text)
            self.measured = {f"absorbed at {time}": 1 - now[time] / max(self.before[time], 1e-8) for time in now}
            pixels = self.source.pixels(self.numbers[0])[:SHOWN]
            x0 = self.model.model.process_latent_in(self.codec.latents(pixels).clone().to(self.device))
            eps = torch.randn(x0.shape, generator=stream("absorbed", self.recipe.seed)).to(self.device)
            t = torch.full((len(x0),), 600, device=self.device)
            x = self.levels.add_noise(x0, eps, t)
            guess, _ = self.levels.split(x, self.predict(x, t, text).float(), t)
            drawn = self.vae.decode(self.model.model.process_latent_out(guess).float().cpu()).clamp(0, 1).cpu()
        return torch.cat([pixels.movedim(1, -1).float() / 255, drawn])

    def result(self, name: str, steps: int) -> Absorber:
        """What was learned, as an ABSORBER."""
        factors = {}
        if self.loras is not None:
            factors = {key: Factors(lora.down.detach().cpu().clone(), lora.up.detach().cpu().clone(), lora.alpha)
                       for key, lora in self.loras.by_name.items()}
        vectors = self.trained["words"]["vectors"].detach().cpu().clone() if self.words is not None else None
        return Absorber(factors, vectors, self.caption, name, {"train_steps": str(steps), "caption": self.caption})
