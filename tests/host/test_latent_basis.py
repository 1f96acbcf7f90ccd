"""The latent basis in the host: the encoder's derivative, what is recorded, editing, and the wrong inputs."""
from __future__ import annotations

import comfy.samplers
import pytest
import torch
from comfy import model_management
from comfy_extras.nodes_freelunch import FreeU

from frozen_diffusion.modules.basis.products import Jacobian
from frozen_diffusion.modules.host.attention import attend, attend_plainly
from frozen_diffusion.modules.host.basis.compute import BasisRequest, compute_basis, direction_between, encoder_of
from frozen_diffusion.modules.host.basis.edit import EditRequest, edit
from frozen_diffusion.modules.host.basis.encoder import Encoder, copy_encoder, record_call
from frozen_diffusion.modules.seeding import stream
from testhost.models import conditioning, sample

pytestmark = pytest.mark.usefixtures("unloaded")

SIZE = 16
SIGMAS = torch.tensor([5.0, 1.0, 0.0])


@pytest.fixture(scope="module")
def found(base):
    with torch.inference_mode():
        return compute_basis(base, conditioning(1), noisy(), SIGMAS, BasisRequest(rank=3))[0]


def noisy(name="noisy", size=SIZE):
    return 5 * torch.randn(1, 4, size, size, generator=stream("basis host", name)) / 0.18215


def middle_of(model, latent, sigma, attention=None):
    """h of the host's own forward, by a hook on the middle block's last layer; `attention` instead of its own."""
    seen, model = [], model.clone()
    if attention is not None:
        model.model_options["transformer_options"]["optimized_attention_override"] = attention
    layer = model.model.diffusion_model.middle_block[-1]
    handle = layer.register_forward_hook(lambda _, inputs, output: seen.append(output.clone()))
    try:
        guider = comfy.samplers.CFGGuider(model)
        guider.inner_set_conds({"positive": conditioning(1)})
        guider.set_cfg(1.0)
        guider.sample(torch.zeros_like(latent), latent, comfy.samplers.sampler_object("euler"),
                      torch.tensor([sigma, 0.0]), disable_pbar=True, seed=0)
    finally:
        handle.remove()
    return seen[0]


def encoder(model, latent=None, positive=None):
    return encoder_of(model, positive or conditioning(1), noisy() if latent is None else latent, SIGMAS)[0]


def test_the_encoder_is_the_hosts(base):
    """I4: h bit-equal to the host's forward with the same attention; the decoder is not even there.

    The host's own attention is another kernel (on a CPU it takes the keys in chunks), so with that h is only near.
    """
    ours = encoder(base)
    call = ours.call
    assert torch.equal(ours.fused(call.x), middle_of(base, noisy(), 5.0, attend))
    assert torch.equal(ours.plain(call.x), middle_of(base, noisy(), 5.0, attend_plainly))
    for h in (ours.plain(call.x), middle_of(base, noisy(), 5.0)):
        torch.testing.assert_close(ours.fused(call.x), h, rtol=1e-5, atol=1e-4)
    assert len(ours.unet.output_blocks) == 0
    torch.testing.assert_close(call.x, noisy() * 0.18215 / 26 ** 0.5)


def test_patches_and_loras_of_the_model_count(comfy, base):
    h = encoder(base).fused(encoder(base).x)
    patched = base.clone()
    patched.set_model_input_block_patch(lambda h, options: 1.1 * h)
    assert not torch.allclose(encoder(patched).fused(encoder(patched).x), h, atol=1e-2)
    after = comfy.run(FreeU, model=base, b1=1.4, b2=1.4, s1=0.5, s2=0.5)[0]
    torch.testing.assert_close(encoder(after).fused(encoder(after).x), h, rtol=0, atol=0)
    name = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    lora = base.clone()
    weight = base.model.state_dict()[name]
    lora.add_patches({name: (torch.ones_like(weight),)}, 0.1)
    assert not torch.allclose(encoder(lora).fused(encoder(lora).x), h, atol=1e-3)


def test_products_are_those_of_one_jacobian_under_inference_mode(base):
    """I1, I2, I12: forward and backward mode agree with differences, inside the host's inference mode too."""
    with torch.inference_mode():
        ours = encoder(base)
        jacobian = Jacobian(ours.fused, ours.x, push_f=ours.plain, pull_f=ours.fused)
        assert jacobian.check_adjoint() < 1e-4
        v = torch.randn(ours.x.shape, generator=stream("direction"))
        v /= v.norm()
        pushed = jacobian.push(v)
        difference = Jacobian(ours.fused, ours.x, difference=True).push(v)
    torch.testing.assert_close(pushed, difference, rtol=0, atol=2e-3 * pushed.norm().item())


def test_a_basis_is_orthonormal_and_maps_as_it_says(base, found):
    """I5 through the node's path."""
    flat, image = found.V.flatten(1), found.U.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(image @ image.T, torch.eye(3), rtol=0, atol=1e-5)
    ours = encoder(base)
    jacobian = Jacobian(ours.fused, ours.x, push_f=ours.plain)
    for v, u, s in zip(found.V, found.U, found.s, strict=True):
        torch.testing.assert_close(jacobian.push(v[None])[0], s * u, rtol=0, atol=1e-3 * found.s[0].item())
    assert (found.s.diff() <= 0).all() and found.provenance["converged"] == "True"
    assert found.sigma == 5.0 and 780 < found.t < 810


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_are_copied_in_full(tiny_sd15, found, dtype):
    with torch.inference_mode():
        model = tiny_sd15(dtype=dtype)
        half = compute_basis(model, conditioning(1), noisy(), SIGMAS, BasisRequest(rank=3))[0]
    cosines = torch.linalg.svdvals(half.V.flatten(1) @ found.V.flatten(1).T)
    assert cosines.min() > 0.9 and half.V.dtype == torch.float32


def test_sdxl_has_a_basis_too(tiny_sdxl):
    model = tiny_sdxl()
    found, last = compute_basis(model, conditioning(1), noisy(size=8) * 0.18215 / 0.13025, SIGMAS, BasisRequest(rank=1))
    assert found.V.shape == (1, 4, 8, 8) and last.converged


def test_masks_keep_directions_inside(base):
    mask = torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    inside = compute_basis(base, conditioning(1), noisy(), SIGMAS, BasisRequest(rank=2, mask_space="x"), mask)[0]
    assert inside.V[..., 8:, :].abs().max() < 1e-4 and inside.V[..., :8, :].norm() > 1
    looked = compute_basis(base, conditioning(1), noisy(), SIGMAS, BasisRequest(rank=2, mask_space="h"), mask)[0]
    assert looked.U[..., 1:, :].abs().max() < 1e-4


def test_edits_in_both_directions_in_one_batch(base, found):
    """Strength 0 is the latent bit for bit; one batch equals single runs; the edit moves along v."""
    with torch.inference_mode():
        rows, text = edit(base, conditioning(1), noisy(), SIGMAS, found, EditRequest(direction=1, strength=2, steps=2))
        single, _ = edit(base, conditioning(1), noisy(), SIGMAS, found,
                         EditRequest(direction=1, strength=2, count=1, steps=2))
    assert rows.shape == (3, 4, SIZE, SIZE) and torch.equal(rows[1:2], noisy()) and "strengths" in text
    torch.testing.assert_close(rows[2:], single, rtol=1e-4, atol=1e-3)
    every, _ = edit(base, conditioning(1), noisy(), SIGMAS, found, EditRequest(direction=-1, count=3, steps=1))
    assert len(every) == 9


def test_addition_is_in_the_scale_of_the_unet(base, found):
    """x_hat' = sqrt(1 + sigma^2) (x_t + gamma v), and the latent's own factor."""
    rows, _ = edit(base, conditioning(1), noisy(), SIGMAS, found,
                   EditRequest(strength=3.0, count=1, method="addition"))
    torch.testing.assert_close(rows, noisy() + 26 ** 0.5 * 3.0 * found.V[:1] / 0.18215, rtol=1e-4, atol=1e-3)
    again, _ = edit(base, conditioning(1), noisy(), SIGMAS, found,
                    EditRequest(strength=3.0, count=3, method="addition, normalised"))
    assert torch.equal(again[1:2], noisy()) and again.isfinite().all()
    kept, text = edit(base, conditioning(1), noisy(), SIGMAS, found,
                      EditRequest(strength=60.0, count=1, method="addition", keep_norm=True))
    torch.testing.assert_close(kept.norm(), noisy().norm(), rtol=1e-4, atol=0)
    assert "norm changed" in text


def test_directions_from_prompts(base, found):
    one, text = direction_between(base, conditioning(1), conditioning(2), noisy(), SIGMAS, None)
    assert one.V.shape == (1, 4, SIZE, SIZE) and "steepest" in text
    within, text = direction_between(base, conditioning(1), conditioning(2), noisy(), SIGMAS, found)
    inside = found.V.flatten(1) @ within.V[0].flatten()
    torch.testing.assert_close(inside.norm(), torch.tensor(1.0), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="same h"):
        direction_between(base, conditioning(1), conditioning(1), noisy(), SIGMAS, None)


def test_bases_through_the_nodes(comfy, base, found, tmp_path):
    """Report, mean, transport, saving and loading."""
    other = comfy.run("FrozenComputeLatentBasis", model=base, positive=conditioning(1), latent={"samples": noisy("b")},
                      sigmas=SIGMAS, rank=3, solver="lanczos", tolerance=1e-3, seed=0, mask_space="h", start=found)[0]
    plot, text = comfy.run("FrozenBasisReport", basis=found, basis_2=other)
    assert plot.ndim == 4 and "random ones" in text
    mean = comfy.run("FrozenGlobalBasis", basis=found, basis_2=found)[0]
    torch.testing.assert_close(torch.linalg.svdvals(mean.U.flatten(1) @ found.U.flatten(1).T), torch.ones(3),
                               rtol=0, atol=1e-4)
    itself, coverage, report = comfy.run("FrozenTransportBasis", basis=found, direction=2, target=found)
    assert coverage == pytest.approx(1, abs=1e-4) and report == "coverage 1.00 (green)"
    torch.testing.assert_close(itself.V[0], found.V[2], rtol=0, atol=1e-4)
    torch.testing.assert_close(itself.U[0], found.U[2], rtol=0, atol=1e-4)
    path = comfy.run("FrozenSaveBasis", basis=other, filename_prefix="latent_bases/test")[0]
    assert torch.equal(comfy.run("FrozenLoadBasis", file=path)[0].V, other.V)


def test_the_model_is_only_read(base):
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    plain = sample(base, 1)
    compute_basis(base, conditioning(1), noisy(), SIGMAS, BasisRequest(rank=1))
    assert all(torch.equal(value, before[name]) for name, value in base.model.state_dict().items())
    assert torch.equal(sample(base, 1), plain) and not base.wrappers


@pytest.mark.parametrize("break_it", ["cancel", "error"])
def test_cancelling_leaves_nothing_behind(base, monkeypatch, break_it):
    from frozen_diffusion.modules.host.basis import encoder as module
    calls = []

    def interrupt():
        calls.append(1)
        if len(calls) > 5:
            raise model_management.InterruptProcessingException() if break_it == "cancel" else RuntimeError("no memory")

    monkeypatch.setattr(module.comfy.model_management, "throw_exception_if_processing_interrupted", interrupt)
    with pytest.raises((model_management.InterruptProcessingException, RuntimeError)):
        compute_basis(base, conditioning(1), noisy(), SIGMAS, BasisRequest(rank=2))
    monkeypatch.undo()
    assert not base.wrappers
    assert compute_basis(base, conditioning(1), noisy(), SIGMAS, BasisRequest(rank=1))[1].converged


def test_what_has_no_basis_is_refused(base, found):
    text = conditioning(1)

    def basis(latent=None, sigmas=SIGMAS, rank=2):
        return compute_basis(base, text, noisy() if latent is None else latent, sigmas, BasisRequest(rank=rank))

    for call, words in (
            (lambda: basis(sigmas=torch.tensor([0.0])), "fully denoised"),
            (lambda: basis(sigmas=torch.tensor([])), "fully denoised"),
            (lambda: basis(sigmas=torch.tensor([99.0, 0.0])), "noise level is 99"),
            (lambda: basis(noisy().repeat(2, 1, 1, 1)), "batch of 2"),
            (lambda: basis(torch.full((1, 4, SIZE, SIZE), torch.nan)), "not finite"),
            (lambda: basis(torch.zeros(1, 4, SIZE, SIZE)), "no signal"),
            (lambda: edit(base, text, noisy(), SIGMAS, found, EditRequest(direction=3)), "directions 0 to 2"),
            (lambda: edit(base, text, noisy().repeat(3, 1, 1, 1), SIGMAS, found, EditRequest()), "batch of 3"),
            (lambda: edit(base, text, noisy() * torch.nan, SIGMAS, found, EditRequest()), "not finite"),
            (lambda: direction_between(base, text, conditioning(2), noisy() * torch.nan, SIGMAS, found), "not finite"),
            (lambda: edit(base, text, noisy(size=24), SIGMAS, found, EditRequest()), "this size"),
            (lambda: edit(base, text, noisy(), torch.tensor([0.0]), found, EditRequest()), "fully denoised")):
        with pytest.raises(ValueError, match=words):
            call()
    assert len(basis(rank=1)[0].V) == 1


def test_areas_are_refused_because_they_mix_calls(base):
    regional = [*conditioning(1), *conditioning(2, area=(8, 8, 0, 0), strength=1.0)]
    with pytest.raises(ValueError, match="one prompt for the whole picture"):
        record_call(base, regional, noisy(), 5.0)


def test_the_encoders_copy_is_private(base):
    copy = copy_encoder(base)
    name, weight = next(iter(copy.named_parameters()))
    weight.data.zero_()
    assert base.model.diffusion_model.state_dict()[name].any() and isinstance(encoder(base), Encoder)
