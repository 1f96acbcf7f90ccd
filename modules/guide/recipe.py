"""How to train a guide model (guide_model.md 3, and 10 where that was measured)."""
from __future__ import annotations

from dataclasses import dataclass

from ..training.settings import TrainSettings, settings_of

KINDS = ("tiny", "full")
EVEN, BY_SCALE = "even", "by scale"     # by scale: 1 / ((g - 1)^2 + 1), or high scales would have nearly all of it
WEIGHTINGS = (EVEN, BY_SCALE)


@dataclass(frozen=True)
class GuideRecipe:
    """Everything that decides what comes out of a training, but for models and prompts."""

    steps: int = 3000
    learning_rate: float = 4e-3         # tiny; full: 1e-3
    batch_size: int = 8                 # states at once
    accumulate: int = 1
    kind: str = "tiny"
    g_min: float = 1.0
    g_max: float = 9.0
    trajectories: int = 640             # sampled with guidance, each from a prompt and noise of its own
    trajectory_steps: int = 16          # states of each
    empty_share: float = 0.1            # of trajectories without text, from which the guide learns to be silent
    picture_share: float = 0.25         # of trajectories that are noised pictures, where pictures are given
    own_states: bool = False            # states are those that the guide to start from goes through by itself
    fed: bool = False                   # a tiny guide reads the base's features too
    weighting: str = EVEN               # of stage 1's states
    student_steps: int = 0              # stage 2: steps of the student; 0 = stage 1
    optimizer: str = "adamw"
    ema: float = 0.99
    precision: str = "fp32"
    schedule: str = "cosine"
    warmup: int = 20
    weight_decay: float = 1e-2
    grad_clip: float = 1.0
    checkpoint_every: int = 200
    seed: int = 0
    sample_every: int = 0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind is {' or '.join(KINDS)}; {self.kind!r} was given.")
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"weighting is one of {', '.join(WEIGHTINGS)}; {self.weighting!r} was given.")
        if not 1 <= self.g_min < self.g_max <= 30:
            raise ValueError(f"g_min and g_max bound the guidance scales, 1 <= g_min < g_max <= 30; {self.g_min} and "
                             f"{self.g_max} were given.")
        for name in ("batch_size", "trajectories"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; {getattr(self, name)} was given.")
        if self.trajectory_steps < 2:
            raise ValueError(f"trajectory_steps must be at least 2; {self.trajectory_steps} was given.")
        for name in ("empty_share", "picture_share"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"{name} is a fraction from 0 to 1; {value} was given.")
        if self.student_steps and self.student_steps < 2:
            raise ValueError(f"student_steps is 0 (stage 1) or at least 2; {self.student_steps} was given.")
        self.settings()

    def settings(self) -> TrainSettings:
        """The part of the recipe that the training loop knows."""
        return settings_of(self, betas=(0.9, 0.99))
