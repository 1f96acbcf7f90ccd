"""Training a FurryGAN: pictures in, generator and discriminator out. See `training/subject.py` for the form."""
from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..data.images import ImageSource
from ..seeding import batch_indices, seed_for, stream
from ..training.driver import Driver
from ..training.ema import MovingAverage, copy_weights
from ..training.loop import StepRecord
from ..training.updates import Update
from . import losses
from .coverage import LOOKED_AT, suggested_phi
from .discriminator import Discriminator
from .files import FurryFile
from .networks import Generator, Layers, NoiseMaps
from .recipe import CODE, EVERY_OTHER, LAZY_PATH, LAZY_R1, FurryRecipe

GREY = 0.5              # behind what is transparent in a training picture
SHOWN = 8               # codes of a sample, a column each
GUARDED, JUDGED = (500, 1000, 2000), 16     # steps after which the orientation of so many masks is looked at
ATTEMPTS = 3            # with other seeds, where masks come out inverted
MEAN_OF = 4096          # mapped latents of the means
LEAST = 64              # pictures


class InvertedMaskError(RuntimeError):
    """The masks came to show the surroundings instead of the subject."""


@dataclass(frozen=True)
class Pictures:
    """A batch: the step it belongs to, and real pictures [B, 3, S, S] in -1..1."""

    step: int
    real: Tensor


class FurrySubject:
    """A FurryGAN as the subject of a training.

    Args: pictures of the recipe's size; device of the networks; how many processes train together; a FurryGAN to
    start from.
    Raises ValueError for too few pictures, such of another size, all the same one, or a start that does not fit.

    Attributes:
        notes: what was decided for the user, in sentences.
        guarded: steps after which masks that show the surroundings end the run.
    """

    assumed: Mapping[str, str] = {"attempt": "0", "start": "", "losses": CODE}
    current_key = str
    memory = None

    def __init__(self, source: ImageSource, recipe: FurryRecipe, device: torch.device | str = "cpu",
                 processes: int = 1, start: FurryFile | None = None):
        if len(source) < LEAST:
            raise ValueError(f"There are {len(source)} pictures; a GAN needs {LEAST} at least, thousands to be good.")
        if (source.settings.width, source.settings.height) != (recipe.size, recipe.size):
            raise ValueError(f"The pictures are {source.settings.size}; this training wants "
                             f"{recipe.size}x{recipe.size}.")
        self.source, self.device, self.start, self.notes = source, torch.device(device), start, []
        self._look_at_pictures(recipe)
        self.sample_every, self.shape, self.guarded = recipe.sample_every, recipe.shape(), GUARDED
        if start is not None:
            self._check_start(start)
        self.draws = recipe.accumulate * processes          # of a step

    def _look_at_pictures(self, recipe: FurryRecipe) -> None:
        count = len(self.source)
        chosen = [self.source.pixels(number * count // LOOKED_AT) for number in range(min(count, LOOKED_AT))]
        if all(picture.shape == chosen[0].shape and bool((picture == chosen[0]).all()) for picture in chosen):
            raise ValueError(f"All {len(chosen)} pictures that were looked at are the same one; a GAN learns from "
                             "thousands of different ones.")
        if recipe.phi == 0:
            phi, told = suggested_phi(picture.float() / 255 for picture in chosen)
            recipe = replace(recipe, phi=phi)
            self.notes.append(told)
        if any(len(picture) == 4 and int(picture[3].min()) < 255 for picture in chosen):
            self.notes.append("Transparent pictures stand before grey.")
        self.weights, self.as_code = recipe.mask_weights(), recipe.losses == CODE
        self.first_seed, self.recipe = recipe.seed, recipe
        self.attempt_with(0)

    def _check_start(self, start: FurryFile) -> None:
        if start.discriminator is None:
            raise ValueError("The FurryGAN to start from has no discriminator: files that hold the averaged generator "
                             "only are for generating. Train from a file that was saved with it.")
        if start.shape != self.shape:
            raise ValueError(f"The FurryGAN to start from is {start.shape}; this training is {self.shape}. Give the "
                             "training those sizes.")

    def attempt_with(self, attempt: int) -> None:
        """Take the seed of an attempt, 0 being the first."""
        self.attempt, self.recipe = attempt, replace(self.recipe, seed=self.first_seed + attempt)
        self.settings = self.recipe.settings()

    def encode(self, share: tuple[int, int] = (0, 1)) -> Iterator[tuple[int, int]]:
        """Nothing is kept on disk."""
        yield len(self.source), len(self.source)

    def prepare(self) -> None:
        """Build both networks from the seed."""
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for("furrygan", self.recipe.seed))
            networks = {"generator": Generator(self.shape), "discriminator": Discriminator(self.shape)}
            if self.start is not None:
                for name, network in networks.items():
                    network.load_state_dict({key: value.float() for key, value in getattr(self.start, name).items()})
            self.trained = nn.ModuleDict(networks).to(self.device)
            self.ema = MovingAverage(self.trained, self.recipe.ema, warmup=False)

    def loss(self) -> Sequence[Update]:
        """The discriminator's, its lazy penalty, the generator's."""
        judge, make = self.recipe.optimizer_of(LAZY_R1), self.recipe.optimizer_of(LAZY_PATH)
        return (Update(self.judge, "discriminator", "discriminator.", optimizer=judge),
                Update(self.penalty, "penalty", "discriminator.", LAZY_R1, judge),
                Update(self.make, "generator", "generator.", optimizer=make))

    def batch(self, draw: int) -> Pictures:
        """Real pictures, mirrored by chance."""
        recipe = self.recipe
        chosen = batch_indices(len(self.source), recipe.batch_size, recipe.seed, draw)
        real = torch.stack([self._picture(index) for index in chosen])
        if recipe.flip:
            flipped = torch.rand(len(real), generator=stream("flip", recipe.seed, draw)) < 0.5
            real[flipped] = real[flipped].flip(-1)
        return Pictures(draw // self.draws, real.to(self.device))

    def _picture(self, index: int) -> Tensor:
        """[3, S, S] in -1..1, over grey where it is transparent."""
        pixels = self.source.pixels(index).float() / 255
        if len(pixels) == 4:
            pixels = pixels[:3] * pixels[3:] + GREY * (1 - pixels[3:])
        return 2 * pixels - 1

    def layers(self, generator: torch.Generator, step: int, count: int) -> Layers:
        """Fresh codes, fresh noise."""
        network = self.trained["generator"]
        z = torch.randn(count, self.shape.foreground, generator=generator).to(self.device)
        noise = NoiseMaps.random(self.shape, count, generator, self.device)
        gamma = losses.ramped(step, self.recipe.ramp, 0.0, 1.0) if self.recipe.fine else 0.0
        return network(*network.split(z), noise, gamma)

    def fakes(self, layers: Layers) -> Tensor:
        return losses.dual_fakes(layers) if self.recipe.dual_fakes else layers.composite

    def judge(self, batch: Pictures, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The discriminator's loss (equations 4 and 11)."""
        discriminator, half = self.trained["discriminator"], len(batch.real) // 2
        with torch.no_grad():
            layers = self.layers(generator, batch.step, len(batch.real))
            fakes = self.fakes(layers)
        features = discriminator.features(fakes)
        found = discriminator.judge(features[-1])
        real = discriminator.judge(discriminator.features(batch.real)[-1])
        total = losses.discriminator_loss(real, found)
        if self.recipe.prediction:
            of_composite = discriminator.mask_of([part[:half] for part in features])
            of_foreground = (discriminator.mask_of(discriminator.features(layers.foreground[:half]))
                             if self.as_code else None)
            total = total + losses.prediction_loss(layers.mask[:half], of_composite, of_foreground)
        return total, {"real": float(real.detach().mean()), "fake": float(found.detach().mean())}

    def penalty(self, batch: Pictures, generator: torch.Generator) -> Tensor:
        """R1, for all the steps that it is left out."""
        real = batch.real.requires_grad_()
        discriminator = self.trained["discriminator"]
        logits = discriminator.judge(discriminator.features(real)[-1])
        return self.recipe.r1 / 2 * LAZY_R1 * losses.gradient_penalty(logits, real)

    def make(self, batch: Pictures, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The generator's loss (equation 12)."""
        recipe, step, discriminator = self.recipe, batch.step, self.trained["discriminator"]
        layers, half = self.layers(generator, step, len(batch.real)), len(batch.real) // 2
        features = discriminator.features(self.fakes(layers))
        total = losses.generator_loss(discriminator.judge(features[-1]))
        binary = losses.ramped(step, recipe.ramp, *losses.BINARY)
        weights = self.weights if self.as_code else replace(self.weights, area=binary * recipe.area)
        total = total + losses.coarse_loss(layers.coarse, weights, binary)
        total = total + losses.fine_loss(layers.fine, self.weights)
        if step % EVERY_OTHER == 0 or not self.as_code:
            if recipe.prediction:
                with torch.no_grad():
                    of_foreground = discriminator.mask_of(discriminator.features(layers.foreground[:half]))
                of_composite = discriminator.mask_of([part[:half] for part in features])
                total = total + losses.consistency_loss(of_foreground, of_composite)
            if recipe.participation:
                total = total + losses.participation_loss(layers, self.as_code)
        if step in self.guarded:
            with torch.no_grad():       # the same codes in every process, so that all stop or none
                check_orientation(self.layers(stream("furry guard", step), step, JUDGED).mask, step)
        unsure = torch.minimum(layers.mask, 1 - layers.mask).mean()
        return total, {"mask": float(layers.mask.detach().mean()), "unsure": float(unsure.detach())}

    def rate(self, name: str) -> float:
        return 1.0

    def decay(self, name: str) -> float:
        return 1.0

    def provenance(self, then: Mapping[str, str]) -> dict[str, str]:
        """The pictures and everything of the recipe that shapes the networks and losses; takes up `then`'s attempt."""
        self.attempt_with(int(then.get("attempt", self.attempt)))
        recipe = self.recipe
        told = {name: str(getattr(recipe, name)) for name in (
            "size", "style", "cap", "budget", "batch_size", "r1", "phi", "ramp", "flip", "dual_fakes", "prediction",
            "participation", "area", "fine", "losses")}
        start = "" if self.start is None else digest_of(self.start.generator)
        return told | {"pictures": str(len(self.source)), "first": self.source.key(0), "attempt": str(self.attempt),
                       "start": start}

    def averaged(self) -> Generator:
        """The generator with the averaged weights."""
        with torch.inference_mode(False), torch.no_grad():
            network = Generator(self.shape).to(self.device)
            copy_weights({name.removeprefix("generator."): weight for name, weight in self.ema.weights.items()},
                         dict(network.named_parameters()))
        return network.eval().requires_grad_(False)

    @torch.no_grad()
    def sample(self) -> Tensor:
        """Composites, foregrounds, backgrounds and masks of the same codes, row by row: [4 N, S, S, 3] in 0..1."""
        network, generator = self.averaged(), stream("furry sample", self.recipe.seed)
        z = torch.randn(SHOWN, self.shape.foreground, generator=generator).to(self.device)
        layers = network(*network.split(z), NoiseMaps.random(self.shape, SHOWN, generator, self.device))
        rows = [(part + 1) / 2 for part in (layers.composite, layers.foreground, layers.background)]
        rows.append(layers.mask.expand(-1, 3, -1, -1))
        return torch.cat(rows).movedim(1, -1).clamp(0, 1).cpu()

    def result(self, name: str, steps: int) -> FurryFile:
        """The averaged generator, the discriminator, the means of mapped latents."""
        network = self.averaged()
        judge = {key.removeprefix("discriminator."): weight.detach().cpu()
                 for key, weight in self.ema.weights.items() if key.startswith("discriminator.")}
        return FurryFile(self.shape, {key: value.cpu() for key, value in network.state_dict().items()}, judge,
                         latent_means(network), {"name": name, "steps": str(steps), **self.provenance({})})


class GuardedTraining(Driver):
    """A training that begins anew with another seed, twice at most, if its masks come out inverted."""

    def records(self) -> Iterator[StepRecord]:
        """See `Training`. Raises InvertedMaskError when the last attempt failed too."""
        subject = self.subject
        while True:
            try:
                yield from super().records()
                return
            except InvertedMaskError as error:
                if subject.attempt + 1 == ATTEMPTS:
                    raise
                subject.notes.append(f"{error} It began anew with seed {subject.recipe.seed + 1}.")
                if self.checkpoint is not None and self.checkpoint.exists() and self.processes.is_first:
                    self.checkpoint.replace(self.checkpoint.with_suffix(".inverted.safetensors"))
                self.processes.wait()
                subject.attempt_with(subject.attempt + 1)


def digest_of(state: Mapping[str, Tensor]) -> str:
    """A name of weights: other weights, another name."""
    digest = hashlib.blake2b(digest_size=8)
    for key in sorted(state):
        digest.update(state[key].float().numpy().tobytes())
    return digest.hexdigest()


def latent_means(network: Generator) -> tuple[Tensor, Tensor]:
    """Means [D_fg], [D_bg] of mapped latents: what truncation draws to. Of one fixed seed, so the same everywhere."""
    z = torch.randn(MEAN_OF, network.shape.foreground, generator=stream("furry means"))
    with torch.no_grad():
        device = next(network.parameters()).device
        return tuple(part.mean(0).cpu() for part in network.split(z.to(device)))


def check_orientation(mask: Tensor, step: int) -> None:
    """Raises InvertedMaskError where masks [B, 1, S, S] are more at the frame than in the middle (section 8.1)."""
    size = mask.shape[-1]
    quarter, frame = size // 4, torch.ones(size, size, dtype=torch.bool)
    frame[2:-2, 2:-2] = False
    middle = mask[..., quarter:size - quarter, quarter:size - quarter].mean()
    if float(mask[..., frame].mean()) > float(middle):
        raise InvertedMaskError(f"After {step} steps the masks show the surroundings, not the subject. Start again "
                                "with another seed; crop the pictures so that the subject fills more of them; choose "
                                "phi between the share of the background and that of the subject.")
