"""How to train a FurryGAN (specification, section 3; for small pictures what section 8.1 measured)."""
from __future__ import annotations

from dataclasses import dataclass

from ..training.settings import TrainSettings, settings_of
from ..training.updates import OptimizerSettings
from .losses import MaskWeights
from .networks import Shape

CODE, PAPER = "code", "paper"       # losses: of the official code, or as the paper writes them (section 2.9)
LAZY_R1, LAZY_PATH = 16, 4          # steps between penalties: of the gradient, and of StyleGAN2's path length
EVERY_OTHER = 2                     # steps between two of consistency and participation
DECAY = 0.5 ** (32 / 10_000)        # of the average, a step


@dataclass(frozen=True)
class FurryRecipe:
    """Everything that decides what comes out of a training but the pictures. The defaults are the official ones."""

    steps: int = 300_000
    learning_rate: float = 2e-3
    batch_size: int = 16            # half of the fakes are composites
    accumulate: int = 1
    size: int = 256
    style: int = 512
    cap: int = 512                  # channels at low resolutions
    budget: int = 32768             # channels times side, at high ones
    r1: float = 1.0                 # 1 at 256 pixels; 0.1 at 32
    phi: float = 0.35               # share of a picture that is foreground at least; 0: from the pictures
    ramp: int = 5000                # steps until the fine mask counts in full and binarisation little
    flip: bool = True
    dual_fakes: bool = True         # these five are the paper's ingredients
    prediction: bool = True
    participation: bool = True
    area: bool = True
    fine: bool = True
    losses: str = CODE              # or PAPER
    ema: float = DECAY
    precision: str = "fp32"
    checkpoint_every: int = 500
    seed: int = 0
    sample_every: int = 500

    def __post_init__(self):
        for name in ("batch_size", "ramp"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; {getattr(self, name)} was given.")
        if self.batch_size % 4:
            raise ValueError(f"batch_size is {self.batch_size}; the discriminator compares groups of 4 pictures, so it "
                             "must be a multiple of 4.")
        if self.losses not in (CODE, PAPER):
            raise ValueError(f"losses must be {CODE} or {PAPER}; {self.losses!r} was given.")
        if not 0 <= self.phi < 1:
            raise ValueError(f"phi is a share from 0 to 1; {self.phi} was given. 0.35 is usual.")
        self.shape()
        self.settings()

    def shape(self) -> Shape:
        """Of both networks."""
        return Shape(self.size, self.style, self.cap, self.budget)

    def mask_weights(self) -> MaskWeights:
        """Of the losses on masks."""
        usual = MaskWeights()
        return MaskWeights(usual.area * self.area, usual.fine * self.fine, self.phi)

    def settings(self) -> TrainSettings:
        """The part of the recipe that the training loop knows."""
        return settings_of(self, weight_decay=0.0, grad_clip=0.0)

    def optimizer_of(self, lazy: int) -> OptimizerSettings:
        """Adam of a network that has a lazy penalty every so many steps: rate and memory are a little smaller."""
        share = lazy / (lazy + 1)
        return OptimizerSettings(lr=self.learning_rate * share, betas=(0.0, 0.99 ** share), weight_decay=0.0)


def recipe_for(size: int, channels: int, steps: int, **more) -> FurryRecipe:
    """A recipe whose widths, penalty and ramp follow from size, channels (512 is official) and length of the run.

    R1 goes with the number of pixels, 1 at 256; the ramp is a fifth of a short run (section 8.1).
    """
    return FurryRecipe(steps=steps, size=size, style=max(128, channels), cap=channels, budget=64 * channels,
                       r1=max(0.1, (size / 256) ** 2), ramp=max(1, min(5000, steps // 5)), **more)
