"""How to train a motion module: the recipe (harivo.md 3)."""
from __future__ import annotations

from dataclasses import dataclass

from ..training.settings import TrainSettings, settings_of

FRESH_SCHEDULE = "sqrt_linear"      # linear betas, with which AnimateDiff was trained; the name is the host's
NEGATIVES = ("batch", "queue")      # what DC compares a clip with: the batch's other clips, or clips of earlier steps
HEADS = ("mlp", "none")             # DC's projection head: one that is trained with it, or none, so h itself


@dataclass(frozen=True)
class MotionRecipe:
    """Everything that decides what comes out of a training, but for models and data."""

    steps: int = 1000
    learning_rate: float = 1e-4
    batch_size: int = 1                 # clips at once
    accumulate: int = 1                 # batches a step
    frames: int = 0                     # at once, of a clip; 0 = all frames of the dataset's clips
    scattered: bool = False             # frames drawn from all over the clip, in order, instead of a run
    temporal_convolution: bool = False
    mapping_width: int = 0              # inner channels of HARIVO's mapping network, 0 = none
    frame_tokens: int = 0               # HARIVO's tokens a frame, 0 = none
    trs: float = 0.0                    # weight of the TRS loss, 0 = off; HARIVO: 0.05
    trs_from: int = 500                 # steps before TRS begins: at first, equal frames would be its easiest answer
    dc: float = 0.0                     # weight of the DC loss, 0 = off; HARIVO: 0.01
    dc_negatives: str = "batch"         # one of NEGATIVES; HARIVO: queue
    dc_head: str = "mlp"                # one of HEADS; HARIVO has a head
    lora_rank: int = 0                  # train only a change of this rank on the temporal attentions, 0 = all weights
    beta_schedule: str = "auto"         # of the warm start, else FRESH_SCHEDULE; "keep" = the model's own
    warm_start_rate: float = 0.1        # factor on the learning rate of weights taken from a warm start
    caption_dropout: float = 0.1
    snr_limit: float = 0.0              # limit of the loss's SNR weights; 0 = AnimateDiff's plain loss
    noise_shift: float = 1.0            # of the drawn noise levels towards high noise; 1 = all alike, as AnimateDiff
    pure_noise: float = 0.0             # share of clips given as noise alone, where only the caption tells the motion
    optimizer: str = "adamw"            # or "muon", which learns more in few steps
    ema: float = 0.999
    precision: str = "fp32"
    gradient_checkpointing: bool = True
    schedule: str = "constant"
    warmup: int = 0
    weight_decay: float = 1e-2
    grad_clip: float = 1.0              # largest gradient norm; 0 = no clipping
    checkpoint_every: int = 200
    seed: int = 0
    sample_every: int = 0               # steps; 0 = only at the end
    sample_prompt: str = ""             # "" = the first clip's caption

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"A batch needs at least 1 clip; {self.batch_size} was given.")
        for name in ("caption_dropout", "pure_noise"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"{name} is a fraction from 0 to 1; {value} was given.")
        if self.mapping_width % 8 or self.mapping_width < 0:
            raise ValueError(f"mapping_width is 0 (no mapping network) or a multiple of 8, e.g. 128; "
                             f"{self.mapping_width} was given.")
        for name in ("frame_tokens", "trs", "dc", "lora_rank", "trs_from"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"{name} is 0 (off) or positive; {value} was given.")
        for name, allowed in {"dc_negatives": NEGATIVES, "dc_head": HEADS}.items():
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name} is {' or '.join(allowed)}; {value!r} was given.")
        if self.dc and self.dc_negatives == "batch" and self.batch_size < 2:
            raise ValueError("The DC loss compares the clips of a batch, and batch_size is 1. Set batch_size to 2 or "
                             "more (accumulate does not replace it: its batches are computed one after the other), set "
                             "dc_negatives to queue, or set dc to 0.")
        if self.snr_limit < 0:
            raise ValueError(f"snr_limit is 0 (plain loss) or positive, e.g. 5; {self.snr_limit} was given.")
        if not 0.1 <= self.noise_shift <= 20:
            raise ValueError(f"noise_shift is from 0.1 to 20 (1 = all levels alike); {self.noise_shift} was given.")
        self.settings()

    def settings(self) -> TrainSettings:
        """The part of the recipe that the training loop knows."""
        return settings_of(self)

    def reach(self, available: int) -> int:
        """The length of clip that is learned, of clips with so many frames: scattered frames come from all of it."""
        return available if self.scattered else self.frames or available

    def frames_of(self, available: int, most: int) -> int:
        """Frames to train on. Raises ValueError if the clips or the motion module have fewer."""
        frames = self.frames or available
        if not 2 <= frames <= available:
            raise ValueError(f"frames is {frames}, but the clips of the dataset have {available}. Give 2 to "
                             f"{available}, or 0 for all, or build the dataset with more.")
        if (reach := self.reach(available)) > most:
            way = "build the dataset with" if self.scattered else "set frames to"
            raise ValueError(f"Clips of {reach} frames were given, but the motion module to start from can "
                             f"do at most {most}. Train a new module, or {way} at most {most}.")
        return frames
