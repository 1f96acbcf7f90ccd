"""The latent basis in the host: models and settings out of the ordinary, and what goes wrong outside of our code."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from comfy.controlnet import ControlBase
from comfy.samplers import sampler_object
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM, ModelSamplingDiscrete
from comfy_extras.nodes_tomesd import TomePatchModel

from frozen_diffusion.modules.basis.directions import carry, mean_basis
from frozen_diffusion.modules.basis.products import Jacobian
from frozen_diffusion.modules.basis.report import transport_text
from frozen_diffusion.modules.host import attention
from frozen_diffusion.modules.host.attention import attend_plainly
from frozen_diffusion.modules.host.basis.compute import (
    BasisRequest,
    compute_basis,
    direction_between,
    encoder_of,
    jacobian_of,
)
from frozen_diffusion.modules.host.basis.edit import EditRequest, edit
from frozen_diffusion.modules.host.guiders import guider_of
from frozen_diffusion.modules.seeding import stream
from testhost.models import as_flow, conditioning

pytestmark = pytest.mark.usefixtures("unloaded")

SIGMAS = torch.tensor([5.0, 1.0, 0.0])
NODE = {"solver": "lanczos", "tolerance": 1e-3, "seed": 0, "mask_space": "h"}


def noisy(height=16, width=16):
    return 5 * torch.randn(1, 4, height, width, generator=stream("basis edges", height, width)) / 0.18215


@pytest.fixture(scope="module")
def found(base):
    with torch.inference_mode():
        return compute_basis(base, conditioning(1), noisy(), SIGMAS, BasisRequest(rank=2))[0]


def test_an_inpainting_models_further_channels_are_held(tiny_sd15):
    """J is of the four noisy channels alone; mask and masked picture stay what the host made of them."""
    model = tiny_sd15(in_channels=9)
    ours = encoder_of(model, conditioning(1), noisy(), SIGMAS)[0]
    assert ours.x.shape[1] == 4 and ours.call.held.shape[1] == 5
    v = torch.randn(ours.x.shape, generator=stream("direction"))
    v /= v.norm()
    jacobian = Jacobian(ours.fused, ours.x, push_f=ours.plain)
    difference = Jacobian(ours.fused, ours.x, difference=True).push(v)
    torch.testing.assert_close(jacobian.push(v), difference, rtol=0, atol=2e-3 * difference.norm().item())


@pytest.mark.parametrize("kind", ["v_prediction", "eps"])
def test_a_basis_belongs_to_features_not_to_what_is_predicted(base, found, kind):
    """v-prediction and zero terminal SNR: the same encoder at the same noise level; edits convert to eps themselves."""
    model = ModelSamplingDiscrete().patch(base, kind, zsnr=False)[0]
    same = compute_basis(model, conditioning(1), noisy(), SIGMAS, BasisRequest(rank=2))[0]
    torch.testing.assert_close(same.s, found.s, rtol=1e-3, atol=0)
    zero = ModelSamplingDiscrete().patch(base, kind, zsnr=True)[0]
    basis = compute_basis(zero, conditioning(1), noisy(), SIGMAS, BasisRequest(rank=1))[0]
    rows, _ = edit(zero, conditioning(1), noisy(), SIGMAS, basis, EditRequest(strength=2, steps=1))
    assert rows.isfinite().all() and torch.equal(rows[1:2], noisy()) and not torch.equal(rows[0:1], noisy())


def test_sizes_that_are_no_squares(base):
    basis = compute_basis(base, conditioning(1), noisy(8, 24), SIGMAS, BasisRequest(rank=1))[0]
    assert basis.V.shape == (1, 4, 8, 24) and basis.U.shape[2:] == (1, 3)
    with pytest.raises(ValueError, match=r"8, 24.*16, 16"):
        edit(base, conditioning(1), noisy(), SIGMAS, basis, EditRequest())


def test_no_more_directions_than_there_are(comfy, base):
    basis, _, text = comfy.run("FrozenComputeLatentBasis", model=base, positive=conditioning(1), sigmas=SIGMAS,
                               latent={"samples": noisy(2, 4)}, rank=40, **NODE)
    assert len(basis.V) == 32 and "rank 40 was asked for; this latent has no more than 32" in text


def test_a_basis_through_the_node_refuses_networks_without_bottleneck(comfy, base):
    model = base.clone()
    model.model = type("Model", (), {"diffusion_model": torch.nn.Linear(1, 1)})()
    with pytest.raises(ValueError, match="Linear, which has no bottleneck"):
        comfy.run("FrozenComputeLatentBasis", model=model, positive=conditioning(1), sigmas=SIGMAS,
                  latent={"samples": noisy()}, rank=2, **NODE)


def test_layers_without_forward_derivative_are_differenced(comfy, base, caplog):
    """A pack that brings its own fused attention: the basis is that of the same attention written out."""
    def heads(n):
        return n.unflatten(-1, (4, -1)).transpose(1, 2)

    def fused(n, options):
        return F.scaled_dot_product_attention(*3 * [heads(n)]).transpose(1, 2).flatten(2)

    found, texts = [], []
    for patch in (fused, lambda n, options: attend_plainly(None, n, n, n, 4)):
        model = base.clone()
        model.set_model_attn1_output_patch(patch)
        basis, _, text = comfy.run("FrozenComputeLatentBasis", model=model, positive=conditioning(1), sigmas=SIGMAS,
                                   latent={"samples": noisy()}, rank=1, **NODE)
        found.append(basis)
        texts.append(text)
    torch.testing.assert_close(found[0].s, found[1].s, rtol=1e-3, atol=0)
    assert (found[0].V.flatten() @ found[1].V.flatten()).abs() > 0.999
    assert "central differences" in texts[0] and "central differences" not in texts[1]
    assert caplog.text.count("no forward derivative") == 1 and "scaled_dot_product" in caplog.text


def test_attention_takes_smaller_chunks_when_memory_ends(monkeypatch):
    q, k, v = (torch.randn(2, 100, 32, generator=stream("attention", name)) for name in "qkv")
    whole, real, sizes = attend_plainly(None, q, k, v, 4), attention.attend_chunk, []

    def small_device(q, k, v, most=40):
        sizes.append(q.shape[2])
        if q.shape[2] > most:
            raise attention.comfy.model_management.OOM_EXCEPTION("out of memory")
        return real(q, k, v)

    monkeypatch.setattr(attention, "attend_chunk", small_device)
    torch.testing.assert_close(attend_plainly(None, q, k, v, 4), whole)
    assert max(sizes) == 100 and min(sizes) <= 32
    monkeypatch.setattr(attention, "attend_chunk", lambda q, k, v: small_device(q, k, v, 1))
    with pytest.raises(attention.comfy.model_management.OOM_EXCEPTION):
        attend_plainly(None, q, k, v, 4)


def test_what_is_said_on_the_way_and_after(comfy, base, found):
    lines = []
    compute_basis(base, conditioning(1), noisy(), SIGMAS, BasisRequest(rank=2), report_progress=lines.append)
    assert "residuals up to" in lines[0] and "converged" in lines[-1]
    text = comfy.run("FrozenBasisReport", basis=found)[1]
    assert f"gap from each s to the next: {float(found.gaps[0]):.1%}" in text
    official = comfy.run("FrozenComputeLatentBasis", model=base, positive=conditioning(1), sigmas=SIGMAS,
                         latent={"samples": noisy(8, 8)}, rank=1, **{**NODE, "solver": "official"})[2]
    assert "degrees" not in official


def test_an_edit_on_another_model_is_told(base, found, tiny_sd15):
    other = tiny_sd15(seed=3)
    _, text = edit(other, conditioning(1), noisy(), SIGMAS, found, EditRequest(count=1, steps=1))
    assert "computed on another model" in text and "adds no noise" in text
    _, text = edit(base, conditioning(1), noisy(), SIGMAS, found, EditRequest(count=1, steps=1))
    assert "another model" not in text


def test_a_transport_between_models_is_told(found):
    at_home = carry(found, 0, found)[1]
    assert transport_text(found, found, at_home) == "coverage 1.00 (green)"
    other = replace(found, provenance={**found.provenance, "model": "another.model:1.0"})
    assert "different models" in transport_text(found, other, at_home)
    assert "red" in transport_text(found, found, replace(at_home, coverage=0.1))


class Adapter(ControlBase):
    """A T2I-Adapter: what it adds to the encoder's blocks, the last one first, as the host takes them."""

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        parts = [0.5 * torch.randn(1, channels, side, side, generator=stream("adapter", side))
                 for channels, side in ((32, 16), (64, 8))]
        return {"input": [parts[1], None, None, None, parts[0]], "middle": [], "output": []}

    def copy(self):
        return self


def test_what_an_adapter_adds_to_the_encoder_counts(base):
    """T2I-Adapters act before the middle block, so J sees them: h is that of the host's own forward."""
    prompt, seen = conditioning(1, control=Adapter()), []
    ours = encoder_of(base, prompt, noisy(), SIGMAS)[0]
    handle = base.model.diffusion_model.middle_block[-1].register_forward_hook(
        lambda _, inputs, output: seen.append(output.clone()))
    try:
        guider_of(base, prompt).sample(torch.zeros_like(noisy()), noisy(), sampler_object("euler"),
                                       torch.tensor([5.0, 0.0]), disable_pbar=True, seed=0)
    finally:
        handle.remove()
    torch.testing.assert_close(ours.fused(ours.x), seen[0], rtol=1e-5, atol=1e-4)
    plain = encoder_of(base, conditioning(1), noisy(), SIGMAS)[0]
    assert not torch.allclose(ours.fused(ours.x), plain.fused(plain.x), atol=1e-2)


def test_features_that_overflow_are_refused_everywhere(base, found):
    model = base.clone()
    model.set_model_input_block_patch(lambda h, options: h * torch.nan)
    for call in (lambda: compute_basis(model, conditioning(1), noisy(), SIGMAS, BasisRequest(rank=1)),
                 lambda: direction_between(model, conditioning(1), conditioning(2), noisy(), SIGMAS, found)):
        with pytest.raises(ValueError, match="h is not finite"):
            call()


def test_patches_that_ask_for_the_pictures_size_act_on_the_encoder(base):
    """HyperTile and token merging of the host read it where the host's own forward puts it."""
    tiled = HyperTile.execute(base, tile_size=1, swap_size=2, max_depth=0, scale_depth=False)[0]
    for model in (tiled, TomePatchModel.execute(base, ratio=0.5)[0]):
        ours = encoder_of(model, conditioning(1), noisy(64, 64), SIGMAS)[0]
        plain = encoder_of(base, conditioning(1), noisy(64, 64), SIGMAS)[0]
        assert not torch.equal(ours.fused(ours.x), plain.fused(plain.x))


def test_an_interrupt_ends_a_product_that_runs_nothing_anew(base):
    """The pull takes kept activations: no layer of the host's looks at the interrupt there."""
    jacobian = jacobian_of(encoder_of(base, conditioning(1), noisy(), SIGMAS)[0])
    jacobian.pull(torch.ones_like(jacobian.h))
    attention.comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(attention.comfy.model_management.InterruptProcessingException):
        jacobian.pull(torch.ones_like(jacobian.h))


@pytest.mark.parametrize("level, gamma", [(14.6, 0.5), (3.8, 1.0), (1.0, 2.0)])
def test_guidance_goes_farther_at_low_noise_by_the_released_table(base, found, level, gamma):
    """t is about 999, 720 and 360; other methods keep to the strength."""
    sigmas = torch.tensor([level, 0.0])
    request = EditRequest(strength=3, count=1, steps=2)
    by_noise, text = edit(base, conditioning(1), noisy(), sigmas, found, replace(request, by_noise=True))
    assert torch.equal(by_noise, edit(base, conditioning(1), noisy(), sigmas, found,
                                      replace(request, strength=3 * gamma))[0])
    assert f"strengths [{3 * gamma}]" in text
    added = replace(request, method="addition")
    assert torch.equal(*(edit(base, conditioning(1), noisy(), sigmas, found, each)[0]
                         for each in (added, replace(added, by_noise=True))))


def test_a_prompt_direction_in_a_basis_from_elsewhere_is_told(base, found):
    away = replace(found, t=found.t - 200, provenance={**found.provenance, "model": "another.model:1.0"})
    text = direction_between(base, conditioning(1), conditioning(2), noisy(), SIGMAS, away)[1]
    assert "computed at t" in text and "another model" in text
    assert "Note" not in direction_between(base, conditioning(1), conditioning(2), noisy(), SIGMAS, found)[1]


def test_means_of_bases_that_do_not_belong_together(found):
    with pytest.raises(ValueError, match=r"different shapes: \[4, 16, 16\], \[4, 15, 16\]"):
        mean_basis([found, replace(found, V=found.V[:, :, :15])])
    with pytest.raises(ValueError, match="different models"):
        mean_basis([found, replace(found, provenance={"model": "another.model:1.0"})])
    script = replace(found, provenance={})                       # nothing is known of its model
    for bases in ([found, script], [script, found]):
        assert not {"prompt", "latent"} & set(mean_basis(bases).provenance)
    assert mean_basis([found, found]).provenance["latent"] == found.provenance["latent"]


def test_a_report_with_a_contact_sheet(comfy, found):
    """Two directions with three pictures each: a row a direction, below the rest."""
    pictures = torch.rand(6, 20, 30, 3, generator=stream("edits"))
    plain, with_sheet = (comfy.run("FrozenBasisReport", basis=found, **more)[0] for more in ({}, {"edits": pictures}))
    assert with_sheet.shape[1] == plain.shape[1] + 2 * 20 + 2
    sheet = with_sheet[0, plain.shape[1]:]
    torch.testing.assert_close(sheet[22:42, 32:62], pictures[4], rtol=0, atol=1 / 255)


def test_flow_and_edm_sampling_on_a_u_net_are_refused(base):
    edm = ModelSamplingContinuousEDM().patch(base, "v_prediction", 120.0, 0.002)[0]
    for model in (as_flow(base), edm):
        with pytest.raises(ValueError, match="samples by ModelSampling(DiscreteFlow|ContinuousEDM).*flow or EDM"):
            compute_basis(model, conditioning(1), noisy(), SIGMAS, BasisRequest(rank=1))
