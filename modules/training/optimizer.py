"""The optimizer of the training loop: AdamW, or Muon for matrices and AdamW for everything else."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal["adamw", "muon", "muon-conv"]      # muon-conv: the kernels of convolutions are matrices too


class Optimizer:
    """Weights by name, each with factors on learning rate and weight decay; state by name, for a checkpoint.

    Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) moves all directions of a matrix equally far, scaled
    so that the learning rates of AdamW fit (Liu et al. 2025, arXiv 2502.16982). It makes more of each of the few steps
    that a small training has. With "muon-conv" a kernel counts as a matrix of outputs by inputs, rows and columns.
    Raises ValueError where torch has no Muon.
    """

    def __init__(self, kind: Kind, weights: Mapping[str, nn.Parameter], scale: Callable[[str], float],
                 betas: tuple[float, float], weight_decay: float,
                 decay_scale: Callable[[str], float] = lambda name: 1.0):
        def factors(name: str) -> tuple[float, float]:
            return scale(name), decay_scale(name)

        matrices = {name for name, weight in weights.items()
                    if kind != "adamw" and (weight.ndim == 2 or kind == "muon-conv" and weight.ndim > 2)}
        # Torch's Muon takes matrices alone: of a kernel, a view on the same memory.
        self.kernels = {name: (weights[name], nn.Parameter(weights[name].detach().flatten(1)))
                        for name in matrices if weights[name].ndim > 2}
        flat = {name: self.kernels[name][1] if name in self.kernels else weight for name, weight in weights.items()}
        self.parts: list[tuple[list[str], torch.optim.Optimizer]] = []
        for names in (sorted(weights.keys() - matrices), sorted(matrices)):
            if not names:
                continue
            names.sort(key=factors)
            groups = [{"params": [flat[name] for name in names if factors(name) == pair], "scale": pair[0],
                       "weight_decay": weight_decay * pair[1]} for pair in sorted({factors(name) for name in names})]
            self.parts.append((names, _muon(groups, weight_decay) if names[0] in matrices
                               else _adamw(groups, betas, weight_decay)))

    def step(self, rate: float) -> None:
        """Change the weights by their gradients, and let go of these."""
        for kernel, matrix in self.kernels.values():
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        for _, optimizer in self.parts:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            optimizer.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        for _, optimizer in self.parts:
            optimizer.zero_grad(set_to_none=True)
        for kernel, _ in self.kernels.values():
            kernel.grad = None

    def state(self) -> dict[str, Tensor]:
        """All that it remembers: "weight's name/what": tensor."""
        return {f"{names[index]}/{key}": value for names, optimizer in self.parts
                for index, values in optimizer.state_dict()["state"].items() for key, value in values.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over a `state`."""
        known: dict[str, dict[str, Tensor]] = {}
        for path, value in state.items():
            name, _, key = path.rpartition("/")
            known.setdefault(name, {})[key] = value
        for names, optimizer in self.parts:
            optimizer.load_state_dict({
                "state": {index: known[name] for index, name in enumerate(names) if name in known},
                "param_groups": optimizer.state_dict()["param_groups"]})


def _adamw(groups: list[dict], betas: tuple[float, float], weight_decay: float) -> torch.optim.Optimizer:
    fused = groups[0]["params"][0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, betas=betas, weight_decay=weight_decay, fused=fused)


def _muon(groups: list[dict], weight_decay: float) -> torch.optim.Optimizer:
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(f"The optimizer muon came with torch 2.9; this is {torch.__version__}. Choose adamw, or "
                         "update torch as your ComfyUI's guide says.")
    return torch.optim.Muon(groups, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
