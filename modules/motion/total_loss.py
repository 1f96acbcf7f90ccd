"""HARIVO's total loss: denoising, TRS and DC, each auxiliary kept to a small share of the gradient (harivo.md 2.6).

The paper's weights are not public. Ours are calibrated once, over the first ten draws from step 200 on in which a term
acts: its gradient on what is trained then has at most a tenth of the norm of the denoising loss's. A step is as many
draws as it accumulates.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .smoothness import Head, Negatives, ProjectionHead, batch_contrast, queue_contrast, trs_loss

SHARE = 0.1                             # most of the denoising loss's gradient norm that an auxiliary may have
CALIBRATE_FROM = 200                    # steps
CALIBRATE_FOR = 10                      # draws
REPORT_EVERY = 50                       # draws between two measurements of the gradients' shares


@dataclass(frozen=True)
class Features:
    """What the frozen U-Net showed in one pass.

    Attributes:
        h: bottleneck features, averaged over the picture, [B, F, C].
        attention: (q, k) of the watched self-attentions, each [B, F, heads, N, d].
    """
    h: Tensor
    attention: Sequence[tuple[Tensor, Tensor]]


class LossMemory(nn.Module):
    """What the loss remembers from draw to draw: buffers, so that a checkpoint holds them."""

    def __init__(self, channels: int):
        super().__init__()
        self.negatives = Negatives(channels)
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))
        for term in ("trs", "dc"):
            self.register_buffer(f"{term}_norms", torch.zeros(2))        # denoising, the term's
            self.register_buffer(f"{term}_count", torch.zeros((), dtype=torch.int64))


def fresh_head(channels: int, seed: int) -> ProjectionHead:
    """A projection head with torch's initial values, drawn from `seed`; torch's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ProjectionHead(channels)


class TotalLoss:
    """L = L_denoise + lambda_TRS f_TRS L_TRS + lambda_DC f_DC L_DC, with calibrated factors f <= 1.

    Args:
        denoise: the denoising loss of a batch, see training/denoising.py.
        features: gives what the last pass of the U-Net showed.
        trained: the parameters on which gradients are compared.
        trs, dc: the lambdas, 0 = off. trs_from: steps before TRS begins.
        head: g of the DC loss; None when dc is 0.
        accumulate: draws a step.
        negatives: of the DC loss, "batch" or "queue".
    """

    def __init__(self, denoise: Callable[..., Tensor], features: Callable[[], Features],
                 trained: Iterable[nn.Parameter], memory: LossMemory, trs: float, trs_from: int, dc: float,
                 head: Head | None, accumulate: int = 1, negatives: str = "batch"):
        self.negatives = negatives
        self.denoise, self.features, self.memory, self.head = denoise, features, memory, head
        self.trained, self.trs, self.dc = list(trained), trs, dc
        self.trs_from, self.calibrate_from = accumulate * trs_from, accumulate * CALIBRATE_FROM

    def __call__(self, batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        total = denoise = self.denoise(batch, generator)
        report, seen, draw = {"denoising": denoise.item()}, self.features(), int(self.memory.draws)
        terms: dict[str, Tensor] = {}
        if self.trs and draw >= self.trs_from:
            terms["trs"] = self.trs * trs_loss(seen.attention)
        if self.dc:
            contrast = self.contrast(seen.h, batch.videos, generator)
            if contrast is not None:
                terms["dc"] = self.dc * contrast
        for name, term in terms.items():
            report[name] = term.item()
            total = total + self.factor(name, denoise, term, draw, report) * term
        self.memory.draws += 1
        return total, report

    def contrast(self, h: Tensor, videos: Sequence[int], generator: torch.Generator) -> Tensor | None:
        """L_DC of h [B, F, C] and the numbers of the clips' videos; None where it has no negatives yet."""
        if self.negatives == "queue":
            return queue_contrast(h, videos, self.head, self.memory.negatives, generator)
        return batch_contrast(h, videos, self.head, generator)

    def factor(self, name: str, denoise: Tensor, term: Tensor, draw: int, report: dict[str, float]) -> float:
        """f of a term; measures gradients while calibrating, and now and then for the report."""
        norms, count = getattr(self.memory, f"{name}_norms"), getattr(self.memory, f"{name}_count")
        calibrating = draw >= self.calibrate_from and count < CALIBRATE_FOR
        measured = None
        if calibrating or draw % REPORT_EVERY == 0:
            measured = torch.tensor([self.gradient_norm(denoise), self.gradient_norm(term)])
        if calibrating:
            norms += measured.to(norms)
            count += 1
        factor = min(1.0, SHARE * float(norms[0] / norms[1])) if norms[1] else 1.0
        if measured is not None:
            report[f"{name} share"] = float(factor * measured[1] / measured[0].clamp(min=1e-12))
        return factor

    def gradient_norm(self, loss: Tensor) -> float:
        """Norm of the gradient on what is trained; the graph stays."""
        gradients = torch.autograd.grad(loss, self.trained, retain_graph=True, allow_unused=True)
        return float(sum(g.float().square().sum() for g in gradients if g is not None)) ** 0.5
