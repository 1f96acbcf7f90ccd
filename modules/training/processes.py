"""The processes that train together, as `accelerate launch` starts them; one process alone needs nothing of this.

Every process holds the weights, takes its own draws, and changes the weights by the mean gradient of all, so that they
stay alike. The first one writes checkpoints, samples and text. All see the same files.
"""
from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn


class Processes:
    """`count` processes, of which this is number `index`. Made by `launched`, or without arguments for one alone."""

    def __init__(self, accelerator=None):
        self.accelerator = accelerator
        self.count = accelerator.num_processes if accelerator else 1
        self.index = accelerator.process_index if accelerator else 0

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def mean_gradients(self, weights: Iterable[nn.Parameter]) -> None:
        """Make each weight's gradient the mean of all processes'; one that a process has not is zero there."""
        if self.count == 1:
            return
        weights = list(weights)
        there = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.float32)
        there = self.accelerator.reduce(there.to(weights[0].device), "sum") > 0
        for weight, anywhere in zip(weights, there.tolist(), strict=True):
            if anywhere:
                own = torch.zeros_like(weight) if weight.grad is None else weight.grad
                weight.grad = self.accelerator.reduce(own, "mean")

    def mean_report(self, loss: float, reports: Mapping[str, Sequence[float]]) -> tuple[float, dict[str, list[float]]]:
        """The mean loss of all processes, and the reported numbers of all."""
        if self.count == 1:
            return loss, dict(reports)
        from accelerate.utils import gather_object
        gathered, merged = gather_object([(loss, dict(reports))]), {}
        for _, others in gathered:
            for name, values in others.items():
                merged.setdefault(name, []).extend(values)
        return sum(each for each, _ in gathered) / self.count, merged

    @torch.no_grad()
    def share(self, tensors: Mapping[str, Tensor]) -> None:
        """Make tensors those of the first process, in place."""
        if self.count > 1:
            from accelerate.utils import broadcast
            for tensor in tensors.values():
                tensor.copy_(broadcast(tensor.detach().clone(), from_process=0))

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            self.accelerator.wait_for_everyone()


def launched(device: torch.device) -> Processes:
    """The processes of this launch, to train on devices like `device`. Raises ValueError without accelerate.

    Their group is left at the end of the process: without that the threads of its connections can abort it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise ValueError("Several processes were launched, for which the package accelerate is needed: "
                         "pip install accelerate (or start one process).") from error
    accelerator = Accelerator(cpu=device.type == "cpu")
    atexit.register(accelerator.end_training)
    return Processes(accelerator)


def launch_settings() -> dict[str, str | int]:
    """What `accelerate launch` was asked for, by the names of a recipe: precision, accumulate.

    Raises ValueError for a precision that trainings do not have.
    """
    chosen: dict[str, str | int] = {}
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", "bf16"):
        raise ValueError(f"accelerate was launched with mixed_precision {precision}; trainings run in fp32 (no) or "
                         "bf16. Launch with --mixed_precision bf16 or no.")
    if precision == "bf16":
        chosen["precision"] = "bf16"
    if (steps := int(os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1"))) > 1:
        chosen["accumulate"] = steps
    return chosen
