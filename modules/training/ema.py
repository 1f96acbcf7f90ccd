"""Exponential moving average of the weights being trained."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage:
    """EMA; with the warm-up of diffusers' EMAModel decay_n = min(decay, (1 + n) / (10 + n)) at update n.

    Without it, as GANs have it, the average remembers the initial weights longer.

    Ours rather than that class, or torch's AveragedModel, because the average is stored under the names of the weights
    in a safetensors checkpoint (EMAModel keeps nameless lists), only of those that are trained (AveragedModel copies
    the frozen model too), and a training node must run where diffusers is not installed. The update is torch's.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999, warmup: bool = True):
        if not 0 <= decay < 1:
            raise ValueError(f"The EMA decay must lie in [0, 1), e.g. 0.999; {decay} was given.")
        self.decay, self.warmup = decay, warmup
        self.updates = 0
        with torch.inference_mode(False):
            self.weights = {name: weight.detach().clone() for name, weight in trainable(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """average <- average + (1 - decay_n) (weights - average)."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        self.updates += 1
        update = get_ema_multi_avg_fn(decay)
        update(list(self.weights.values()), list(trainable(model).values()), None)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within the block `model` holds the averaged weights; afterwards exactly the trained ones again."""
        weights = trainable(model)
        kept = {name: parameter.detach().clone() for name, parameter in weights.items()}
        copy_weights(self.weights, weights)
        try:
            yield
        finally:
            copy_weights(kept, weights)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are being trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def copy_weights(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    """Copy every tensor of `target` from the one of the same name in `source`, in place."""
    for name, tensor in target.items():
        tensor.copy_(source[name])
