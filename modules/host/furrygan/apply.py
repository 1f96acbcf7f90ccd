"""Drawing with a FurryGAN on the host's device."""
from __future__ import annotations

import comfy.model_management
import torch
from comfy.utils import ProgressBar
from torch import Tensor

from ...furrygan.edges import clean_edges
from ...furrygan.sampling import Cutouts, Styles, draw_styles, joined, render
from .files import LoadedFurry


def styles_of(loaded: LoadedFurry, seed: int, count: int, psi: tuple[float, float],
             background_seed: int | None = None) -> Styles:
    """The first `count` styles of a seed. Raises ValueError for a negative psi."""
    loaded.on_device()
    return draw_styles(loaded.generator, loaded.means, seed, range(count), psi, background_seed)


def cut_outs(loaded: LoadedFurry, styles: Styles, clean: bool = True, node_id: str | None = None) -> Cutouts:
    """The layers of styles. Raises ValueError for styles of another FurryGAN."""
    shape = loaded.file.shape
    wanted = ((shape.rows, shape.foreground), (shape.rows, shape.background))
    given = (tuple(styles.foreground.shape[1:]), tuple(styles.background.shape[1:]))
    if given != wanted:
        raise ValueError(f"The styles are of another FurryGAN: theirs are {given}, {loaded.source} has {wanted}. Make "
                         "them with the same.")
    device, parts, bar = loaded.on_device(), [], ProgressBar(len(styles), node_id)
    for part in render(loaded.generator, styles, device, clean):
        comfy.model_management.throw_exception_if_processing_interrupted()
        parts.append(part)
        bar.update(len(part.mask))
    return joined(parts)


def report(cutouts: Cutouts) -> str:
    """What masks there are, and which are nothing."""
    share = cutouts.mask.mean((1, 2))
    empty = [str(number) for number in range(len(share)) if not cutouts.mask[number].any()]
    text = f"{len(share)} cut-outs; the foreground fills {float(share.min()):.0%} to {float(share.max()):.0%}"
    return text + (f"\nThe mask of picture {', '.join(empty)} is empty: it was the same everywhere." if empty else "")


@torch.inference_mode()
def mask_hints(loaded: LoadedFurry, images: Tensor) -> Tensor:
    """Masks [B, H, W] of pictures [B, H, W, 3] in 0..1, as the discriminator sees them at 16x16."""
    judge, size = loaded.discriminator, loaded.file.shape.size
    device, found = loaded.on_device(), []
    bar = ProgressBar(len(images))
    for image in images:
        comfy.model_management.throw_exception_if_processing_interrupted()
        picture = resized(image[None, ..., :3].movedim(-1, 1), (size, size)).to(device)
        hint = judge.mask_of(judge.features(2 * picture - 1))
        found.append(resized(hint, tuple(image.shape[:2]))[:, 0].clamp(0, 1).cpu())
        bar.update(1)
    return torch.cat(found)


def resized(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, C, H, W] at another size; smooth where it becomes smaller."""
    smaller = size[0] < pictures.shape[-2] or size[1] < pictures.shape[-1]
    return torch.nn.functional.interpolate(pictures.float(), size, mode="bilinear", antialias=smaller)


def without_halo(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(picture [B, H, W, 3] with clean edges, the same with its mask [B or 1, h, w] as alpha [B, H, W, 4]).

    Raises ValueError for a mask of another shape, or of other pictures.
    """
    height, width = image.shape[1:3]
    mask = mask[None] if mask.ndim == 2 else mask
    if len(mask) not in (1, len(image)):
        raise ValueError(f"There are {len(image)} pictures and {len(mask)} masks. Give one mask for each, or one for "
                         "all.")
    if height * mask.shape[2] != width * mask.shape[1]:
        raise ValueError(f"The mask is {mask.shape[2]}x{mask.shape[1]} and the picture {width}x{height}: they are of "
                         "other shapes. Give the mask that belongs to the picture.")
    alpha = mask.float().clamp(0, 1)[:, None].expand(len(image), -1, -1, -1)
    if tuple(alpha.shape[2:]) != (height, width):
        alpha = resized(alpha, (height, width)).clamp(0, 1)
    clean = clean_edges(image[..., :3].movedim(-1, 1).float(), alpha)
    return clean.movedim(1, -1), torch.cat([clean, alpha], 1).movedim(1, -1)
