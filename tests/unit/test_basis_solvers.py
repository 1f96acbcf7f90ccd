"""Lanczos and the official subspace iteration, latent_basis.md 2.4, 2.5 and section 8, I3, I5, I6."""
from __future__ import annotations

import pytest
import torch
from basis_examples import Encoder, angle, dense, latent, normal

from frozen_diffusion.modules.basis.lanczos import expected_products, lanczos
from frozen_diffusion.modules.basis.products import Jacobian
from frozen_diffusion.modules.basis.subspace_iteration import subspace_iteration

SHAPE = (1, 4, 6, 5)                                                            # 120 numbers


def linear(A: torch.Tensor, h_shape: tuple[int, ...]) -> Jacobian:
    """The Jacobian of f(x) = A x."""
    return Jacobian(lambda x: (A @ x.flatten()).view(1, *h_shape), normal(*SHAPE, seed=3, dtype=A.dtype))


def spectrum(k: int, size: int, power: float = 0.3) -> torch.Tensor:
    """s_k = 41.8 k^-0.3, that of a face model (spec 5.3)."""
    return 41.8 * torch.arange(1, size + 1, dtype=torch.float64) ** -power


def with_spectrum(s: torch.Tensor, m: int, n: int) -> torch.Tensor:
    """A random [m, n] matrix with singular values s."""
    left = torch.linalg.qr(normal(m, len(s), seed=1, dtype=torch.float64)).Q
    right = torch.linalg.qr(normal(n, len(s), seed=2, dtype=torch.float64)).Q
    return (left * s @ right.T).float()


def check_triplets(jacobian: Jacobian, found, k: int) -> None:
    """I5."""
    v, u, s = found.V.flatten(1).double(), found.U.flatten(1).double(), found.s.double()
    assert found.V.shape == (k, *jacobian.x.shape[1:]) and found.U.shape == (k, *jacobian.h.shape[1:])
    assert (v @ v.T - torch.eye(k)).abs().max() < 1e-5 and (u @ u.T - torch.eye(k)).abs().max() < 1e-5
    assert (s.diff() <= 0).all()
    pushed = torch.stack([jacobian.push(one[None]).flatten() for one in found.V]).double()
    pulled = torch.stack([jacobian.pull(one[None]).flatten() for one in found.U]).double()
    assert (pushed - s[:, None] * u).norm(dim=1).max() < 1e-4 * s[0]
    torch.testing.assert_close((pulled - s[:, None] * v).norm(dim=1), found.residuals.double(),
                               atol=5e-6 * float(s[0]), rtol=1e-2)
    assert (v.gather(1, v.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize(("m", "h_shape"), [(180, (5, 6, 6)), (48, (3, 4, 4)), (7, (7,))])
@pytest.mark.parametrize("solve", [lanczos, lambda j, k: subspace_iteration(j, k, tolerance=1e-6, max_iter=400)],
                         ids=["lanczos", "subspace"])
def test_a_linear_encoder_gives_the_decomposition_of_its_matrix(m, h_shape, solve):
    """I3, with h larger and smaller than x, and pooled to a vector; also the sign convention."""
    A = with_spectrum(5 * 0.7 ** torch.arange(min(m, 20), dtype=torch.float64), m, 120).double()
    *_, last = solve(linear(A, h_shape), 4)
    P, s, Qt = torch.linalg.svd(A)
    assert last.converged
    torch.testing.assert_close(last.found.s, s[:4], rtol=1e-5, atol=0)
    v, u = last.found.V.flatten(1), last.found.U.flatten(1)
    sign = (v * Qt[:4]).sum(1).sign()[:, None]
    torch.testing.assert_close(v, sign * Qt[:4], atol=5e-3, rtol=0)
    torch.testing.assert_close(u, sign * P.T[:4], atol=5e-3, rtol=0)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_identities_of_the_triplets(k):
    """I5 on a small network with attention."""
    jacobian = Jacobian(Encoder(), latent())
    *_, last = lanczos(jacobian, k)
    check_triplets(jacobian, last.found, k)
    assert last.converged and last.found.residuals.max() <= 1e-3 * last.found.s[0]
    exact = torch.linalg.svd(dense(jacobian))
    assert angle(last.found.V, exact.Vh[:k]) <= 0.5
    torch.testing.assert_close(last.found.s, exact.S[:k], rtol=1e-4, atol=0)


def test_identities_hold_when_not_converged():
    """The residuals that are told are the true ones, however few steps were allowed."""
    jacobian = Jacobian(Encoder(), latent())
    *_, last = lanczos(jacobian, 6, max_steps=9)
    assert not last.converged and last.products == 18 and last.residuals.max() > 1e-3
    check_triplets(jacobian, last.found, 6)


@pytest.mark.parametrize("k", [2, 5, 10, 50])
def test_few_products_and_half_a_degree(k):
    """Spec 2.5: 8 k + 24 products at most, on the spectrum of a face model; the official solver is far from it."""
    n, m = 1024, 900
    s = spectrum(k, m).float()
    for seed in (0, 1):
        jacobian = Jacobian(lambda x: (s * x.flatten()[:m]).view(1, 36, 5, 5), normal(1, 4, 16, 16))
        *_, last = lanczos(jacobian, k, seed=seed)
        assert last.converged and last.products == jacobian.products <= 8 * k + 24
        assert angle(last.found.V, torch.eye(k, n)) <= 0.5
        assert 0.6 < last.products / expected_products(k) < 1.6


@pytest.mark.parametrize("k", [2, 5, 10])
def test_few_products_on_a_network(k):
    """The same on a small random network, against the dense decomposition of its Jacobian [128, 192]."""
    jacobian = Jacobian(Encoder(), latent())
    exact = torch.linalg.svd(dense(jacobian).double()).Vh[:k]
    jacobian.products = 0
    *_, last = lanczos(jacobian, k)
    assert last.converged and last.products <= 8 * k + 24
    assert angle(last.found.V, exact) <= 0.5 and angle(last.found.V, exact) <= last.angle


def test_a_small_gap_needs_more_than_small_residuals():
    """s_3 and s_4 differ by 1 %: residuals of 1e-3 alone end too early, the estimated angle does not."""
    s = torch.cat((torch.tensor([3.0, 2.5, 2.0, 1.98]), torch.linspace(1.9, 0.1, 90))).double()
    A = with_spectrum(s, 100, 120)
    exact = torch.linalg.svd(A.double()).Vh[:3]
    off = {limit: [angle(list(lanczos(linear(A, (4, 5, 5)), 3, angle=limit, seed=seed))[-1].found.V, exact)
                   for seed in range(5)] for limit in (0.5, 90.0)}
    assert max(off[0.5]) <= 0.5 < max(off[90.0])


def test_records_tell_the_progress():
    jacobian = Jacobian(Encoder(), latent())
    steps = list(lanczos(jacobian, 4))
    assert [step.products for step in steps] == list(range(2, 2 * len(steps) + 1, 2))
    assert [step.found is None for step in steps] == [True] * (len(steps) - 1) + [False]
    assert [step.converged for step in steps] == [False] * (len(steps) - 1) + [True]
    assert len(steps) >= 12 and steps[0].s.shape == (1,) and steps[5].residuals.shape == (4,)
    assert steps[4].residuals.max() > 100 * steps[-1].residuals.max() and steps[-1].angle <= 0.5
    assert steps[2].s[0] < steps[-1].s[0] * 1.0001


def test_seeds_agree_up_to_the_tolerance_and_repeat_exactly():
    *_, one = lanczos(Jacobian(Encoder(), latent()), 3, seed=0)
    *_, again = lanczos(Jacobian(Encoder(), latent()), 3, seed=0)
    *_, other = lanczos(Jacobian(Encoder(), latent()), 3, seed=1)
    assert torch.equal(one.found.V, again.found.V) and not torch.equal(one.found.V, other.found.V)
    assert angle(one.found.V, other.found.V) <= 1.0
    assert ((one.found.V * other.found.V).flatten(1).sum(1) > 0.99).all()        # canonical signs


def test_rescaled_inputs():
    """I6: f(x / c) at c x has s / c and the same v."""
    f, x, c = Encoder(), latent(), 7.5
    *_, plain = lanczos(Jacobian(f, x), 3)
    *_, scaled = lanczos(Jacobian(lambda y: f(y / c), c * x), 3)
    torch.testing.assert_close(scaled.found.s * c, plain.found.s, rtol=1e-5, atol=0)
    torch.testing.assert_close(scaled.found.V, plain.found.V, atol=1e-4, rtol=0)


def test_a_warm_start_saves_products():
    s = spectrum(5, 900).float()
    runs = {}
    for name, start in (("cold", None), ("warm", torch.eye(5, 1024).view(5, 4, 16, 16))):
        jacobian = Jacobian(lambda x: (s * x.flatten()[:900]).view(1, 36, 5, 5), normal(1, 4, 16, 16))
        *_, runs[name] = lanczos(jacobian, 5, start=start, min_steps=1)
        assert angle(runs[name].found.V, torch.eye(5, 1024)) <= 0.5
    assert runs["warm"].products <= runs["cold"].products - 8
    with pytest.raises(ValueError, match="start"):
        next(lanczos(Jacobian(Encoder(), latent()), 2, start=torch.ones(2, 4, 4, 4)))


@pytest.mark.parametrize("rank", [1, 3, 20])
def test_rank_deficient(rank):
    """As many directions as there are; the rest of them would be noise."""
    s = torch.linspace(5.0, 1.0, rank, dtype=torch.float64)
    A = with_spectrum(s, 180, 120)
    jacobian = linear(A, (5, 6, 6))
    *_, last = lanczos(jacobian, 6)
    k = min(rank, 6)
    check_triplets(jacobian, last.found, k)
    assert last.converged and (rank > 6 or last.products <= 2 * rank + 3)
    torch.testing.assert_close(last.found.s.double(), s[:k], rtol=1e-4, atol=0)
    assert angle(last.found.V, torch.linalg.svd(A.double()).Vh[:k]) < 0.5


def test_repeated_singular_values():
    """The space of one start vector has only one of them; the others are found from new starts."""
    s = torch.tensor([5.0, 5.0, 5.0, 2.0, 2.0, 1.0], dtype=torch.float64)
    jacobian = linear(with_spectrum(s, 180, 120), (5, 6, 6))
    *_, last = lanczos(jacobian, 5)
    torch.testing.assert_close(last.found.s.double(), s[:5], rtol=1e-4, atol=0)
    check_triplets(jacobian, last.found, 5)
    *_, last = lanczos(Jacobian(lambda x: 2 * x, latent()), 4)
    torch.testing.assert_close(last.found.s, torch.full((4,), 2.0))


@pytest.mark.parametrize(("m", "h_shape"), [(7, (7,)), (120, (120,)), (150, (150,))])
def test_as_many_directions_as_there_can_be(m, h_shape):
    A = normal(m, 120)
    k = min(m, 120)
    jacobian = linear(A, h_shape)
    *_, last = lanczos(jacobian, k)
    assert last.converged
    torch.testing.assert_close(last.found.s, torch.linalg.svdvals(A)[:k], rtol=1e-3, atol=1e-4)
    check_triplets(jacobian, last.found, len(last.found.s))
    for wrong in (0, k + 1):
        for solve in (lanczos, subspace_iteration):
            with pytest.raises(ValueError, match=f"1 to {k}"):
                next(solve(linear(A, h_shape), wrong))


@pytest.mark.parametrize("f", [lambda x: x.detach() ** 2, lambda x: 0 * x, lambda x: 1e-9 * x],
                         ids=["detached", "zero", "tiny"])
@pytest.mark.parametrize("solve", [lanczos, subspace_iteration])
def test_a_jacobian_of_zero_is_refused(f, solve):
    with pytest.raises(ValueError, match="[Gg]radients are switched off"):
        list(solve(Jacobian(f, latent()), 2))


def test_masked_out_pixels_are_not_in_the_directions():
    mask = torch.zeros(8, 8)
    mask[2:4, 2:4] = 1
    jacobian = Jacobian(Encoder(), latent(), x_mask=mask)
    *_, last = lanczos(jacobian, 16)
    assert last.found.V.shape[0] == 12                                          # 4 pixels of 3 channels
    assert (last.found.V * (1 - mask)).abs().max() < 1e-6
    check_triplets(jacobian, last.found, 12)


def test_the_official_signs_disagree_and_ours_do_not():
    """Spec 2.4, defects 1 and 2: opposite u_i and J v_i, and U as long as s."""
    cosines = {}
    for official in (True, False):
        jacobian = Jacobian(Encoder(), latent())
        *_, last = subspace_iteration(jacobian, 3, official, max_iter=50)
        pushed = torch.stack([jacobian.push(v[None])[0] for v in last.found.V]).flatten(1)
        u = last.found.U.flatten(1)
        cosines[official] = torch.nn.functional.cosine_similarity(pushed, u)
        torch.testing.assert_close(u.norm(dim=1), last.found.s if official else torch.ones(3), rtol=1e-3, atol=0)
    assert cosines[True].min() < -0.99 and cosines[True].abs().min() > 0.99
    assert cosines[False].min() > 0.999


def test_ours_ends_and_the_official_test_for_the_end_does_not_pass_while_signs_flip():
    s = torch.tensor([4.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    *_, ours = subspace_iteration(linear(with_spectrum(s, 180, 120), (5, 6, 6)), 2)
    *_, official = subspace_iteration(linear(with_spectrum(s, 180, 120), (5, 6, 6)), 2, official=True)
    assert ours.converged and ours.products == 12 * 4 + 4       # 12 iterations are the least, and U anew
    torch.testing.assert_close(official.found.s.double(), s[:2], rtol=1e-4, atol=0)
    assert not official.converged and official.products == 50 * 4


def test_the_iteration_converges_at_the_rate_of_the_spectrum():
    """Spec 2.4: the part that is wrong shrinks by (s_3 / s_2)^2 an iteration."""
    s = torch.tensor([4.0, 2.0, 1.5, 0.5], dtype=torch.float64)
    steps = list(subspace_iteration(linear(with_spectrum(s, 180, 120).double(), (5, 6, 6)), 2, max_iter=25))
    errors = torch.stack([step.residuals[1] for step in steps[4:12]])
    torch.testing.assert_close(errors[1:] / errors[:-1], torch.full((7,), 0.5625, dtype=torch.float64), rtol=0.05,
                               atol=0)


@pytest.mark.parametrize(("name", "call"), [("push", 5), ("pull", 6)])
def test_a_device_that_is_full_once_gives_the_same(name, call):
    """The vectors go to the CPU; only then is it given up."""
    def jacobian(full):
        made, calls = Jacobian(Encoder(), latent(), keep=True), []
        product = getattr(made, name)

        def limited(vector):
            calls.append(1)
            if full(len(calls)):
                raise torch.cuda.OutOfMemoryError("out of memory")
            return product(vector)

        setattr(made, name, limited)
        return made

    *_, wanted = lanczos(jacobian(lambda number: False), 2)
    *_, got = lanczos(jacobian(lambda number: number == call), 2)
    assert torch.equal(got.found.s, wanted.found.s)
    torch.testing.assert_close(got.found.V, wanted.found.V)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        list(lanczos(jacobian(lambda number: number >= call), 2))
