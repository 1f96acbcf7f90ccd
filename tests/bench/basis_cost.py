"""What a latent basis costs beside the released iteration: SD1.5 size on random weights, 32x32 latents, k = 4, fp32.

Both solve the same Jacobian in one process, turn by turn. The released iteration runs as it was released for editing:
forward mode through plain attention, one backward pass a direction from one forward pass, at most 50 iterations.
Memory is the most that tensors took above the weights while a solver ran; on a processor it is the resident size of
the process, sampled in a thread, after the heap gave back what earlier work had left in it (Linux with glibc).
"""
from __future__ import annotations

import contextlib
import ctypes
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator

import torch
from bench.train_cost import full_size_model

from frozen_diffusion.modules.basis.lanczos import lanczos
from frozen_diffusion.modules.basis.subspace_iteration import subspace_iteration
from frozen_diffusion.modules.host.basis.compute import encoder_of, jacobian_of
from frozen_diffusion.modules.host.basis.encoder import Encoder
from frozen_diffusion.modules.seeding import stream

SIDE, RANK, SIGMA, ROUNDS = 32, 4, 3.43, 1
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> int:
    """Bytes that the process has in memory now (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE


@contextlib.contextmanager
def watched(peak: dict) -> Iterator[None]:
    """Leaves in `peak["bytes"]` how much memory the block took at most."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield
        peak["bytes"] = torch.cuda.max_memory_allocated() - before
        return
    ctypes.CDLL(None).malloc_trim(0)        # else a solver that comes second lives in what the first one freed
    before, done, seen = resident(), threading.Event(), [0]

    def look() -> None:
        while not done.wait(0.02):
            seen.append(resident())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    peak["bytes"] = max(seen) - before


def official(encoder: Encoder):
    """The released solver at its editing settings."""
    return subspace_iteration(jacobian_of(encoder), RANK, official=True)


def ours(encoder: Encoder):
    return lanczos(jacobian_of(encoder), RANK)


def first_products(encoder: Encoder, v: torch.Tensor) -> None:
    """One of each kind, so that what is made only once is in neither solver's memory; what they keep is let go of."""
    jacobian = jacobian_of(encoder)
    jacobian.pull(jacobian.push(v))


@torch.inference_mode()
def run() -> dict:
    """`time_over_official`, `memory_over_official` and `seconds` of ours."""
    model = full_size_model()
    text = [[torch.randn(1, 77, 768, generator=stream("text")), {}]]
    latent = torch.randn(1, 4, SIDE, SIDE, generator=stream("latent")) * (1 + SIGMA ** 2) ** 0.5 / 0.18215
    encoder, _ = encoder_of(model, text, latent, torch.tensor([SIGMA, 0.0]))
    model.model.diffusion_model = None
    first_products(encoder, latent / latent.norm())
    seconds, memory, products = ({"ours": [], "official": []} for _ in range(3))
    for _ in range(ROUNDS):
        for name, solver in (("ours", ours), ("official", official)):
            peak, began = {}, time.perf_counter()
            with watched(peak):
                *_, last = solver(encoder)
            seconds[name].append(time.perf_counter() - began)
            memory[name].append(peak["bytes"])
            products[name].append(last.products)
            print(f"{name}: {last.products} products, {seconds[name][-1]:.1f} s", file=sys.stderr, flush=True)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    most = {name: max(values) for name, values in memory.items()}
    return {"figures": {"time_over_official": middle["ours"] / middle["official"],
                        "memory_over_official": most["ours"] / most["official"], "seconds": middle["ours"]},
            "context": {"latents": f"{SIDE}x{SIDE}", "rank": RANK, "rounds": ROUNDS, "products": products,
                        "median_seconds": middle, "mib": {name: value / 2**20 for name, value in most.items()}}}
