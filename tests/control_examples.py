"""A random image model of sprite world's shape and a ControlNet for it. Needs a booted host."""
from __future__ import annotations

from pathlib import Path

import comfy.controlnet
import torch
from safetensors.torch import save_file

from frozen_diffusion.modules.demo_training.controlnet import ControlBranch
from frozen_diffusion.modules.host import demo


def random_model():
    torch.manual_seed(0)
    unet = demo.fresh_unet()
    for parameter in unet.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return demo.build_model(unet.state_dict())


def random_control_net(model, folder: Path):
    """As the host loads it from a file in `folder`."""
    torch.manual_seed(1)
    branch = ControlBranch(demo.fresh_control(model.model.diffusion_model))
    for parameter in branch.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter) * parameter.requires_grad
    path = folder / "control.safetensors"
    save_file({name: value.detach().contiguous().clone() for name, value in branch.file().items()}, str(path))
    return comfy.controlnet.load_controlnet(str(path))
