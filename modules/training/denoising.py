"""Denoising of clips: noise levels, the plain loss, and a small DDIM sampler for looking at a training.

Variance-preserving form (harivo.md 2.0): x_t = a_t x_0 + s_t eps, a_t^2 = abar_t, s_t^2 = 1 - abar_t.
A predictor is a function of (x_t [B, F, C, h, w], t [B], Text of B captions, frame_indices [F] in their clips or None
for the first F) and gives eps or v of x's shape.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..data.encoded import ClipBatch, Text, stack_texts

Predictor = Callable[[Tensor, Tensor, Text, Tensor | None], Tensor]


@dataclass(frozen=True)
class NoiseLevels:
    """The T noise levels of a model, and what it predicts."""

    abar: Tensor                        # [T] float64, falling
    prediction: Literal["eps", "v"]

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t. x0, eps [B, ...]; t [B]"""
        a, s = self._factors(t, x0)
        return a * x0 + s * eps

    def hiding(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The eps for which x_t is `noise` itself, so that nothing of x_0 can be seen in it."""
        a, s = self._factors(t, x0)
        return (noise - a * x0) / s

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the model should predict: eps, or v = a_t eps - s_t x_0 (Salimans and Ho 2022)."""
        if self.prediction == "eps":
            return eps
        a, s = self._factors(t, x0)
        return a * eps - s * x0

    def split(self, x: Tensor, predicted: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(x_0, eps) that a prediction at x_t = x stands for."""
        a, s = self._factors(t, x)
        if self.prediction == "eps":
            return (x - s * predicted) / a, predicted
        return a * x - s * predicted, s * x + a * predicted

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio abar_t / (1 - abar_t); t [B]"""
        abar = self.abar[t.cpu()]
        return abar / (1 - abar)

    def _factors(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        abar = self.abar[t.cpu()].view(-1, *[1] * (like.ndim - 1))
        return abar.sqrt().to(like), (1 - abar).sqrt().to(like)


def snr_weight(snr: Tensor, limit: float, prediction: Literal["eps", "v"]) -> Tensor:
    """Weight of a squared error so that one of x_0 counts min(SNR + 1, limit): v-prediction's with a limit.

    Min-SNR weighting (Hang et al. 2023, arXiv 2303.09556) with SNR + 1 in place of SNR, so that the highest noise
    levels, where layout and motion are decided, count too.
    """
    return (snr + 1).clamp(max=limit) / (snr if prediction == "eps" else snr + 1)


def shifted(t: Tensor, count: int, shift: float) -> Tensor:
    """Times of `count` levels moved towards high noise: u -> s u / (1 + (s - 1) u) with u in 0..1; 1 changes nothing.

    The timestep shift of Stable Diffusion 3 (Esser et al. 2024, arXiv 2403.03206, equation 23).
    """
    u = (t.double() + 0.5) / count
    return (count * shift * u / (1 + (shift - 1) * u)).long()


def denoising_loss(predict: Predictor, levels: NoiseLevels, factor: Callable[[Tensor], Tensor],
                   device: torch.device, snr_limit: float = 0.0, noise_shift: float = 1.0, pure_noise: float = 0.0,
                   weigh: Callable[[ClipBatch], Tensor] | None = None
                   ) -> Callable[[ClipBatch, torch.Generator], Tensor]:
    """The loss of AnimateDiff's training: mean squared error of the prediction, one t a clip (harivo.md 3).

    Args:
        factor: from the VAE's latents to those of the model, e.g. times 0.18215.
        snr_limit: limit of `snr_weight`; 0 weighs all noise levels alike, as AnimateDiff does.
        noise_shift: of the drawn t, see `shifted`; 1 draws all noise levels alike, as AnimateDiff does.
        pure_noise: share of clips that are given as noise without signal at the last level. Sampling starts there, but
            the schedule's last level still shows a trace of the clip, enough to tell motion from it rather than from
            the caption (Lin et al. 2024, arXiv 2305.08891, describe the gap).
        weigh: how much each place of a batch counts, of a shape that fits its latents and with mean 1; None = all
            alike.
    """
    def loss(batch: ClipBatch, generator: torch.Generator) -> Tensor:
        x0 = factor(batch.latents.to(device))
        t = torch.randint(len(levels.abar), (len(x0),), generator=generator)
        t = shifted(t, len(levels.abar), noise_shift).to(device)
        eps = torch.randn(x0.shape, generator=generator).to(device)
        if pure_noise:
            hidden = (torch.rand(len(x0), generator=generator) < pure_noise).to(device)
            t = torch.where(hidden, len(levels.abar) - 1, t)
            eps = torch.where(hidden.view(-1, *[1] * (x0.ndim - 1)), levels.hiding(x0, eps, t), eps)
        predicted = predict(levels.add_noise(x0, eps, t), t, batch.text, batch.frame_indices)
        error = (predicted.float() - levels.target(x0, eps, t)).square()
        if weigh is not None:
            error = error * weigh(batch).to(error)
        error = error.flatten(1).mean(1)
        if snr_limit:
            error = error * snr_weight(levels.snr(t), snr_limit, levels.prediction).to(error)
        return error.mean()

    return loss


def ddim(predict: Predictor, levels: NoiseLevels, noise: Tensor, text: Text, empty: Text, steps: int,
         cfg: float, start: int | None = None) -> Iterator[Tensor]:
    """Sample a clip by DDIM with classifier-free guidance; yields the estimate of x_0 after every step.

    noise [1, F, C, h, w]: x_t at t = `start`, by default the last level, which is noise of unit variance; the last
    estimate is the sample.
    """
    both = stack_texts([empty, text])
    times = torch.linspace(len(levels.abar) - 1 if start is None else start, 0, steps).round().long()
    x = noise
    for now, later in zip(times, [*times[1:], None], strict=True):
        t = now.repeat(2).to(x.device)
        without, given = predict(torch.cat([x, x]), t, both, None).float().chunk(2)
        x0, eps = levels.split(x, without + cfg * (given - without), t[:1])
        yield x0
        if later is not None:
            x = levels.add_noise(x0, eps, later[None])
