"""The Jacobian as a linear map, latent_basis.md 2.10 and section 8, I1, I2, I12."""
from __future__ import annotations

import pytest
import torch
from basis_examples import CHANNELS, SIZE, Encoder, dense, latent, normal

from frozen_diffusion.modules.basis.lanczos import lanczos
from frozen_diffusion.modules.basis.products import Jacobian


def test_pushed_columns_are_those_of_backward_mode():
    """I1."""
    f, x = Encoder(torch.float64), latent(dtype=torch.float64)
    jacobian = Jacobian(f, x)
    expected = torch.func.jacrev(f)(x).reshape(jacobian.m, jacobian.n).detach()
    assert (jacobian.n, jacobian.m) == (192, 128) and jacobian.h.shape == (1, 8, 4, 4)
    torch.testing.assert_close(dense(jacobian), expected, atol=1e-12, rtol=0)
    u = normal(1, 8, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(jacobian.pull(u).flatten(), u.flatten() @ expected, atol=1e-12, rtol=0)
    assert jacobian.products == 193


@pytest.mark.parametrize("keep", [False, True])
def test_the_two_products_are_adjoint(keep):
    """I2, with activations kept and not."""
    jacobian = Jacobian(Encoder(), latent(), keep=keep)
    assert jacobian.check_adjoint() < 1e-5 and jacobian.check_adjoint(1) < 1e-5
    assert jacobian.products == 4


def test_different_functions_for_the_two_ways():
    """As fused attention has no forward mode, `push` and `pull` may have kernels of their own."""
    f, calls = Encoder(), []

    def counted(name):
        return lambda x: calls.append(name) or f(x)

    jacobian = Jacobian(f, latent(), push_f=counted("push"), pull_f=counted("pull"))
    v = jacobian.pull(jacobian.push(latent(1)))
    assert calls == ["push", "pull"]
    plain = Jacobian(f, latent())
    assert torch.equal(v, plain.pull(plain.push(latent(1))))


def test_kept_activations_give_the_same_from_one_forward_pass():
    calls, f = [], Encoder()
    jacobian = Jacobian(f, latent(), pull_f=lambda x: calls.append(1) or f(x), keep=True)
    u = [normal(1, 8, 4, 4, seed=seed) for seed in range(3)]
    kept = [jacobian.pull(one) for one in u]
    assert len(calls) == 1
    for one, v in zip(u, kept, strict=True):
        torch.testing.assert_close(v, Jacobian(f, latent()).pull(one))


def test_other_weights_in_one_product_are_found_out():
    f, other = Encoder(), Encoder()
    with torch.no_grad():
        other.down += 0.2 * normal(*other.down.shape, seed=9) * other.down.std()
    with pytest.raises(RuntimeError, match="weight buffer that is used again"):
        Jacobian(f, latent(), pull_f=other).check_adjoint()


def test_a_solver_finds_out_too():
    """Without the check at the start: weights that change under a run are noticed at the step where it happens."""
    f, others = Encoder(), Encoder()
    with torch.no_grad():
        others.out.copy_(normal(*others.out.shape, seed=9))
    steps = []
    jacobian = Jacobian(f, latent(), pull_f=lambda x: (f if len(steps) < 3 else others)(x))
    with pytest.raises(RuntimeError, match="do not agree"):
        for step in lanczos(jacobian, 2):
            steps.append(step)
    assert len(steps) == 3


def test_masks_in_x_and_h():
    """Spec 9.3: J M and M J, and both at once."""
    x_mask, h_mask = torch.zeros(SIZE, SIZE), torch.zeros(4, 4)
    x_mask[2:5, 3:] = 1.0
    x_mask[2, 3] = 0.5
    h_mask[1:, :2] = 1.0
    whole, masked = Jacobian(Encoder(), latent()), Jacobian(Encoder(), latent(), x_mask=x_mask, h_mask=h_mask)
    mx = x_mask.expand(CHANNELS, -1, -1).flatten()
    mh = h_mask.expand(8, -1, -1).flatten()
    expected = mh[:, None] * dense(whole) * mx
    torch.testing.assert_close(dense(masked), expected)
    u = normal(1, 8, 4, 4)
    torch.testing.assert_close(masked.pull(u).flatten(), u.flatten() @ expected, atol=1e-6, rtol=1e-5)
    assert masked.check_adjoint() < 1e-5


@pytest.mark.parametrize("mask", [torch.ones(4, 4), torch.zeros(8, 8), torch.full((8, 8), torch.nan)],
                         ids=["other size", "empty", "nan"])
def test_wrong_masks_are_refused(mask):
    with pytest.raises(ValueError, match="[Mm]ask"):
        Jacobian(Encoder(), latent(), x_mask=mask)


def test_central_differences():
    """Spec 2.10, fallback (ii)."""
    f, v = Encoder(), normal(1, CHANNELS, SIZE, SIZE, seed=1)
    exact = Jacobian(f, latent()).push(v / v.norm())
    jacobian = Jacobian(f, latent(), difference=True)
    error = (jacobian.push(v / v.norm()) - exact).norm() / exact.norm()
    assert 0 < error < 1e-3 and jacobian.check_adjoint() < 1e-3
    with pytest.raises(ValueError, match="float32"):
        Jacobian(f.bfloat16(), latent().bfloat16(), difference=True)


def test_half_precision_keeps_small_tangents():
    """Spec 7.15: a unit vector of 16384 numbers has entries of 0.008, and their products underflow in float16."""
    x = normal(1, 4, 64, 64).half()
    tiny = 1e-5
    jacobian = Jacobian(lambda x: x * tiny, x)
    v = normal(1, 4, 64, 64, seed=1)
    v = v / v.norm()
    assert jacobian.push(v).dtype == torch.float32
    torch.testing.assert_close(jacobian.push(v), v * tiny, atol=2e-8, rtol=0.02)
    torch.testing.assert_close(jacobian.pull(v), v * tiny, atol=2e-8, rtol=0.02)


def test_in_inference_mode_with_weights_made_inside():
    """I12."""
    modes = set()
    with torch.inference_mode():
        f = Encoder()
        jacobian = Jacobian(lambda x: modes.add(torch.is_inference_mode_enabled()) or f(x), latent())
        assert next(Encoder().parameters()).is_inference() and next(Encoder().parameters()).requires_grad
        *_, inside = lanczos(jacobian, 3)
        difference = Jacobian(Encoder(), latent(), difference=True).push(latent(1))
        assert torch.is_inference_mode_enabled()
    *_, outside = lanczos(Jacobian(Encoder(), latent()), 3)
    assert outside.found.s[0] > 0.1 and modes == {False}
    assert torch.equal(inside.found.V.clone(), outside.found.V) and torch.equal(inside.found.s.clone(), outside.found.s)
    assert torch.equal(difference.clone(), Jacobian(Encoder(), latent(), difference=True).push(latent(1)))


def test_the_callers_mode_is_left_as_it_is():
    """A generator must not carry its own mode to whoever asks for the next record."""
    with torch.inference_mode():
        for _ in lanczos(Jacobian(Encoder(), latent()), 2):
            assert torch.is_inference_mode_enabled()
    for _ in lanczos(Jacobian(Encoder(), latent()), 2):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(("x", "words"), [
    (torch.zeros(1, 3, 8, 8), "no signal"), (torch.full((1, 3, 8, 8), 2.0), "no signal"),
    (torch.full((1, 3, 8, 8), torch.nan), "not finite"), (torch.randn(2, 3, 8, 8), "one latent"),
    (torch.randn(3, 8, 8), "one latent")])
def test_latents_without_a_basis_are_refused(x, words):
    with pytest.raises(ValueError, match=words):
        Jacobian(Encoder(), x)


def test_numbers_that_overflow_are_named():
    with pytest.raises(ValueError, match="float32"):
        Jacobian(lambda x: x / 0, latent())
    with pytest.raises(ValueError, match="J v is not finite"):      # the slope of sqrt at 0
        Jacobian(lambda x: (x - latent()).abs().sqrt(), latent()).push(latent(1))
    with pytest.raises(ValueError, match="v has the shape"):
        Jacobian(Encoder(), latent()).push(latent()[0])


def test_a_layer_without_forward_derivative(caplog):
    """Full precision turns to central differences by itself and says so once; half precision refuses: they are too
    coarse there."""
    def fused(x):
        heads = (x.flatten(2).transpose(1, 2) @ normal(CHANNELS, 16, seed=4).to(x))[:, None]
        return torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)

    x, v = latent(), normal(1, CHANNELS, SIZE, SIZE, seed=2)
    jacobian = Jacobian(fused, x)
    for _ in range(2):
        found = jacobian.push(v / v.norm())
    assert jacobian.difference and caplog.text.count("no forward derivative") == 1
    assert jacobian.check_adjoint() < 1e-2
    step = 1e-4 * (v / v.norm()).double()
    exact = (fused(x.double() + step) - fused(x.double() - step)) / 2e-4
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-2 * exact.norm().item())
    with pytest.raises(ValueError, match="no forward derivative.*scaled_dot_product.*use float32"):
        Jacobian(fused, x.bfloat16()).push(v)


def test_kept_activations_go_when_memory_ends():
    """In the first pull, as `check_adjoint` makes it, and only once: without them there is nothing left to spare."""
    full, f = [True], Encoder()

    def limited(x):
        if full:
            full.pop()
            raise torch.cuda.OutOfMemoryError("out of memory")
        return f(x)

    jacobian, u = Jacobian(f, latent(), pull_f=limited, keep=True), normal(1, 8, 4, 4)
    assert torch.equal(jacobian.pull(u), Jacobian(f, latent()).pull(u)) and not jacobian.keep
    full.append(True)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        jacobian.pull(u)
