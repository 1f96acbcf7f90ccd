"""The Jacobian J = dh/dx of the U-Net's first half as a linear map: only products with it, it is never formed.

    jacobian = Jacobian(f, x)                   f: [1, C, H, W] -> [1, ...], h-space at one latent
    u = jacobian.push(v)                        J v, forward mode
    v = jacobian.pull(u)                        J^T u, backward mode

Source: Park et al., "Understanding the Latent Space of Diffusion Models through the Lens of Riemannian Geometry",
NeurIPS 2023, section 3: the metric that J pulls back from H to X is J^T J.
"""
from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
HALF = (torch.float16, torch.bfloat16)
STEPS = {torch.float64: 1e-4, torch.float32: 0.1, torch.float16: 1.0}   # of central differences along a unit vector
NO_FORWARD = "forward AD"       # in torch's words for a layer without forward derivative


class Jacobian:
    """J at x, for one latent. `products` counts the products so far, `h` is f(x), `n` and `m` are the sizes of x and h.

    Args:
        f: x [1, C, H, W] -> h [1, ...], differentiable by torch.func.
        x: the latent [1, C, H, W] in the scale that the U-Net sees.
        push_f, pull_f: f as it is evaluated in `push` and in `pull`; both f if not given. They compute the same thing
            with other kernels: fused attention has a backward mode and no forward mode.
        x_mask: [H, W] on the grid of x, 1 where x may change: J M.
        h_mask: [h, w] on the grid of h, 1 where h is looked at: M J.
        difference: `push` by central differences. In full precision an f without forward mode turns this on by itself.
        keep: `pull` keeps the activations of its first forward pass: faster, for more memory.
        before: called before every product; what it raises ends the computation.

    Raises ValueError for more than one latent, a latent without signal, masks of another size, and numbers that are
    not finite.
    """

    def __init__(self, f: Function, x: Tensor, push_f: Function | None = None, pull_f: Function | None = None,
                 x_mask: Tensor | None = None, h_mask: Tensor | None = None, difference: bool = False,
                 keep: bool = False, before: Callable[[], None] = lambda: None):
        check_latent(x)
        if difference and x.dtype not in STEPS:
            raise ValueError(f"Central differences are too coarse in {x.dtype}. Use float32.")
        self.push_f, self.pull_f = push_f or f, pull_f or f
        self.difference, self.keep, self.before = difference, keep, before
        self.products = 0
        self._kept = None                       # J^T as a function of u, and the type of its u
        self.dtype = torch.float64 if x.dtype == torch.float64 else torch.float32       # of what is returned
        with differentiable():
            self.x = x.clone()                  # a tensor made in inference mode cannot be differentiated
            self.h = finite(f(self.x), "The U-Net's h").to(self.dtype)
        self.n, self.m = self.x.numel(), self.h.numel()
        self.x_mask, self.h_mask = mask_for(x_mask, self.x, "x"), mask_for(h_mask, self.h, "h")
        # Half precision loses small numbers: there the tangents get entries of size 1.
        self.v_scale, self.u_scale = (self.n ** 0.5, self.m ** 0.5) if x.dtype in HALF else (1.0, 1.0)

    @property
    def tolerance(self) -> float:
        """Error that `push` and `pull` may have relative to one another."""
        return 3e-2 if self.x.dtype in HALF else 1e-2 if self.difference else 1e-3

    def push(self, v: Tensor) -> Tensor:
        """u = J v, [1, ...] of h's shape, for v of x's shape. ValueError if it is not finite."""
        v = self._given(v, self.x, "v")
        if self.x_mask is not None:
            v = v * self.x_mask
        with differentiable():
            u = self._sparing(self._pushed, (v * self.v_scale).to(self.x.dtype).clone())
        u = finite(u, "J v").to(self.dtype) / self.v_scale
        return u if self.h_mask is None else u * self.h_mask

    def _derivative(self, v: Tensor) -> Tensor:
        try:
            return torch.func.jvp(self.push_f, (self.x,), (v,))[1]
        except RuntimeError as error:
            if NO_FORWARD not in str(error):
                raise
            words = f"A part of the U-Net has no forward derivative. torch says: {str(error).splitlines()[0]} "
            if self.x.dtype in HALF:
                raise ValueError(words + "Take away the node that patches this part (attention packs, torch.compile), "
                                         "or use float32.") from error
            logging.warning("Frozen Diffusion: %sCentral differences are taken instead.", words)
        self.difference = True
        return self._difference(v)

    def _difference(self, v: Tensor) -> Tensor:
        step = STEPS[self.x.dtype] / self.v_scale
        ahead, behind = (self.push_f(self.x + sign * step * v).to(self.dtype) for sign in (1, -1))
        return (ahead - behind) / (2 * step)

    def pull(self, u: Tensor) -> Tensor:
        """v = J^T u, [1, C, H, W] of x's shape, for u of h's shape. ValueError if it is not finite."""
        u = self._given(u, self.h, "u")
        if self.h_mask is not None:
            u = u * self.h_mask
        with differentiable():
            v = self._sparing(self._pulled, u * self.u_scale)
        v = finite(v, "J^T u").to(self.dtype) / self.u_scale
        return v if self.x_mask is None else v * self.x_mask

    def check_adjoint(self, seed: int = 0) -> float:
        """Error of <u, J v> = <J^T u, v> for random u and v, relative to the usual size of both sides. Two products.

        Raises RuntimeError if `push` and `pull` are not of the same J, which makes every singular vector wrong.
        """
        generator = torch.Generator().manual_seed(seed)
        v, u = (torch.randn(like.shape, generator=generator, dtype=torch.float64) for like in (self.x, self.h))
        v, u = ((a / a.norm()).to(self.dtype).to(self.x.device) for a in (v, u))
        pushed, pulled = self.push(v), self.pull(u)
        usual = max(norm(pushed) / self.m ** 0.5, norm(pulled) / self.n ** 0.5)
        return self.compare(inner(u, pushed), inner(pulled, v), usual)

    def compare(self, forward: float, backward: float, scale: float) -> float:
        """|forward - backward| / scale, 0 if the scale is. Raises RuntimeError if it is above the tolerance."""
        error = abs(forward - backward) / scale if scale > 0 else 0.0
        if error > self.tolerance:
            raise RuntimeError(
                f"The Jacobian's two products do not agree: <u, Jv> and <J'u, v> differ by {error:.1e} of their size, "
                f"at most {self.tolerance:.0e} is allowed. Forward and backward mode run different kernels or different"
                " weights. The usual cause is a weight buffer that is used again before the backward pass "
                "(low-memory offloading): load the model fully. Others: attention kernels that differ, dropout, "
                "and random patches.")
        return error

    def _pushed(self, v: Tensor) -> Tensor:
        return self._difference(v) if self.difference else self._derivative(v)

    def _pulled(self, u: Tensor) -> Tensor:
        transposed, dtype = self._kept or self._transpose()
        v, = transposed(u.to(dtype).clone())
        return v

    def _sparing(self, product: Function, vector: Tensor) -> Tensor:
        """A product; if memory ends, the kept activations go for good and it is tried again."""
        try:
            return product(vector)
        except torch.cuda.OutOfMemoryError:
            if not self.keep:
                raise
        self.keep, self._kept = False, None
        return product(vector)

    def _transpose(self) -> tuple[Callable, torch.dtype]:
        h, transposed = torch.func.vjp(self.pull_f, self.x)
        if self.keep:
            self._kept = transposed, h.dtype
        return transposed, h.dtype

    def _given(self, vector: Tensor, like: Tensor, name: str) -> Tensor:
        if vector.shape != like.shape:
            raise ValueError(f"{name} has the shape {list(vector.shape)}; it must be {list(like.shape)}.")
        self.before()
        self.products += 1
        return vector.to(self.dtype).to(like.device)


@contextmanager
def differentiable() -> Iterator[None]:
    """Where torch.func works whatever the caller's mode: inference mode is off, and weights are constants."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def check_latent(x: Tensor) -> None:
    """Raises ValueError unless x is one latent [1, C, H, W] that is finite and not constant."""
    if x.ndim != 4 or x.shape[0] != 1:
        raise ValueError(f"A basis belongs to one latent [1, C, H, W]; the shape {list(x.shape)} was given. "
                         "Compute several one after the other.")
    if not bool(x.isfinite().all()):
        raise ValueError("The latent is not finite (NaN or infinity). Look at the node that made it.")
    if bool((x == x.flatten()[0]).all()):
        raise ValueError("The latent carries no signal: all its numbers are the same. Give a noisy latent, e.g. one "
                         "from a sampling that stopped half way.")


def finite(tensor: Tensor, name: str) -> Tensor:
    """The tensor; ValueError if it has NaN or infinity."""
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} is not finite (NaN or infinity): the numbers overflow. Run the U-Net in float32, and "
                         "take patches away one by one to find the one that fails.")
    return tensor


def mask_for(mask: Tensor | None, like: Tensor, name: str) -> Tensor | None:
    """The [H, W] mask on the device of like [1, C, H, W]. ValueError if the sizes differ or it is empty."""
    if mask is None:
        return None
    if like.ndim != 4 or mask.shape != like.shape[-2:]:
        raise ValueError(f"The mask for {name} has the shape {list(mask.shape)}; the grid of {name} is "
                         f"{list(like.shape[-2:])}. Resize the mask.")
    mask = mask.to(like.device, torch.float64 if like.dtype == torch.float64 else torch.float32)
    if not bool((finite(mask, "The mask") != 0).any()):
        raise ValueError(f"The mask for {name} is empty. Paint the part that may change, at least one cell of the grid "
                         f"of {list(mask.shape)}.")
    return mask


def inner(a: Tensor, b: Tensor) -> float:
    """<a, b> of two tensors of the same size, accumulated in float64 where the device has it."""
    a, b = (t.flatten().to(work_device(t.device)).double() for t in (a, b))
    return float(a @ b)


def work_device(device: torch.device) -> torch.device:
    """The device itself if it has float64, else the CPU."""
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")


def norm(a: Tensor) -> float:
    """Length of a, accumulated in float64."""
    return math.sqrt(inner(a, a))
