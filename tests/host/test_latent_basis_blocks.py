"""The latent basis in the host: h at other blocks of the U-Net, and the U-Net at another timestep than the latent."""
from __future__ import annotations

import pytest
import torch
from comfy.controlnet import ControlBase
from comfy.samplers import sampler_object
from comfy_extras.nodes_freelunch import FreeU

from frozen_diffusion.modules.host.attention import attend
from frozen_diffusion.modules.host.basis.compute import encoder_of, jacobian_of
from frozen_diffusion.modules.host.basis.encoder import copy_encoder
from frozen_diffusion.modules.host.guiders import guider_of
from frozen_diffusion.modules.seeding import stream
from testhost.models import conditioning

pytestmark = pytest.mark.usefixtures("unloaded")

SIGMAS = torch.tensor([5.0, 1.0, 0.0])
NODE = {"rank": 1, "solver": "lanczos", "tolerance": 1e-3, "seed": 0, "mask_space": "h"}


def noisy(name="noisy", size=16, sigma=5.0):
    return sigma * torch.randn(1, 4, size, size, generator=stream("basis blocks", name)) / 0.18215


def computed(comfy, model, latent=None, **changes):
    return comfy.run("FrozenComputeLatentBasis", model=model, positive=conditioning(1), sigmas=SIGMAS,
                     latent={"samples": noisy(size=8) if latent is None else latent}, **{**NODE, **changes})[0]


@pytest.fixture(scope="module")
def found(comfy, base):
    """A basis of the middle block."""
    return computed(comfy, base)


class Everywhere(ControlBase):
    """A ControlNet that adds to every block, the last of the host's lists first, as the host takes them."""

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        skips = [(32, 16), (32, 16), (32, 16), (32, 8), (64, 8), (64, 8), (64, 4), (128, 4), (128, 4), (128, 2),
                 (128, 2), (128, 2)]
        parts = [0.3 * torch.randn(1, channels, side, side, generator=stream("control", number))
                 for number, (channels, side) in enumerate(skips)]
        return {"input": parts[::-1], "middle": [parts[-1].flip(1)], "output": list(parts)}

    def copy(self):
        return self


def layer_of(unet, block):
    side, _, number = block.partition(" ")
    return unet.middle_block[-1] if side == "middle" else getattr(unet, f"{side}_blocks")[int(number)][-1]


def output_of(model, positive, block):
    """A block's output in the host's own forward, with torch's attention as ours."""
    seen, model = [], model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = attend
    handle = layer_of(model.model.diffusion_model, block).register_forward_hook(
        lambda _, inputs, output: seen.append(output.clone()))
    try:
        guider_of(model, positive).sample(torch.zeros_like(noisy()), noisy(), sampler_object("euler"),
                                          torch.tensor([5.0, 0.0]), disable_pbar=True, seed=0)
    finally:
        handle.remove()
    return seen[0]


@pytest.mark.fault("G5")
@pytest.mark.parametrize("block", ["input 0", "input 8", "middle", "output 0", "output 5", "output 11"])
def test_h_is_any_blocks_output(comfy, base, block):
    """Bit-equal to the host's forward, with ControlNet, adapters and other nodes' patches; the rest is not copied."""
    model = comfy.run(FreeU, model=base, b1=1.4, b2=1.4, s1=0.5, s2=0.5)[0]
    model.set_model_input_block_patch(lambda h, options: 1.1 * h)
    prompt = conditioning(1, control=Everywhere())
    ours = encoder_of(model, prompt, noisy(), SIGMAS, block)[0]
    h = ours.fused(ours.x)
    assert torch.equal(h, output_of(model, prompt, block))
    torch.testing.assert_close(ours.plain(ours.x), h, rtol=1e-4, atol=1e-3)
    side, _, number = block.partition(" ")
    unet, wanted = copy_encoder(model, block), {"input": 12, "output": 0, side: int(number or 0) + 1}
    assert (len(unet.input_blocks), len(unet.output_blocks)) == (wanted["input"], wanted["output"])


@pytest.mark.fault("G5")
@pytest.mark.parametrize("block", ["input 5", "output 3"])
def test_the_jacobian_is_that_blocks(base, block):
    """Forward mode, backward mode and differences agree through skips and ControlNet."""
    jacobian = jacobian_of(encoder_of(base, conditioning(1, control=Everywhere()), noisy(), SIGMAS, block)[0])
    assert jacobian.check_adjoint() < 1e-3
    v = torch.randn(jacobian.x.shape, generator=stream("direction"))
    pushed = jacobian.push(v / v.norm())
    jacobian.difference = True
    torch.testing.assert_close(pushed, jacobian.push(v / v.norm()), rtol=0, atol=2e-3 * pushed.norm().item())


@pytest.mark.fault("G5")
def test_bases_of_different_blocks_are_not_mixed(comfy, base, found):
    """Both blocks give h of the same shape, so nothing else would tell. In x they go together."""
    one, other = found, computed(comfy, base, block="output 0")
    assert one.U.shape == other.U.shape and (one.block, other.block) == ("middle", "output 0")
    path = comfy.run("FrozenSaveBasis", basis=other, filename_prefix="latent_bases/block")[0]
    assert comfy.run("FrozenLoadBasis", file=path)[0].block == "output 0"
    for call in (lambda: comfy.run("FrozenTransportBasis", basis=one, direction=0, target=other),
                 lambda: comfy.run("FrozenGlobalBasis", basis=one, basis_2=other),
                 lambda: comfy.run("FrozenBasisReport", basis=one, basis_2=other)):
        with pytest.raises(ValueError, match="different blocks of the U-Net: middle, output 0"):
            call()
    carried, coverage, _ = comfy.run("FrozenTransportBasis", basis=one, direction=0, target=other, space="x")
    assert coverage == pytest.approx(abs(float((one.V * other.V).sum())), abs=1e-4) and carried.block == "output 0"
    assert "h at output 0" in comfy.run("FrozenBasisReport", basis=other)[1]


@pytest.mark.fault("G5")
def test_prompt_directions_at_other_blocks(comfy, base):
    """J^T (h_b - h_a) of the block that is asked for; a basis must be of the same."""
    def towards(**more):
        return comfy.run("FrozenPromptDirection", model=base, positive_a=conditioning(1), positive_b=conditioning(2),
                         latent={"samples": noisy()}, sigmas=SIGMAS, **more)[0]

    found = towards(block="input 4")
    (one, _), (two, _) = (encoder_of(base, conditioning(seed), noisy(), SIGMAS, "input 4") for seed in (1, 2))
    v = jacobian_of(one).pull(two.fused(two.x) - one.fused(one.x))
    torch.testing.assert_close(found.V, v / v.norm(), rtol=0, atol=1e-4)
    assert found.block == "input 4" and found.U.shape == (1, 64, 8, 8)
    with pytest.raises(ValueError, match="of the block input 4, and block is middle. Set block to input 4"):
        towards(basis=found)


def test_blocks_that_are_not_there_are_refused(comfy, tiny_sdxl):
    with pytest.raises(ValueError, match="block is output 9; the U-Net of this MODEL has output 0 to output 8"):
        computed(comfy, tiny_sdxl(), block="output 9")


def middle_at(model, x, timestep):
    """h of the host's U-Net called by hand, x in its own scale."""
    unet, seen = model.model.diffusion_model, []
    handle = unet.middle_block[-1].register_forward_hook(lambda _, inputs, output: seen.append(output.clone()))
    try:
        unet(x, torch.tensor([timestep]), conditioning(1)[0][0],
             transformer_options={"optimized_attention_override": attend})
    finally:
        handle.remove()
    return seen[0]


@pytest.mark.fault("G5")
def test_latent_and_timestep_can_be_told_apart(base):
    """The released analysis' controls: one latent while the U-Net's t changes, another latent while it stays."""
    late = noisy("late", sigma=1.0)
    for latent, sigma, timestep in ((noisy(), 5.0, 400.0), (late, 1.0, 999.0)):
        ours = encoder_of(base, conditioning(1), latent, torch.tensor([sigma, 0.0]), network_timestep=timestep)[0]
        own = encoder_of(base, conditioning(1), latent, torch.tensor([sigma, 0.0]))[0]
        x = latent * 0.18215 / (1 + sigma ** 2) ** 0.5
        torch.testing.assert_close(ours.fused(ours.x), middle_at(base, x, timestep), rtol=1e-4, atol=1e-4)
        assert torch.equal(ours.x, own.x) and not torch.allclose(ours.fused(ours.x), own.fused(own.x), atol=1e-2)


@pytest.mark.fault("G5")
def test_a_basis_at_another_timestep_says_so(comfy, base, found):
    same, told = found, computed(comfy, base, network_timestep=400.0)
    assert (same.network_timestep, told.network_timestep) == (same.t, 400.0) and told.t == same.t
    assert abs(float((same.V * told.V).sum())) < 0.999
    assert "given timestep 400" in comfy.run("FrozenBasisReport", basis=told)[1]
    with pytest.raises(ValueError, match="given different timesteps"):
        comfy.run("FrozenGlobalBasis", basis=same, basis_2=told)
