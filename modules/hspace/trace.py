"""What is recorded of a run: the bottleneck features of every step, with the identity of model and grid."""
from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files.checks import check_file, check_format
from ..files.provenance import merged_provenance
from .slerp import spherical_mean

FORMAT, VERSION = "frozen-diffusion h-trace", "1"
H = "h"                                             # the middle block's output
INVERSION = "inversion"                             # where a trace comes from: see HTrace.provenance
PRECISIONS = {"fp16": torch.float16, "fp32": torch.float32}
FAR_STEP = 0.05                                     # of all timesteps: a nearest recorded step farther away is told
TIMESTEPS = 1000


def skip(number: int) -> str:
    """The name of the skip that comes into decoder block `number`, from 0 at the deepest."""
    return f"skip{number}"


def feature_names(deep_skips: int) -> tuple[str, ...]:
    """h and the skips of so many decoder blocks."""
    return (H, *map(skip, range(deep_skips)))


class TraceError(ValueError):
    """A trace does not fit, or a file is no trace; the message says what to do."""


@dataclass(frozen=True)
class HTrace:
    """Features over the steps of one run. Never changed after it is made: the host keeps it between runs.

    Attributes:
        features: by name (see `feature_names`): [S, B, C, H, W], float16 or float32 on the CPU. "h" is always there.
        times: [S] timesteps of the steps, any order.
        about: how it was made; "model" is the identity of the U-Net, "prompt" and "latent" are fingerprints, "from" is
            "inversion" or "sampling".
        mask: where it acts when injected, [B or 1, 1, H, W] in 0..1 at any size; None = everywhere.
        threshold: above 0: a cell of h is wholly in the mask if its mean there is above, else out of it.
        strength: factor on gamma.
        others: traces that act beside it, after it.
    """

    features: Mapping[str, Tensor]
    times: tuple[float, ...]
    provenance: Mapping[str, str]
    mask: Tensor | None = None
    threshold: float = 0.0
    strength: float = 1.0
    others: tuple[HTrace, ...] = field(default=())

    @property
    def batch(self) -> int:
        """Pictures or frames in it."""
        return self.features[H].shape[1]

    @property
    def parts(self) -> tuple[HTrace, ...]:
        """This trace by itself and those beside it, in the order in which they act."""
        return (replace(self, others=()) if self.others else self, *self.others)

    def nearest(self, time: float) -> int:
        """The recorded step nearest to a timestep; of two as near the noisier one, as in the released code."""
        return min(range(len(self.times)), key=lambda step: (abs(self.times[step] - time), -self.times[step]))

    def gap(self, times: Sequence[float]) -> float:
        """The largest distance from one of `times` to the nearest recorded step, as a fraction of all timesteps."""
        if not len(times):
            return 0.0
        recorded, asked = (torch.tensor(each, dtype=torch.float64) for each in (self.times, list(times)))
        return (asked[:, None] - recorded).abs().amin(1).max().item() / TIMESTEPS

    def without_last_level(self) -> HTrace:
        """As the released script records an inversion: without the features at its last, noisiest level.

        Traces of other origin, and such as have one step only, are left as they are.
        """
        others = tuple(other.without_last_level() for other in self.others)
        if self.provenance.get("from") != INVERSION or len(self.times) < 2:
            return replace(self, others=others)
        top = max(range(len(self.times)), key=lambda step: self.times[step])
        kept = slice(None, -1) if top == len(self.times) - 1 else [s for s in range(len(self.times)) if s != top]
        times = tuple(time for step, time in enumerate(self.times) if step != top)
        return replace(self, features={feature_name: x[kept] for feature_name, x in self.features.items()}, times=times,
                       others=others)

    def contents(self) -> tuple[HTrace, ...]:
        """One trace for each picture in it, traces beside it included. Raises TraceError if those hold other numbers of
        pictures."""
        wrong = sorted({part.batch for part in self.parts} - {1, self.batch})
        if wrong:
            raise TraceError(f"The trace holds {self.batch} pictures and one beside it {wrong[0]}. Merge traces of as "
                             "many pictures, or of one.")
        return tuple(replace(self.picture(number), others=tuple(other.picture(number) for other in self.others))
                     for number in range(self.batch))

    def picture(self, number: int) -> HTrace:
        """Picture `number` of it alone, without the traces beside it; the only one if it holds one."""
        rows = slice(0, 1) if self.batch == 1 else slice(number, number + 1)
        mask = self.mask if self.mask is None or len(self.mask) == 1 else self.mask[number % len(self.mask)][None]
        return replace(self, features={name: x[:, rows] for name, x in self.features.items()}, mask=mask, others=())

    def describe(self) -> str:
        """In a few words."""
        channels, height, width = self.features[H].shape[2:]
        skips = len(self.features) - 1
        what = f"h and {skips} deep skips" if skips else "h"
        text = f"{what} of {len(self.times)} steps, {self.batch} x {channels} x {height} x {width}"
        more = ", masked" if self.mask is not None else ""
        return text + more + "".join(f"; with {other.describe()}" for other in self.others)


def check_channels(trace: HTrace, feature_name: str, channels: int) -> None:
    """Raises TraceError naming both if the features are not of that many channels, or the feature was not recorded."""
    if feature_name not in trace.features:
        raise TraceError(f"The trace holds {', '.join(trace.features)}, not {feature_name}. Record it with deep_skips "
                         "above 0, or set gamma_skips to 0.")
    recorded = trace.features[feature_name].shape[2]
    if recorded != channels:
        raise TraceError(f"The trace was recorded on a model with {recorded} channels at {feature_name}, this one has "
                         f"{channels}. Record it with the model that is sampled.")


def merge_mean(traces: Sequence[HTrace], weights: Sequence[float]) -> HTrace:
    """The spherical mean of traces step by step, on the first one's grid. Raises TraceError if they do not fit."""
    first = traces[0]
    check_plain(traces, "have a mean")
    shapes = {tuple(trace.features[H].shape[1:]) for trace in traces}
    if len(shapes) > 1:
        raise TraceError(f"Traces of different shapes have no mean: {sorted(shapes)}. Record them with the same model, "
                         "size and batch.")
    means = {}
    for feature_name, aligned in on_first_grid(traces).items():
        steps = [spherical_mean(torch.stack(step).float(), torch.tensor(weights))
                 for step in zip(*aligned, strict=True)]
        means[feature_name] = torch.stack(steps).to(max((x.dtype for x in aligned), key=lambda dtype: dtype.itemsize))
    return replace(first, features=means, provenance=merged_provenance([trace.provenance for trace in traces]))


def merge_batch(traces: Sequence[HTrace]) -> HTrace:
    """Their pictures one after another as one batch, on the first one's grid. Raises TraceError if they do not fit."""
    first = traces[0]
    check_plain(traces, "make a batch")
    sizes = {tuple(trace.features[H].shape[2:]) for trace in traces}
    if len(sizes) > 1:
        raise TraceError(f"Traces of different sizes make no batch: {sorted(sizes)}. Record them with the same model "
                         "and size.")
    features = {feature_name: torch.cat(aligned, dim=1) for feature_name, aligned in on_first_grid(traces).items()}
    return replace(first, features=features, provenance=merged_provenance([trace.provenance for trace in traces]))


def check_plain(traces: Sequence[HTrace], what: str) -> None:
    """Raises TraceError if one carries a mask or further traces."""
    if any(trace.mask is not None or trace.others for trace in traces):
        raise TraceError(f"Only plain traces {what}; one of these carries a mask or further traces. Merge first, then "
                         "mask.")


def on_first_grid(traces: Sequence[HTrace]) -> dict[str, list[Tensor]]:
    """By place that all have: the features of each trace [S, B, C, H, W] at the steps nearest to the first one's."""
    first = traces[0]
    steps = [[trace.nearest(time) for time in first.times] for trace in traces]
    return {feature_name: [trace.features[feature_name][of] for trace, of in zip(traces, steps, strict=True)]
            for feature_name in first.features if all(feature_name in trace.features for trace in traces)}


def beside(first: HTrace, second: HTrace) -> HTrace:
    """Both traces at once; where both act, the second acts on what the first left."""
    return replace(first, others=(*first.others, *second.parts))


def masked(trace: HTrace, mask: Tensor, threshold: float = 0.0, strength: float = 1.0) -> HTrace:
    """The trace in a region. mask [B or 1, H, W] in 0..1; for threshold see HTrace. Raises TraceError."""
    if trace.others:
        raise TraceError("This is several traces in one. Mask each before Merge h-Traces.")
    return replace(trace, mask=mask[:, None].float().clamp(0, 1).clone(), threshold=threshold, strength=strength)


def trace_tensors(trace: HTrace) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) as a file holds them."""
    tensors, parts = {}, []
    for number, part in enumerate(trace.parts):
        tensors |= {f"{number}.{name}": value.contiguous().clone() for name, value in part.features.items()}
        if part.mask is not None:
            tensors[f"{number}.mask"] = part.mask.contiguous()
        parts.append({"times": part.times, "about": dict(part.provenance), "threshold": part.threshold,
                      "strength": part.strength})
    return tensors, {"format": FORMAT, "format_version": VERSION, "parts": json.dumps(parts)}


def read_trace(path: Path) -> HTrace:
    """A trace from a safetensors file. Raises TraceError that says what the file is instead."""
    try:
        check_file(path, TraceError)
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise TraceError(f"{path.name} is no h-trace: {error}") from error
    check_format(path, metadata, FORMAT, VERSION, "h-trace", "Save h-Trace", TraceError)
    parts = []
    for number, told in enumerate(_described_parts(path, metadata)):
        own = {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{number}.")}
        mask = own.pop("mask", None)
        if not all(value.isfinite().all() for value in own.values()):
            raise TraceError(f"{path.name} holds numbers that are not finite. Record the trace again.")
        hard = told.get("threshold", 0.0)           # files from before masks had one
        parts.append(HTrace(own, tuple(told["times"]), told["about"], mask, hard, told["strength"]))
    if not parts or any(H not in part.features or len(part.times) != len(part.features[H]) for part in parts):
        raise TraceError(f"{path.name} is incomplete: features and steps do not agree. Record the trace again.")
    return replace(parts[0], others=tuple(parts[1:]))


def _described_parts(path: Path, metadata: Mapping[str, str]) -> list[dict]:
    """What a file's metadata say about each part of a trace. Raises TraceError naming the file and the field."""
    try:
        parts = json.loads(metadata["parts"])
        for part in parts:
            numbers = [*part["times"], part.get("threshold", 0.0), part["strength"]]
            if not all(isinstance(number, int | float) for number in numbers) or not isinstance(part["about"], dict):
                raise TypeError("a value is of another kind")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise TraceError(f"{path.name}: the field parts of its metadata cannot be read ({error}). The file is damaged, "
                         "or was changed by hand: record the trace again.") from error
    return parts


def psnr(given: Tensor, again: Tensor) -> float:
    """Peak signal-to-noise ratio in dB; the peak is the range of `given`. Infinite if equal."""
    error = (given.double() - again.double()).square().mean().item()
    peak = (given.max() - given.min()).item()
    if error == 0:
        return math.inf
    return 10 * math.log10(max(peak, 1e-12) ** 2 / error)
