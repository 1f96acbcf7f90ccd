"""Training a guide model on host objects: MODEL, CLIP and prompts in, GUIDE_MODEL out. No data set is needed."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import comfy.model_management
import comfy.ops
import torch
from torch import Tensor, nn

from ...data.cache import TensorCache
from ...data.encoded import Text, stack_texts
from ...data.images import ImageSettings
from ...data.sources import images_at
from ...guide.distillation import guided, scale_weight, step_weight, two_steps_in_one, unexplained
from ...guide.files import FULL, TINY, GuideConfig, marks_of_text
from ...guide.networks import OUTPUT_STD, fresh_guide
from ...guide.recipe import BY_SCALE, GuideRecipe
from ...guide.rollout import distance_ratio, rollout
from ...guide.shape import shape_of
from ...guide.trajectories import NO_PICTURES, Pictures, States, Trajectories, grid
from ...seeding import stream
from ...training.denoising import NoiseLevels
from ...training.ema import MovingAverage
from ...training.loop import autocast
from ...training.updates import Loss
from ..codec import HostCodec, HostText, digest_of, outside_inference
from ..files import cache_folder
from ..noise_levels import noise_levels
from ..weights import check_trainable, identity_as, model_identity
from .base import FrozenBase
from .files import LoadedGuide, check_fit, family_of, hold_guide
from .full import fresh_full_guide

HELD_OUT, SHOWN_G, SHOWN_STEPS = 8, 5.0, 8      # prompts kept for looking, and how they are sampled
MEASURED_G = (2.0, 3.0, 5.0, 9.0)


class GuideSubject:
    """A guide model as the subject of a training, see `training/subject.py`. The MODEL is only read.

    Args:
        prompts: to learn from; of many, the first few are kept for looking at the guide.
        size: (width, height) of the pictures in pixels.
        warm: a guide to start from (stage 2, or a top-up for another fine-tune).
        negatives: prompts to be guided away from; with some the guide will be negative-aware.
        pictures: a folder or shards, of which noised pictures are learned from too.
    """

    assumed: Mapping[str, str] = {}
    current_key = str
    memory = None

    def __init__(self, model, vae, clip, prompts: Sequence[str], recipe: GuideRecipe, size: tuple[int, int],
                 warm: LoadedGuide | None = None, cache: Path | None = None, negatives: Sequence[str] = (),
                 pictures: Path | str | None = None):
        check_trainable(model)
        self.model, self.vae, self.recipe, self.warm = model, vae, recipe, warm
        self.settings, self.sample_every = recipe.settings(), recipe.sample_every
        self.levels, self.codec = noise_levels(model), HostText(clip)
        wanted = model.model.model_config.unet_config["context_dim"]
        if self.codec.text_channels != wanted:
            raise ValueError(f"The CLIP gives text of {self.codec.text_channels} channels, but the MODEL reads "
                             f"{wanted}. Connect the CLIP of the image model's checkpoint.")
        self.negatives = [text.strip() for text in negatives if text.strip()]
        if self.negatives and recipe.kind == FULL:
            raise ValueError("A full guide is a copy of the base and reads one text; negatives are for a tiny one. Set "
                             "kind to tiny, or leave negatives empty.")
        self.config = replace(config_of(model, recipe, self.levels, size), negative_aware=bool(self.negatives),
                              empty_text=tuple(marks_of_text(self.codec.text("").tokens).tolist()))
        if warm is not None:
            check_fit(model, warm)
            if warm.config.kind != recipe.kind:
                raise ValueError(f"The training starts from a {warm.config.kind} guide, but kind is {recipe.kind}. Set "
                                 f"kind to {warm.config.kind}.")
            self.config = replace(self.config, shape=warm.config.shape, fed=warm.config.fed)
            if warm.config.negative_aware and not self.negatives:
                raise ValueError("The training starts from a negative-aware guide, and no negatives are given. Write "
                                 "those that it is to go on reading.")
        elif recipe.student_steps:
            raise ValueError("Stage 2 (student_steps above 0) teaches an existing guide to take fewer steps. Connect "
                             "the guide of stage 1.")
        if recipe.own_states and warm is None:
            raise ValueError("own_states are those of a guide, and there is none to start from. Connect the guide that "
                             "is to be improved, or switch own_states off.")
        prompts = [prompt.strip() for prompt in prompts if prompt.strip()]
        kept = HELD_OUT if len(prompts) >= 4 * HELD_OUT else 0
        self.held_out = (prompts * HELD_OUT)[:HELD_OUT]         # of few prompts the same ones, with other noise
        self.size = (4, size[1] // 8, size[0] // 8)
        self.trajectories = Trajectories(
            prompts[kept:], recipe, f"{model_identity(model)} {self.levels.prediction} {self.codec.clip_name}",
            self.size, self.levels, self.text, TensorCache(cache or cache_folder("trajectories"), "A trajectory"),
            self.negatives, pictures_of(pictures, model, vae, clip, size) if pictures else NO_PICTURES,
            (weights_name(warm.network), self.follow) if recipe.own_states else None)
        self.base: FrozenBase | None = None
        self.leader: nn.Module | None = None
        self.measured: dict[str, float] = {}
        self.history: list[dict[str, float]] = []

    def encode(self, share: tuple[int, int] = (0, 1)) -> Iterator[tuple[int, int]]:
        """Sample the trajectories with real guidance; quick where they are on disk."""
        self.make_base()

        def predict(x: Tensor, t: Tensor, text: Text) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            with autocast(self.base.device, self.recipe.precision):
                return self.base(x, t, text)

        yield from self.trajectories.sample(predict, self.base.device, share)

    def follow(self, x: Tensor, t: Tensor, g: Tensor, text: Text, negative: Text) -> Tensor:
        """Where the guide that the training starts from goes by itself."""
        if self.leader is None:
            self.leader = self.build().to(self.base.device).requires_grad_(False)
        return self.predict(x, t, g, text, self.leader, negative if self.negatives else None)

    def text(self, prompt: str) -> Text:
        """Of a prompt, for sampling and for training."""
        with torch.inference_mode(False), torch.no_grad():
            return outside_inference(self.codec.text(prompt))

    def make_base(self) -> None:
        """Copy the U-Net to the device, once."""
        if self.base is None:
            if comfy.model_management.get_torch_device().type != "cpu":
                comfy.model_management.unload_all_models()
            self.base = FrozenBase(self.model, self.recipe.precision == "bf16")

    def prepare(self) -> None:
        """Build the guide, and its teacher in stage 2."""
        with torch.inference_mode(False), torch.no_grad():
            self.make_base()
            self.guide = self.build().to(self.base.device).requires_grad_(True)
            self.trained = nn.ModuleDict({"guide": self.guide})
            self.ema = MovingAverage(self.trained, self.recipe.ema)
            stage_2 = bool(self.recipe.student_steps)
            self.teacher = self.build().to(self.base.device).requires_grad_(False) if stage_2 else None
            self.noise = torch.stack([torch.randn(self.size, generator=stream("held out", self.recipe.seed, number))
                                      for number in range(HELD_OUT)]).to(self.base.device)
            self.shown = stack_texts([self.trajectories.text_of(prompt) for prompt in self.held_out])
            self.empty = stack_texts([self.trajectories.text_of("")] * HELD_OUT)
            self.yardsticks: tuple[Tensor, Tensor] | None = None

    def build(self) -> nn.Module:
        """The guide to start with: fresh, or the warm start's."""
        shape, seed = self.config.shape, self.recipe.seed
        if self.config.kind == FULL:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                guide = fresh_full_guide(shape, self.base.unet, self.config.unet, comfy.ops.disable_weight_init,
                                         OUTPUT_STD)
        else:
            guide = fresh_guide(shape, seed, fed=self.config.fed, negative=self.config.negative_aware)
        if self.warm is not None:
            state = self.warm.network.state_dict()
            # A guide that has read no negative prompt begins with new weights for it, which add nothing yet.
            same = self.warm.config.negative_aware == self.config.negative_aware
            guide.load_state_dict({name: weight.float().cpu() for name, weight in state.items()}, strict=same)
        return guide

    def predict(self, x: Tensor, t: Tensor, g: Tensor, text: Text, guide: nn.Module | None = None,
                negative: Text | None = None) -> Tensor:
        """One pass of base and guide: x [B, 4, h, w], t and g [B] -> the guided prediction.

        A negative-aware guide reads `negative`, by default the empty prompt.
        """
        guide = guide or self.guide
        if self.negatives and negative is None:
            negative = stack_texts([self.trajectories.text_of("")] * len(x))
        words = guide.read_text(text.tokens.to(x), None if negative is None else negative.tokens.to(x))
        return self.base(x, t, text, guide.walk(x, t, g, words, self.base.vector(text, *x.shape[-2:])))

    def loss(self) -> Loss:
        """Mean squared error to the guided prediction (stage 1), or to two of the teacher's steps (stage 2)."""
        of_states = self.two_steps if self.recipe.student_steps else self.one_pass

        def loss(states: States, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
            error = of_states(states)
            return error.mean(), dict(self.measured)

        return loss

    def one_pass(self, states: States) -> Tensor:
        """Stage 1's error of each row [B]."""
        device = self.base.device
        x, t, g = (part.to(device) for part in (states.x, states.t, states.g))
        target = guided(states.conditional.to(device), states.unconditional.to(device), g)
        made = self.predict(x, t, g, states.text, negative=states.negative)
        error = (made.float() - target).square().flatten(1).mean(1)
        return error * scale_weight(g) if self.recipe.weighting == BY_SCALE else error

    def two_steps(self, states: States) -> Tensor:
        """Stage 2's error of each row [B]: the student's eps at t against the one that lands where two steps end."""
        device, times = self.base.device, grid(2 * self.recipe.student_steps)
        x, t, g = (part.to(device) for part in (states.x, states.t, states.g))
        after = dict(zip(times, [*times[1:], None], strict=True))
        middle = [after[time] for time in states.t.tolist()]
        last = [after[time] for time in middle]
        sigma_t, sigma_m, sigma_s = (self.sigma(each) for each in (states.t.tolist(), middle, last))
        with torch.no_grad():
            first = self.predict(x, t, g, states.text, self.teacher, states.negative).float()
            x0, eps1 = self.levels.split(x, first, t)
            m = torch.tensor(middle, device=device)
            between = self.levels.add_noise(x0, eps1, m)
            second = self.predict(between, m, g, states.text, self.teacher, states.negative).float()
            _, eps2 = self.levels.split(between, second, m)
            target = two_steps_in_one(eps1, eps2, sigma_t, sigma_m, sigma_s)
        _, eps = self.levels.split(x, self.predict(x, t, g, states.text, negative=states.negative).float(), t)
        error = (eps - target).square().flatten(1).mean(1)
        return step_weight(sigma_t) * error

    def sigma(self, times: Sequence[int | None]) -> Tensor:
        """Noise levels [B] of timesteps in the variance-exploding scale; None is 0."""
        return torch.tensor([0.0 if time is None else sigmas_of(self.levels, [time])[0] for time in times],
                            device=self.base.device)

    def batch(self, draw: int) -> States:
        comfy.model_management.throw_exception_if_processing_interrupted()
        return self.trajectories.batch(draw)

    def rate(self, name: str) -> float:
        return 1.0

    def decay(self, name: str) -> float:
        return 1.0

    def provenance(self, then: Mapping[str, str]) -> dict[str, str]:
        """What a checkpoint must agree on to be resumed here."""
        recipe = self.recipe
        return {"trajectories": self.trajectories.name, "kind": f"{recipe.kind}{', fed' * self.config.fed}",
                "weighting": recipe.weighting, "batch size": str(recipe.batch_size),
                "student steps": str(recipe.student_steps), "text model": self.codec.clip_name,
                "start": "scratch" if self.warm is None else f"{self.warm.source} ({weights_name(self.warm.network)})",
                "image model": identity_as(self.model, then.get("image model"))}

    @torch.no_grad()
    def roll(self, g: float, real: bool = False) -> Tensor:
        """The held-out prompts sampled in few steps: with the guide at g (1 = plain), or by real guidance."""
        scale = torch.full((HELD_OUT,), g, device=self.base.device)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            if real:
                return guided(self.base(x, t, self.shown), self.base(x, t, self.empty), scale)
            return self.base(x, t, self.shown) if g == 1 else self.predict(x, t, scale, self.shown)

        steps = self.recipe.student_steps or SHOWN_STEPS
        with autocast(self.base.device, self.recipe.precision):
            return rollout(predict, self.levels, self.noise, grid(steps))

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """FGU at some scales, the median over states of the set that have a text."""
        found = {}
        count = min(16, len(self.trajectories.plans))
        steps = len(self.trajectories.plans[0].times)
        chosen = [(number, (3 * number) % steps) for number in range(count)]
        there = [index for index, (number, _) in enumerate(chosen) if self.trajectories.plans[number].prompt]
        for g in MEASURED_G:
            states = self.trajectories.states(chosen, torch.full((count,), g))
            x, t, scale = (part.to(self.base.device) for part in (states.x, states.t, states.g))
            predicted = self.predict(x, t, scale, states.text, negative=states.negative).float()
            parts = (states.conditional.to(x), states.unconditional.to(x))
            found[f"FGU {g:g}"] = float(unexplained(predicted, *parts, scale)[there].median())
        return found

    def sample(self) -> Tensor:
        """Held-out prompts without guidance, with the guide, with real guidance, 8 each: [24, H, W, 3] in 0..1."""
        with torch.inference_mode(False), torch.no_grad(), self.ema.applied(self.trained):
            if self.yardsticks is None:
                self.yardsticks = self.roll(1.0), self.roll(SHOWN_G, real=True)
            plain, real = self.yardsticks
            made = self.roll(SHOWN_G)
            self.measured = {"ratio": distance_ratio(made, plain, real), **self.measure()}
            self.history.append(self.measured)
        return torch.cat([self.vae.decode(self.base.latents_out(part).float().cpu()).clamp(0, 1).cpu()
                          for part in (plain, made, real)])

    def result(self, name: str, steps: int) -> LoadedGuide:
        """The averaged weights as a GUIDE_MODEL."""
        with torch.inference_mode(False), torch.no_grad(), self.ema.applied(self.trained):
            state = {key: value.detach().cpu().clone() for key, value in self.guide.state_dict().items()}
        told = {"train_steps": str(steps), "trajectories": str(len(self.trajectories.plans))}
        return hold_guide(self.config, state, name, told)


def config_of(model, recipe: GuideRecipe, levels: NoiseLevels, size: tuple[int, int]) -> GuideConfig:
    """What the guide of a training will be."""
    unet = model.model.model_config.unet_config
    sigmas = [*sigmas_of(levels, grid(recipe.student_steps)), 0.0] if recipe.student_steps else []
    plain = {name: value for name, value in unet.items() if name != "dtype"} if recipe.kind == FULL else None
    return GuideConfig(recipe.kind, family_of(model), levels.prediction, shape_of(unet), recipe.g_min, recipe.g_max,
                       max(size), tuple(sigmas), model_identity(model), plain, recipe.fed and recipe.kind == TINY)


def pictures_of(path: Path | str, model, vae, clip, size: tuple[int, int]) -> Pictures:
    """The pictures of a folder or of shards as latents of the MODEL. Raises ImageFolderError."""
    source = images_at(path, ImageSettings(*size), comfy.model_management.throw_exception_if_processing_interrupted)
    codec = HostCodec(vae, clip)

    def latents(number: int) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            return model.model.process_latent_in(codec.latents(source.pixels(number)[None]).clone())[0]

    numbers = range(len(source))
    return Pictures([f"{codec.vae_name} {source.key(number)}" for number in numbers],
                    [source.caption(number) for number in numbers], latents)


def sigmas_of(levels: NoiseLevels, times: Sequence[int]) -> list[float]:
    """Noise levels of timesteps in the variance-exploding scale."""
    return [float(levels.snr(torch.tensor([time])) ** -0.5) for time in times]


def weights_name(network: nn.Module) -> str:
    """A name of a guide's weights."""
    return digest_of(*(weight.flatten()[:4] for weight in network.state_dict().values()))
