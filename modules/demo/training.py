"""Trainings that make the files of sprite world from nothing: `python -m frozen_diffusion.cli demo-train PART`.

Each part is a frozen recipe and a function that makes model, loss and batches for the one training loop. All of them
run on two CPU cores, keep a checkpoint under `runs/` and resume from it.
"""
from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..training.average import MovingAverage
from ..training.checkpoint import CheckpointStore
from ..training.loop import StepRecord, TrainSettings, train
from ..training.order import batch_indices
from .pool import Pool, draw_pool, signed
from .vae import SpriteVAE, vae_loss

WEIGHTS = Path(__file__).parents[2] / "weights"
LICENCE = "Apache-2.0; the sprites are drawn with Noto Color Emoji (SIL OFL 1.1)"


def publish(name: str, tensors: dict[str, torch.Tensor], what: str, command: str, settings: TrainSettings,
            hours: float, figures: dict[str, float], metadata: Mapping[str, str] | None = None) -> Path:
    """Write fp16 weights and their card: what, how trained, by which command, measured figures, licence."""
    path = WEIGHTS / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    half = {key: (value.half() if value.is_floating_point() else value).contiguous().clone()
            for key, value in tensors.items()}
    about = {"format": "pt", "what": what, "command": command, "licence": LICENCE}
    save_file(half, str(path), about | dict(metadata or {}))
    path.chmod(0o644)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    table = "\n".join(f"| {key} | {value:.4g} |" for key, value in figures.items())
    path.with_suffix(".md").write_text(
        f"# {name}\n\n{what}\n\n| | |\n|---|---|\n| command | `{command}` |\n| seed | {settings.seed} |\n"
        f"| steps | {settings.steps} |\n| hours | {hours:.2f} |\n| machine | {machine} |\n| licence | {LICENCE} |\n"
        f"| recipe | `{json.dumps(asdict(settings))}` |\n{table}\n")
    return path


def follow(records: Iterable[StepRecord], steps: int, every: int = 50) -> float:
    """Run a training to its end, printing a line now and then. Returns hours spent in steps of this process."""
    seconds, recent = 0.0, []
    for record in records:
        seconds += record.seconds
        recent.append(record.loss)
        if record.step % every == 0 or record.step == steps:
            extras = " ".join(f"{key} {value:.3f}" for key, value in record.extras.items())
            print(f"step {record.step}/{steps} loss {sum(recent) / len(recent):.4f} "
                  f"grad {record.grad_norm:.2f} {record.seconds:.2f} s/step {extras}", flush=True)
            recent = []
    return seconds / 3600


# ------------------------------------------------------------------------------------------------- autoencoder
VAE_SETTINGS = TrainSettings(steps=3000, lr=1.2e-3, warmup=100, schedule="cosine", betas=(0.9, 0.99),
                             weight_decay=1e-3, seed=1, precision="bf16", checkpoint_every=500)
LATENT_NOISE = 0.12     # standard deviations


@torch.no_grad()
def measure_vae(vae: SpriteVAE, pool: Pool) -> dict[str, float]:
    error, count = 0.0, 0
    for pixels in pool.pixels.split(64):
        x = signed(pixels)
        error += (vae.decode(vae.encode(x)).clamp(-1, 1) - x).div(2).square().sum().item()
        count += x.numel()
    return {"psnr_held_out": -10 * math.log10(error / count)}


@torch.no_grad()
def fold_statistics(vae: SpriteVAE, pool: Pool) -> None:
    """Give the latents unit variance per channel after SD1.5's factor."""
    raw = torch.cat([vae.encoder(signed(pixels)) for pixels in pool.pixels[:2048].split(64)])
    vae.mean.copy_(raw.mean(dim=(0, 2, 3)))
    vae.std.copy_(raw.std(dim=(0, 2, 3)))


def train_vae(runs: Path) -> Path:
    settings = VAE_SETTINGS
    pool, held_out = draw_pool(6144, 3072, seed=11), draw_pool(256, 256, seed=12)
    torch.manual_seed(settings.seed)
    vae = SpriteVAE().to(memory_format=torch.channels_last)
    average = MovingAverage(vae, 0.995)

    def batches(draw: int) -> torch.Tensor:
        return signed(pool.pixels[batch_indices(len(pool), 16, settings.seed, draw)])

    def loss(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return vae_loss(vae, pixels.contiguous(memory_format=torch.channels_last), LATENT_NOISE, generator)

    hours = follow(train(vae, loss, batches, settings, CheckpointStore(runs / "vae.safetensors"), average),
                   settings.steps)
    with average.applied(vae):
        fold_statistics(vae, pool)
        figures = measure_vae(vae, held_out)
        return publish("sprite_vae", vae.state_dict(), "Autoencoder of sprite world: 8x, 4 latent channels.",
                       "python -m frozen_diffusion.cli demo-train vae", settings, hours, figures)


def _clip(runs: Path) -> Path:
    from .train_clip import train_clip
    return train_clip(runs)


def _unet(runs: Path) -> Path:
    from .train_unet import train_unet
    return train_unet(runs)


def _lora(runs: Path) -> Path:
    from .train_lora import train_loras
    return train_loras(runs)


def _controlnet(runs: Path) -> Path:
    from .train_controlnet import train_controlnet
    return train_controlnet(runs)


def _motion(runs: Path) -> Path:
    from .train_motion import train_sprite_motion
    return train_sprite_motion(runs)


PARTS: dict[str, Callable[[Path], Path]] = {
    "vae": train_vae, "clip": _clip, "unet": _unet, "lora": _lora, "controlnet": _controlnet,
    "motion": _motion}
