"""Guide models in the host: as an object on a socket, and in its folders."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.ops
import comfy.supported_models
import folder_paths
import torch
from torch import Tensor, nn

from ...files.checks import has_format
from ...guide.files import FORMAT, FULL, GuideConfig, read_guide, write_guide
from ...guide.networks import TinyGuide
from ...guide.shape import shape_of
from ..files import next_file
from ..folders import WEIGHTS, listed, register_models, shipped_file
from .full import FullGuide

FOLDER = "guide_models"             # below the host's models folder
FAMILIES = {"sd15": comfy.supported_models.SD15, "sd2": comfy.supported_models.SD20,
            "sdxl": comfy.supported_models.SDXL}


@dataclass(frozen=True)
class LoadedGuide:
    """What the socket GUIDE_MODEL carries: the guide in the host's patcher, so that the host moves its weights."""
    config: GuideConfig
    patcher: comfy.model_patcher.ModelPatcher
    source: str
    metadata: Mapping[str, str]

    @property
    def network(self) -> nn.Module:
        return self.patcher.model


def hold_guide(config: GuideConfig, state: Mapping[str, Tensor], source: str,
               metadata: Mapping[str, str] | None = None) -> LoadedGuide:
    """Build a guide for sampling from its weights. Raises ValueError naming weights that do not fit."""
    device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    dtype = comfy.model_management.unet_dtype(device, sum(tensor.numel() for tensor in state.values()))
    dtype = torch.float16 if dtype.itemsize == 1 else dtype
    if config.kind == FULL:
        network = FullGuide(config.shape, config.unet, comfy.ops.manual_cast, dtype=dtype, device=offload)
    else:
        network = TinyGuide(config.shape, config.fed, config.negative_aware, comfy.ops.manual_cast, dtype=dtype,
                            device=offload)
    wanted = {name: tuple(weight.shape) for name, weight in network.state_dict().items()}
    given = {name: tuple(weight.shape) for name, weight in state.items()}
    if wrong := sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name)):
        raise ValueError(f"{source} is not whole: its weights do not fit what its metadata say, first {wrong[0]} "
                         f"(expected {wanted.get(wrong[0], 'none')}, found {given.get(wrong[0], 'none')}). Get the "
                         "file again.")
    network.load_state_dict(state)
    make = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    patcher = make(network.eval().requires_grad_(False), load_device=device, offload_device=offload)
    return LoadedGuide(config, patcher, source, dict(metadata or {}))


def prediction_of(model) -> str:
    """What a MODEL predicts, "eps" or "v". Raises ValueError for others (flow, EDM, x0)."""
    sampling, kinds = model.get_model_object("model_sampling"), comfy.model_sampling
    if isinstance(sampling, kinds.EPS) and not isinstance(sampling, (kinds.EDM, kinds.X0)):
        return "v" if isinstance(sampling, kinds.V_PREDICTION) else "eps"
    kind = " with ".join(base.__name__ for base in type(sampling).__bases__)
    raise ValueError(f"The MODEL samples by {kind}; guide models are for the noise of SD1.5, SD2 and SDXL (eps or v "
                     "prediction). Take away nodes that change its sampling.")


def check_fit(model, loaded: LoadedGuide) -> None:
    """Raises ValueError unless the guide was made for a base like this MODEL."""
    config = model.model.model_config.unet_config
    base, guide = shape_of(config), loaded.config.shape
    if (base.skips, base.middle, base.context_dim) != (guide.skips, guide.middle, guide.context_dim):
        raise ValueError(f"The guide {loaded.source} is for a base whose skips have {[*guide.skips, guide.middle]} "
                         f"channels and text of {guide.context_dim} ({loaded.config.family}); this MODEL has "
                         f"{[*base.skips, base.middle]} and {base.context_dim}. Load a guide for this family, or a "
                         "checkpoint of the guide's.")
    if (given := prediction_of(model)) != loaded.config.prediction:
        raise ValueError(f"The guide {loaded.source} was trained on a base that predicts {loaded.config.prediction}, "
                         f"and this MODEL predicts {given}. Load a guide for that.")


def family_of(model) -> str:
    """The family of a MODEL, by name. Raises ValueError for one that guides are not made for."""
    kind = model.model.model_config
    for name, family in FAMILIES.items():
        if isinstance(kind, family):
            return name
    raise ValueError(f"The MODEL is of the family {type(kind).__name__}; guide models are for SD1.5, SD2 and SDXL.")


def register_folder() -> None:
    """Make the host know where guide models are."""
    register_models(FOLDER)


def list_guides() -> list[str]:
    """Names for the loader: those in models/guide_models first, then the pack's own."""
    register_folder()
    return listed(FOLDER, WEIGHTS / "guides", lambda path: has_format(path, FORMAT))


def find_guide(name: str) -> Path:
    """The file behind a name of the list. Raises FileNotFoundError."""
    register_folder()
    return shipped_file(name, WEIGHTS / "guides") or Path(folder_paths.get_full_path_or_raise(FOLDER, name))


def load_guide(path: Path) -> LoadedGuide:
    """Read a guide file. Raises GuideFileError, ValueError."""
    config, state, metadata = read_guide(path)
    return hold_guide(config, state, path.name, metadata)


def save_guide(loaded: LoadedGuide, prefix: str) -> Path:
    """Write a guide into the output folder under the next free number; returns the path. Raises OSError."""
    path = next_file(prefix)
    write_guide(path, loaded.config, loaded.network.state_dict(), loaded.metadata)
    return path


def guide_text(loaded: LoadedGuide) -> str:
    """What was loaded, in a few lines."""
    config = loaded.config
    parameters = sum(weight.numel() for weight in loaded.network.parameters())
    steps = f"for {config.steps} steps (use Stage-2 Sigmas)" if config.steps else "any sampler and number of steps"
    reads = ", reads the negative prompt" if config.negative_aware else ""
    return (f"{loaded.source}: {config.kind} guide for {config.family}, {parameters / 1e6:.2f} M parameters{reads}\n"
            f"guidance {config.g_min:g} to {config.g_max:g}, {steps}, trained at {config.resolution} pixels, predicts "
            f"{config.prediction}")
