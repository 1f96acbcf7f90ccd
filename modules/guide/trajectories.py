"""States to learn guidance on: those that real guidance goes through, with what the base predicts there with and
without the text (guide_model.md 3, after Jensen & Sadat, TMLR 2025: states of guided sampling, not noised pictures).

Both predictions are kept, so that any scale g can be learned from a state later.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.cache import WHOLE, Key, Share, TensorCache, digest
from ..data.encoded import Text, stack_texts
from ..seeding import batch_indices, stream
from ..training.denoising import NoiseLevels
from .distillation import guided, stratified
from .recipe import GuideRecipe

Predictor = Callable[[Tensor, Tensor, Text], Tensor]            # (x_t [B, C, h, w], t [B], texts) -> eps or v
Follow = Callable[[Tensor, Tensor, Tensor, Text, Text], Tensor]         # the same at scales g, of texts and negatives
AT_ONCE = 8                                                     # trajectories
NEGATIVE_SHARE = 0.5                                            # of a negative-aware guide's; the others have ""


@dataclass(frozen=True)
class States:
    """A batch to learn from.

    Attributes:
        x: [B, C, h, w], x_t in the variance-preserving scale.
        t: [B] timesteps.
        g: [B] scales to learn.
        text: of B prompts.
        conditional, unconditional: what the base predicts with the text, and without it or with the negative one.
        negative: of B negative prompts, for a negative-aware guide.
    """
    x: Tensor
    t: Tensor
    g: Tensor
    text: Text
    conditional: Tensor
    unconditional: Tensor
    negative: Text | None = None


@dataclass(frozen=True)
class Pictures:
    """Pictures whose noised latents are states too: names for the cache, captions, and latents [C, h, w] by number."""
    names: Sequence[str]
    captions: Sequence[str]
    latents: Callable[[int], Tensor]


NO_PICTURES = Pictures((), (), lambda number: torch.empty(0))


@dataclass(frozen=True)
class Plan:
    """One trajectory.

    Attributes:
        number: of all.
        prompt, negative: its texts.
        g: its scale.
        times: its timesteps, from high noise to low.
        picture: number of the picture whose noised latents take the place of a sampling, None for a sampling.
    """
    number: int
    prompt: str
    negative: str
    g: float
    times: tuple[int, ...]
    picture: int | None = None


def grid(steps: int, count: int = 1000) -> tuple[int, ...]:
    """Timesteps of a sampling with so many steps, the first of `count` levels first; of half as many every second one.

    After the last one comes noise level 0.
    """
    return tuple(round((count - 1) * (1 - step / steps)) for step in range(steps))


def drawn_times(steps: int, seed: int, number: int, count: int = 1000) -> tuple[int, ...]:
    """The highest timestep, then one in each of steps - 1 equal parts of all, so that trajectories cover all levels."""
    drawn = stratified(steps - 1, stream("times", seed, number)).sort(descending=True).values
    return (count - 1, *(min(count - 2, int(value * (count - 1))) for value in drawn.tolist()))


def plans(prompts: Sequence[str], recipe: GuideRecipe, negatives: Sequence[str] = (), pictures: Sequence[str] = ()
          ) -> list[Plan]:
    """The trajectories of a recipe. A share has no text; prompts are gone through again with other noise.

    negatives: half of the trajectories have one of them. pictures: captions of pictures, of which a share is made.
    """
    found = []
    for number in range(recipe.trajectories):
        empty, g = torch.rand(2, generator=stream("trajectory", recipe.seed, number)).tolist()
        other, which, noised, shown = torch.rand(4, generator=stream("kind", recipe.seed, number)).tolist()
        picture = int(shown * len(pictures)) if pictures and noised < recipe.picture_share else None
        prompt = prompts[number % len(prompts)] if picture is None else pictures[picture]
        times = (grid(2 * recipe.student_steps) if recipe.student_steps
                 else drawn_times(recipe.trajectory_steps, recipe.seed, number))
        found.append(Plan(number, "" if empty < recipe.empty_share else prompt,
                          negatives[int(which * len(negatives))] if negatives and other < NEGATIVE_SHARE else "",
                          recipe.g_min + g * (recipe.g_max - recipe.g_min), times, picture))
    return found


class Trajectories:
    """The trajectories of a training, sampled once and kept on disk, a file each.

    Args:
        base: a name of the image model and what it predicts, for the cache.
        size: (channels, height, width) of the latents.
        text: gives the text model's output of a prompt.
        negatives: prompts to be guided away from, for a negative-aware guide.
        pictures: of which a share of the states are noised latents.
        follow: predicts where a trajectory goes on, under a name for the cache; None = real guidance. States that a
            guide goes through by itself are where its errors lead it (Ross et al. 2011, DAgger).
    """

    def __init__(self, prompts: Sequence[str], recipe: GuideRecipe, base: str, size: tuple[int, int, int],
                 levels: NoiseLevels, text: Callable[[str], Text], cache: TensorCache, negatives: Sequence[str] = (),
                 pictures: Pictures = NO_PICTURES, follow: tuple[str, Follow] | None = None):
        if not prompts:
            raise ValueError("There is no prompt to learn from. Write some into the text box, one a line; a few "
                             "hundred different ones teach a guide best.")
        self.recipe, self.size, self.levels, self.text, self.cache = recipe, size, levels, text, cache
        self.negatives, self.pictures, self.follow = negatives, pictures, follow
        self.plans = plans(prompts, recipe, negatives, pictures.captions)
        self.texts: dict[str, Text] = {}
        self.keys = [self.key(base, plan) for plan in self.plans]

    def key(self, base: str, plan: Plan) -> Key:
        """Of a trajectory in the cache."""
        names = [base, plan.prompt, f"{plan.g:.6f}", *map(str, self.size), *map(str, plan.times),
                 str(self.recipe.seed), str(plan.number)]
        if self.follow is not None:
            names.append(f"by {self.follow[0]}")
        if plan.negative:
            names.append(f"less {plan.negative}")
        if plan.picture is not None:
            names.append(self.pictures.names[plan.picture])
        return tuple(names)

    @property
    def name(self) -> str:
        """Of all trajectories: a checkpoint trained on them is resumed on no others."""
        return digest(*("/".join(key) for key in self.keys))

    def text_of(self, prompt: str) -> Text:
        """Of a prompt, kept."""
        if prompt not in self.texts:
            self.texts[prompt] = self.text(prompt)
        return self.texts[prompt]

    def texts_of(self, chosen: Sequence[Plan], kind: str) -> Text:
        """The "prompt" or the "negative" of plans."""
        return stack_texts([self.text_of(getattr(plan, kind)) for plan in chosen])

    def sample(self, predict: Predictor, device: torch.device, share: Share = WHOLE) -> Iterator[tuple[int, int]]:
        """Sample what is missing; yields (trajectories done, in all)."""
        missing = self.cache.missing(self.keys, share)
        done, total = len(self.keys) - len(missing), len(self.keys)
        yield done, total
        for start in range(0, len(missing), AT_ONCE):
            chosen = [self.plans[index] for index in missing[start:start + AT_ONCE]]
            for plan, states in zip(chosen, self.walk(chosen, predict, device), strict=True):
                self.cache.write(self.keys[plan.number], states, f"the prompt {plan.prompt!r}", "image model")
            yield (done := done + len(chosen)), total

    @torch.no_grad()
    def walk(self, chosen: Sequence[Plan], predict: Predictor, device: torch.device) -> list[dict[str, Tensor]]:
        """Guided DDIM along each plan, or its picture with noise: x and both predictions [S, C, h, w] of each."""
        noise = [torch.randn(self.size, generator=stream("noise", self.recipe.seed, plan.number)) for plan in chosen]
        x, g = torch.stack(noise).to(device), torch.tensor([plan.g for plan in chosen], device=device)
        text = stack_texts([self.texts_of(chosen, kind) for kind in ("negative", "prompt")])
        times = torch.tensor([plan.times for plan in chosen])                   # [B, S]
        still = {row: (self.pictures.latents(plan.picture).to(device), noise[row].to(device))
                 for row, plan in enumerate(chosen) if plan.picture is not None}
        kept = []
        for step in range(times.shape[1]):
            t = times[:, step].to(device)
            for row, (x0, eps) in still.items():
                x[row] = self.levels.add_noise(x0[None], eps[None], t[row:row + 1])[0]
            unconditional, conditional = predict(x.repeat(2, 1, 1, 1), t.repeat(2), text).float().chunk(2)
            kept.append((x.clone(), conditional, unconditional))
            if step + 1 < times.shape[1]:
                there = guided(conditional, unconditional, g) if self.follow is None else self.follow[1](
                    x, t, g, *(self.texts_of(chosen, kind) for kind in ("prompt", "negative"))).float()
                x0, eps = self.levels.split(x, there, t)
                x = self.levels.add_noise(x0, eps, times[:, step + 1].to(device))
        names = ("x", "conditional", "unconditional")
        stacked = {name: torch.stack(parts, 1) for name, parts in zip(names, zip(*kept, strict=True), strict=True)}
        return [{name: values[row].cpu() for name, values in stacked.items()} for row in range(len(chosen))]

    def batch(self, draw: int) -> States:
        """Batch number `draw`: states of all trajectories, each once an epoch, with scales of their own.

        In stage 2 those at which the student's steps begin: every second one.
        """
        recipe, every = self.recipe, 2 if self.recipe.student_steps else 1
        steps = len(self.plans[0].times) // every
        indices = batch_indices(len(self.plans) * steps, recipe.batch_size, recipe.seed, draw)
        chosen = [(index // steps, every * (index % steps)) for index in indices]
        return self.states(chosen, self.scales(len(indices), draw))

    def scales(self, count: int, draw: int) -> Tensor:
        """[count] scales to learn, one in each of as many equal parts of the recipe's range."""
        share = stratified(count, stream("scales", self.recipe.seed, draw))
        return self.recipe.g_min + share * (self.recipe.g_max - self.recipe.g_min)

    def states(self, chosen: Sequence[tuple[int, int]], g: Tensor) -> States:
        """The states (trajectory, step) with the scales g [B]."""
        found = [self.cache.read(self.keys[number]) for number, _ in chosen]
        parts = {name: torch.stack([tensors[name][step] for tensors, (_, step) in zip(found, chosen, strict=True)])
                 for name in ("x", "conditional", "unconditional")}
        times = torch.tensor([self.plans[number].times[step] for number, step in chosen])
        text = stack_texts([self.text_of(self.plans[number].prompt) for number, _ in chosen])
        negative = (stack_texts([self.text_of(self.plans[number].negative) for number, _ in chosen])
                    if self.negatives else None)
        return States(parts["x"], times, g, text, parts["conditional"], parts["unconditional"], negative)
