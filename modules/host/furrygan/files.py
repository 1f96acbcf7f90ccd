"""FurryGANs in the host: as an object on a socket, and in their folders."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import folder_paths
import torch
from torch import nn

from ...files.atomic_write import write_atomically
from ...files.checks import has_format
from ...furrygan.discriminator import Discriminator
from ...furrygan.files import FORMAT, FurryFile, count, furry_tensors, read_furry_file
from ...furrygan.networks import Generator
from ...furrygan.sampling import Means
from ...furrygan.training import latent_means
from ..files import next_file
from ..folders import WEIGHTS, listed, register_models, shipped_file

FOLDER = "furrygan"                 # below the host's models folder, and below its output folder


@dataclass(frozen=True)
class LoadedFurry:
    """What the socket FROZEN_FURRYGAN carries: the networks in the host's patcher, so that the host moves them.

    Attributes:
        file: what it was made of.
        patcher: of a ModuleDict with `generator` and, if the file has one, `discriminator`; in float32.
        means: of mapped latents, on the CPU.
        source: the file's name.
    """
    file: FurryFile
    patcher: comfy.model_patcher.ModelPatcher
    means: Means
    source: str

    @property
    def generator(self) -> Generator:
        return self.patcher.model["generator"]

    @property
    def discriminator(self) -> Discriminator:
        """Raises ValueError where the file has none."""
        if "discriminator" not in self.patcher.model:
            raise ValueError(f"{self.source} holds the generator only. Mask Hint and Foreground from Image look with "
                             "the discriminator: load a file that was saved with it.")
        return self.patcher.model["discriminator"]

    def on_device(self) -> torch.device:
        """Bring the networks to the host's device; returns it."""
        comfy.model_management.load_models_gpu([self.patcher], force_full_load=True)
        return self.patcher.load_device


def hold_furry(file: FurryFile, source: str) -> LoadedFurry:
    """Networks for sampling from a file. The mask is the difference of small numbers, so they run in float32."""
    with torch.inference_mode(False):
        parts: dict[str, nn.Module] = {"generator": Generator(file.shape)}
        if file.discriminator is not None:
            parts["discriminator"] = Discriminator(file.shape)
        for name, network in parts.items():
            network.load_state_dict({key: value.float() for key, value in getattr(file, name).items()})
        networks = nn.ModuleDict(parts).eval().requires_grad_(False)
        means = tuple(mean.float() for mean in file.means or latent_means(parts["generator"]))
    patcher = comfy.model_patcher.ModelPatcher(networks, load_device=comfy.model_management.get_torch_device(),
                                               offload_device=comfy.model_management.unet_offload_device())
    return LoadedFurry(file, patcher, means, source)


def register_folder() -> None:
    """Make the host know where FurryGANs are."""
    register_models(FOLDER, Path(folder_paths.get_output_directory()) / FOLDER)


def list_furries() -> list[str]:
    """Names for the loader: those in models/furrygan and output/furrygan first, then the pack's own."""
    register_folder()
    return listed(FOLDER, WEIGHTS, lambda path: has_format(path, FORMAT))


def find_furry(name: str) -> Path:
    """The file behind a name of the list. Raises FileNotFoundError."""
    register_folder()
    return shipped_file(name, WEIGHTS) or Path(folder_paths.get_full_path_or_raise(FOLDER, name))


def load_furry(path: Path) -> LoadedFurry:
    """Read a file of ours or an official checkpoint. Raises FurryFileError."""
    return hold_furry(read_furry_file(path), path.name)


def save_furry(loaded: LoadedFurry, prefix: str, discriminator: bool) -> Path:
    """Write into the output folder under the next free number; returns the path. Raises OSError."""
    file = loaded.file
    kept = FurryFile(file.shape, file.generator, file.discriminator if discriminator else None, loaded.means,
                     file.metadata)
    path = next_file(prefix)
    write_atomically(path, *furry_tensors(kept), "The FurryGAN")
    return path


def furry_text(loaded: LoadedFurry) -> str:
    """What was loaded, in a line or two."""
    file = loaded.file
    millions = count(file.generator) / 1e6
    told = file.metadata.get("what") or f"trained for {file.metadata.get('steps', 'an unknown number of')} steps"
    judge = "with" if file.discriminator is not None else "without"
    size = f"{file.shape.size}x{file.shape.size}"
    return f"{loaded.source}: pictures of {size}, {millions:.2f} M parameters, {judge} discriminator\n{told}"
