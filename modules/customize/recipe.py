"""How to learn a look away and a motion (customize_a_video.md 3, and 11 where that was measured)."""
from __future__ import annotations

from dataclasses import dataclass

from ..training.settings import TrainSettings, settings_of

S_LORA, TEXT_INVERSION, BOTH, JOINT = "S-LoRA", "textual inversion", "both", "joint"
KINDS = (S_LORA, TEXT_INVERSION, BOTH, JOINT)       # both: each against the clean base; joint: together
CROP_SIDES = (0.33, 0.67)                           # of the frame's sides; the paper's best range


@dataclass(frozen=True)
class AbsorberRecipe:
    """Everything that decides what comes out of an absorber's training, but for models and clips."""

    kind: str = S_LORA
    steps: int = 200
    learning_rate: float = 3e-3         # of the S-LoRA
    embedding_rate: float = 2e-2        # of the textual inversion
    rank: int = 4
    vectors: int = 4                    # of the textual inversion
    batch_size: int = 4                 # frames at once
    crops: int = 64                     # of the frames, encoded once; 0 = whole frames
    native_scale: bool = False          # crops as they are, not resized back to the frame's size
    optimizer: str = "adamw"
    weight_decay: float = 1e-2
    grad_clip: float = 1.0
    accumulate: int = 1
    schedule: str = "constant"
    warmup: int = 0
    precision: str = "fp32"
    gradient_checkpointing: bool = True     # not for `both`, whose two passes differ in their layers
    checkpoint_every: int = 100
    seed: int = 0
    sample_every: int = 0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind is one of {', '.join(KINDS)}; {self.kind!r} was given.")
        for name in ("rank", "vectors", "batch_size"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1; {value} was given.")
        if self.crops < 0:
            raise ValueError(f"crops is 0 (whole frames) or how many; {self.crops} was given.")
        if self.embedding_rate <= 0:
            raise ValueError(f"embedding_rate must be above 0; {self.embedding_rate} was given.")
        self.settings()

    def settings(self) -> TrainSettings:
        """The part of the recipe that the training loop knows."""
        return settings_of(self)


@dataclass(frozen=True)
class MotionLoRARecipe:
    """Everything that decides what comes out of a motion LoRA's training. `FAITHFUL` has the paper's plain loss."""

    steps: int = 150
    learning_rate: float = 1e-2
    rank: int = 4
    batch_size: int = 1                 # clips at once
    frames: int = 0                     # at once, of a clip; 0 = all, as they are sampled
    scattered: bool = True              # fewer frames are drawn from all over the clip, in order
    snr_limit: float = 5.0              # limit of the loss's SNR weights; 0 = the plain loss
    noise_shift: float = 3.0            # of the drawn noise levels towards high noise
    pure_noise: float = 0.3             # share of clips given as noise alone, where only the caption tells the motion
    optimizer: str = "adamw"
    weight_decay: float = 1e-2
    grad_clip: float = 1.0
    accumulate: int = 1
    schedule: str = "cosine"
    warmup: int = 0
    precision: str = "fp32"
    gradient_checkpointing: bool = True
    checkpoint_every: int = 50
    seed: int = 0
    sample_every: int = 40              # steps between two looks at held-out prompts, which may become the result

    def __post_init__(self):
        for name in ("rank", "batch_size"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1; {value} was given.")
        if not 0 <= self.pure_noise <= 1:
            raise ValueError(f"pure_noise is a fraction from 0 to 1; {self.pure_noise} was given.")
        if self.snr_limit < 0:
            raise ValueError(f"snr_limit is 0 (plain loss) or positive, e.g. 5; {self.snr_limit} was given.")
        if not 0.1 <= self.noise_shift <= 20:
            raise ValueError(f"noise_shift is from 0.1 to 20 (1 = all levels alike); {self.noise_shift} was given.")
        if self.frames < 0 or self.frames == 1:
            raise ValueError(f"frames is 0 (all of the clip) or at least 2; {self.frames} was given.")
        self.settings()

    def settings(self) -> TrainSettings:
        """The part of the recipe that the training loop knows."""
        return settings_of(self)


FAST, FAITHFUL = "fast", "faithful"
# Of the faithful recipe: what the paper and its neighbours do.
PLAIN_LOSS = {"snr_limit": 0.0, "noise_shift": 1.0, "pure_noise": 0.0, "scattered": False, "frames": 0,
              "learning_rate": 5e-4, "steps": 300, "schedule": "constant"}
