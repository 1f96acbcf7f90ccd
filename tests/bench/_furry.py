"""FurryGANs judged: by a teacher that was trained on true alpha, and by the true alpha itself."""
from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from frozen_diffusion.modules.data.images import ImageSettings
from frozen_diffusion.modules.demo.emoji import EmojiPictures
from frozen_diffusion.modules.files.atomic_write import write_atomically
from frozen_diffusion.modules.furrygan.discriminator import HINT, Discriminator
from frozen_diffusion.modules.furrygan.files import FurryFile
from frozen_diffusion.modules.furrygan.networks import Generator
from frozen_diffusion.modules.furrygan.sampling import Cutouts, draw_styles, joined, render
from frozen_diffusion.modules.host.boot import PACK
from frozen_diffusion.modules.seeding import batch_indices

CPU = torch.device("cpu")
HELD_OUT, LOOKED_AT, SEED, BAND = 100_000, 500, 900, 2
TEACHER_STEPS, TEACHER_PICTURES, BATCH, RATE = 1500, 4000, 16, 3e-3


class Teacher(nn.Module):
    """A small U-Net: pictures [B, 3, S, S] in -1..1 -> logits of their alpha [B, 1, S, S]."""

    def __init__(self, widths: Sequence[int] = (16, 32, 64)):
        super().__init__()
        inputs = (3, *widths[:-1])
        self.down = nn.ModuleList(_pair(a, b) for a, b in zip(inputs, widths, strict=True))
        self.up = nn.ModuleList(_pair(widths[level] + widths[level + 1], widths[level])
                                for level in reversed(range(len(widths) - 1)))
        self.last = nn.Conv2d(widths[0], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for level, layer in enumerate(self.down):
            x = layer(F.avg_pool2d(x, 2) if level else x)
            kept.append(x)
        for layer, skip in zip(self.up, reversed(kept[:-1]), strict=True):
            x = layer(torch.cat([F.interpolate(x, scale_factor=2.0), skip], 1))
        return self.last(x)


def _pair(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.SiLU(),
                         nn.Conv2d(outputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.SiLU())


def held_out(size: int, count: int = LOOKED_AT) -> tuple[Tensor, Tensor]:
    """(pictures in -1..1, true alpha) that no training saw."""
    source = EmojiPictures(count, ImageSettings(size, size), first=HELD_OUT)
    pictures, alphas = zip(*(source.drawn(index) for index in range(count)), strict=True)
    return 2 * torch.stack(pictures) - 1, torch.stack(alphas)


def teacher(size: int) -> tuple[Teacher, float]:
    """(the trained teacher, its mIoU on held-out pictures); kept in runs/, for it takes minutes."""
    path = PACK / "runs" / f"furry_teacher_{size}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = Teacher()
    if path.is_file():
        network.load_state_dict(load_file(path))
    else:
        _train(network, size)
        write_atomically(path, network.state_dict(), {}, "The teacher")
    pictures, alphas = held_out(size)
    return network.eval(), float(miou(seen(network, pictures), alphas > 0.5).mean())


def _train(network: Teacher, size: int) -> None:
    source = EmojiPictures(TEACHER_PICTURES, ImageSettings(size, size), first=2 * HELD_OUT)
    adam = torch.optim.Adam(network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, TEACHER_STEPS)
    for step in range(TEACHER_STEPS):
        drawn = [source.drawn(index) for index in batch_indices(len(source), BATCH, SEED, step)]
        pictures, alphas = (torch.stack(part) for part in zip(*drawn, strict=True))
        loss = F.binary_cross_entropy_with_logits(network(2 * pictures - 1), alphas)
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
        if step % 250 == 0:
            print(f"teacher {step} of {TEACHER_STEPS}: {float(loss):.4f}", file=sys.stderr, flush=True)


@torch.no_grad()
def seen(network: Teacher, pictures: Tensor) -> Tensor:
    """Where the teacher sees a subject, [B, 1, S, S] bool."""
    return torch.cat([network(part) > 0 for part in pictures.split(100)])


def iou(first: Tensor, second: Tensor) -> Tensor:
    """[B] of bool masks."""
    both, either = (first & second).sum((1, 2, 3)), (first | second).sum((1, 2, 3))
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def miou(first: Tensor, second: Tensor) -> Tensor:
    """[B]: mean of the foreground's and the background's."""
    return (iou(first, second) + iou(~first, ~second)) / 2


@dataclass(frozen=True)
class Networks:
    """A FurryGAN on the CPU."""

    file: FurryFile
    generator: Generator
    discriminator: Discriminator

    @classmethod
    def of(cls, file: FurryFile) -> Networks:
        networks = Generator(file.shape), Discriminator(file.shape)
        for network, state in zip(networks, (file.generator, file.discriminator), strict=True):
            network.load_state_dict({key: value.float() for key, value in state.items()})
            network.eval().requires_grad_(False)
        return cls(file, *networks)

    def drawn(self, count: int, psi: float) -> Cutouts:
        styles = draw_styles(self.generator, self.file.means, SEED, range(count), (psi, psi))
        return joined(list(render(self.generator, styles, CPU, clean=False)))


def mask_figures(networks: Networks, judge: Teacher, count: int, psi: float) -> tuple[dict[str, float], Cutouts]:
    """The masks of samples against what the teacher sees in their composites."""
    cutouts = networks.drawn(count, psi)
    soft, wanted = cutouts.mask[:, None], seen(judge, 2 * cutouts.composite.movedim(-1, 1) - 1)
    mask = soft > 0.5
    band = edges(wanted)
    constant = (soft.mean(0, keepdim=True) > 0.5).expand_as(mask)
    agree, inverted = iou(mask, wanted), iou(~mask, wanted)
    return {"miou": float(miou(mask, wanted).mean()), "fg_iou": float(agree.mean()),
            "constant_mask": float(miou(constant, wanted).mean()),
            "edge_recall": float((mask & wanted & band).sum() / (wanted & band).sum().clamp(min=1)),
            "orientation": float((agree > inverted).double().mean()), "mask": float(soft.mean()),
            "unsure": float(torch.minimum(soft, 1 - soft).mean())}, cutouts


def edges(mask: Tensor) -> Tensor:
    """Within two pixels of a mask's edge, on both sides."""
    soft, side = mask.float(), 2 * BAND + 1
    return (F.max_pool2d(soft, side, 1, BAND) > 0) & (F.max_pool2d(1 - soft, side, 1, BAND) > 0)


@torch.no_grad()
def hint_miou(networks: Networks) -> float:
    """D_aux on real held-out pictures against their true alpha, both at 16x16."""
    pictures, alphas = held_out(networks.file.shape.size)
    judge = networks.discriminator
    hints = torch.cat([judge.mask_of(judge.features(part)) for part in pictures.split(100)])
    return float(miou(hints > 0.5, F.interpolate(alphas, HINT, mode="area") > 0.5).mean())
