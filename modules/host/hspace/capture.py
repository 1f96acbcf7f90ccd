"""Reading and replacing h-space in the host: the middle block's output, and the decoder's first skips.

One object does both. It is a patch of the host's decoder blocks, put before all others, so that FreeU and the like
neither change what is read nor miss what is replaced. It lives as long as the run that made it.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import comfy.model_patcher
import comfy.model_sampling
import torch
import torch.nn.functional as F
from torch import Tensor

from ...files.provenance import same_model, tells_weights
from ...hspace.slerp import angles, inject, norms
from ...hspace.trace import FAR_STEP, H, HTrace, TraceError, check_channels, skip
from ..calls import Chunk, chunks_of
from ..progress import warn
from ..weights import hooks_identity, model_identity, same_hooks

BOTH, COND, UNCOND = "both", "cond", "uncond"
APPLY_TO = (BOTH, COND, UNCOND)
MASKED, NONE = "masked", "none"
NORM_MODES = (MASKED, NONE)
MODEL, STRICT, SHAPES = "model", "strict", "shapes only"
CHECKS = (MODEL, STRICT, SHAPES)
OPPOSITE = 179.9            # degrees between features from which no way from one to the other is the shortest
REPEATED = 1e-3             # relative distance of features up to which a call is the same one again


def check_deep_skips(model, deep_skips: int) -> None:
    """Raises ValueError for more skips than the MODEL's decoder has."""
    blocks = len(model.model.diffusion_model.output_blocks)
    if deep_skips > blocks:
        raise ValueError(f"deep_skips is {deep_skips}; the decoder of this MODEL takes {blocks} skips. Set it to "
                         f"{blocks} at most; those of full size are better left out.")


@dataclass
class Capture:
    """What one prediction shows: the rows of the prompt, gathered over calls and windows.

    A row that several windows or several prompts show is their mean. Crops of regional prompts are left out, and so
    are calls that guidance functions make besides those of the guider (PAG, SAG).
    """

    batch: int
    size: tuple[int, int]                       # of the latents, to tell crops
    feature_names: tuple[str, ...] = (H,)
    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)
    seen: dict[tuple, Tensor] = field(default_factory=dict)     # rows by place, conditioning and items

    def add(self, feature_name: str, x: Tensor, options: Mapping) -> None:
        if feature_name not in self.feature_names or tuple(options["original_shape"][-2:]) != self.size:
            return
        if feature_name not in self.sums:
            self.sums[feature_name] = torch.zeros(self.batch, *x.shape[1:])
            self.counts[feature_name] = torch.zeros(self.batch)
        for chunk in chunks_of(len(x), options):
            if not chunk.extra and chunk.of_prompt("Recording h-space"):
                self.add_rows(feature_name, chunk, x[chunk.rows].float().cpu())

    def add_rows(self, feature_name: str, chunk: Chunk, rows: Tensor) -> None:
        """Add the features of a prompt's pictures. Raises TraceError if the prompt was there before with others."""
        if max(chunk.items) >= self.batch:
            raise TraceError(f"The U-Net was called with {len(rows)} rows for one prompt, the batch has {self.batch} "
                             "pictures. Another node adds rows of its own; remove it to record h-space.")
        before = self.seen.setdefault((feature_name, chunk.conditioning, chunk.items), rows)
        if before is not rows:
            if (before - rows).norm() > REPEATED * before.norm():
                raise TraceError("The U-Net was called more than once for the same prompt in one step, with different "
                                 "results: a guidance that is not known here. Take it away to record h-space.")
            return
        items = torch.tensor(chunk.items)
        self.sums[feature_name].index_add_(0, items, rows)
        self.counts[feature_name].index_add_(0, items, torch.ones(len(items)))

    def take(self) -> dict[str, Tensor]:
        """[B, C, H, W] by place. Raises TraceError if something was not seen."""
        for feature_name in self.feature_names:
            if feature_name not in self.sums or not self.counts[feature_name].all():
                raise TraceError("The middle block was not seen for every picture of the batch. A node that skips deep "
                                 "blocks (DeepCache and its like) or a prompt for a region only is in the way; take it "
                                 "away to record or inject h-space.")
        return {name: total / self.counts[name].view(-1, 1, 1, 1) for name, total in self.sums.items()}


@dataclass
class Injection:
    """What is injected, and how; the run says when by `now`.

    Attributes:
        gamma: [of h, of the deep skips] at the step at hand.
        calls: how often the middle block's output came by.
        angles, ratios: in degrees, and |h| / |skip|, of all calls that nobody has asked for yet.
    """

    trace: HTrace
    apply_to: str = BOTH
    norm_mode: str = MASKED
    check: str = MODEL
    time: float = 0.0
    gamma: float = 0.0
    gamma_skips: float = 0.0
    calls: int = 0
    angles: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    warned: set[str] = field(default_factory=set)

    def blend(self, feature_name: str, x: Tensor, options: Mapping) -> Tensor:
        """`x` with the content blended in; what is not asked for stays exactly."""
        gamma = self.gamma if feature_name == H else self.gamma_skips
        parts = [part for part in self.trace.parts if feature_name in part.features or len(part.features) == 1]
        if not gamma or not parts:              # a trace of h alone is told that gamma_skips needs more
            return x
        x = x.clone()
        for chunk in chunks_of(len(x), options):        # an extra call of a guidance is like the guider's own
            if self.apply_to == BOTH or chunk.of_prompt(f"apply_to {self.apply_to}") == (self.apply_to == COND):
                for part in parts:
                    x[chunk.rows] = self.blend_part(feature_name, x[chunk.rows], part, chunk.items, gamma)
        return x

    def blend_part(self, feature_name: str, x: Tensor, part: HTrace, items: Sequence[int], gamma: float) -> Tensor:
        content = self.content(feature_name, x, part, items)
        if feature_name == H:
            found = angles(x, content).tolist()
            self.angles += found
            if max(found) > OPPOSITE:
                self.warn("the content's features point exactly away from the picture's; there they are left out")
        mask = None if part.mask is None else self.mask(part, x, items)
        return inject(x, content, min(1.0, gamma * part.strength), mask, self.norm_mode == MASKED)

    def content(self, feature_name: str, x: Tensor, part: HTrace, items: Sequence[int]) -> Tensor:
        """The recorded features for these rows [n, C, H, W], at x's size."""
        check_channels(part, feature_name, x.shape[1])
        recorded = part.features[feature_name][part.nearest(self.time)]
        content = self.rows(recorded, items, "pictures in the trace").to(x)
        if content.shape[2:] != x.shape[2:]:
            sizes = f"{content.shape[3]}x{content.shape[2]} and {x.shape[3]}x{x.shape[2]}"
            if self.check == STRICT:
                raise TraceError(f"The trace and the sampled latents have features of different sizes: {sizes}. "
                                 "Record it at the size that is sampled, or set check to model.")
            self.warn(f"the trace's features are resized ({sizes})")
            content = F.interpolate(content.float(), x.shape[2:], mode="bilinear", align_corners=False).to(x)
        return content

    def mask(self, part: HTrace, x: Tensor, items: Sequence[int]) -> Tensor:
        """The part's mask for these rows, averaged over the cells of x and hard from its threshold on."""
        mask = F.interpolate(self.rows(part.mask, items, "masks").to(x.device).float(), x.shape[2:], mode="area")
        return (mask > part.threshold).float() if part.threshold else mask

    def rows(self, x: Tensor, items: Sequence[int], what: str) -> Tensor:
        if len(x) == 1:
            return x.expand(len(items), *x.shape[1:])
        if max(items) >= len(x):
            self.warn(f"there are {len(x)} {what} for more pictures in the batch; they are repeated")
        return x[[item % len(x) for item in items]]

    def warn(self, text: str) -> None:
        """Once a run."""
        if text not in self.warned:
            self.warned.add(text)
            warn(f"{text}.")


class HSpaceTap:
    """The patch: reads into `capture`, then replaces by `injection`, whichever is there."""

    of_run = True               # belongs to a sampler of ours: see `with_first_patch`

    def __init__(self, capture: Capture | None = None, injection: Injection | None = None):
        self.capture, self.injection = capture, injection

    def __call__(self, h: Tensor, coming: Tensor, options: Mapping) -> tuple[Tensor, Tensor]:
        number = options["block"][1]
        if self.capture is not None:
            for feature_name, x in ((H, h), (skip(0), coming)) if number == 0 else ((skip(number), coming),):
                self.capture.add(feature_name, x, options)
        if self.injection is not None:
            if number == 0:
                self.injection.calls += 1
                self.injection.ratios += (norms(h) / norms(coming).clamp(min=1e-12)).tolist()
                h = self.injection.blend(H, h, options)
            coming = self.injection.blend(skip(number), coming, options)
        return h, coming


def with_first_patch(model_options: Mapping, patch, after_run: bool = False) -> dict:
    """A copy of the host's options with a decoder patch before all others, or all but those that a sampler of ours has
    put there (`after_run`)."""
    options = comfy.model_patcher.create_model_options_clone(model_options)
    patches = options.setdefault("transformer_options", {}).setdefault("patches", {})
    others = patches.get("output_block_patch", [])
    ours = [getattr(getattr(other, "__self__", other), "of_run", False) for other in others]
    feature_name = [*ours, False].index(False) if after_run else 0
    patches["output_block_patch"] = [*others[:feature_name], patch, *others[feature_name:]]
    return options


def check_model(trace: HTrace, model, check: str, prompts: Sequence[Mapping] | None = None) -> None:
    """Raises TraceError for a trace of another MODEL, unless `check` allows it.

    prompts: options of the conditionings of the prompt, for the LoRA hooks on them; None: not known yet.
    """
    for provenance in [part.provenance for part in trace.parts if check != SHAPES and "model" in part.provenance]:
        if not tells_weights(provenance["model"]):
            warn("The trace is of an older version of the pack; whether it was recorded on this MODEL cannot be "
                 "checked.")
            continue
        hooks = provenance.get("hooks", "") if prompts is None else hooks_identity(prompts)
        same = same_model(provenance["model"], model_identity(model))
        if not same or not same_hooks(provenance.get("hooks", ""), hooks):
            raise TraceError("The trace was recorded on another model (or with other LoRAs, or LoRA hooks on its "
                             "prompt) than the one that is sampled. Record it with this MODEL, or set check to "
                             "\"shapes only\" if you mean it.")


def check_steps(trace: HTrace, times: Sequence[float], check: str) -> None:
    """Raises TraceError (strict) for a trace of another grid; warns of a far coarser grid. times: timesteps."""
    for part in trace.parts:
        gap = part.gap(times)
        if gap > FAR_STEP or (check == STRICT and gap > 1e-3):
            text = (f"The trace's steps are up to {gap:.1%} of the schedule away from the sampled ones. Use the "
                    "sigmas of Invert (DDIM), or record with more steps")
            if check == STRICT:
                raise TraceError(f"{text}, or set check to model.")
            warn(f"{text}.")
