"""Edits along a latent basis in the host: how far they go, what they leave alone, and what is said of directions."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from comfy.samplers import sampler_object

from frozen_diffusion.modules.basis.basis import latent_basis
from frozen_diffusion.modules.basis.geometry import geodesic_distance
from frozen_diffusion.modules.basis.guidance import spread
from frozen_diffusion.modules.basis.triplets import Triplets
from frozen_diffusion.modules.host.basis.edit import NORMALISED
from frozen_diffusion.modules.host.demo import load_sprite_world
from frozen_diffusion.modules.host.guiders import guider_of
from frozen_diffusion.modules.seeding import stream
from testhost.models import conditioning

pytestmark = pytest.mark.usefixtures("unloaded")

FACTOR = 0.18215
NODE = {"rank": 2, "solver": "lanczos", "tolerance": 1e-3, "seed": 0, "mask_space": "h"}
EDIT = {"direction": 0, "strength": 4.0, "count": 1, "method": "addition", "steps": 2, "eta": 1.0, "keep_norm": False}


def noisy(sigma=5.0, size=8, name="noisy"):
    return sigma * torch.randn(1, 4, size, size, generator=stream("basis edits", name)) / FACTOR


def until(sigma):
    return torch.tensor([sigma, 0.0])


def computed(comfy, model, latent, sigma=5.0, positive=None, **changes):
    return comfy.run("FrozenComputeLatentBasis", model=model, positive=positive or conditioning(1),
                     latent={"samples": latent}, sigmas=until(sigma), **{**NODE, **changes})[0]


def edited(comfy, model, latent, basis, sigma=5.0, positive=None, **changes):
    rows, text = comfy.run("FrozenEditAlongBasis", model=model, positive=positive or conditioning(1),
                           latent={"samples": latent}, sigmas=until(sigma), basis=basis, **{**EDIT, **changes})
    return rows["samples"], text


@pytest.fixture(scope="module")
def found(comfy, base):
    return computed(comfy, base, noisy())


@pytest.fixture(scope="module")
def other(found):
    """Another basis of the same shapes: random orthonormal directions."""
    def directions(name, like):
        drawn = torch.randn(like[0].numel(), len(like), generator=stream("basis edits", name))
        return torch.linalg.qr(drawn).Q.T.reshape(like.shape)

    return replace(found, V=directions("V", found.V), U=directions("U", found.U))


def denoised(model, rows, positive, sigma):
    """What the model predicts for LATENT rows at noise level sigma, as LATENT."""
    return guider_of(model, positive).sample(torch.zeros_like(rows), rows, sampler_object("euler"), until(sigma),
                                             disable_pbar=True, seed=0)


def widest(before, after):
    """The largest change of the spread of rows against one, as a share."""
    return float((spread(after) / spread(before) - 1).abs().max())


@pytest.fixture(scope="module")
def sprites():
    model, clip, *_ = load_sprite_world()
    return model, clip.encode_from_tokens_scheduled(clip.tokenize(""))


@pytest.mark.fault("G3")
@pytest.mark.parametrize(("world", "sigma"), [("sprite world", 14.0), ("sprite world", 3.4), ("sprite world", 1.2),
                                              ("random weights", 14.0), ("random weights", 2.0)])
def test_normalised_edits_stay_in_distribution(comfy, base, sprites, world, sigma):
    """The latent and the picture that is predicted for it keep their spread; no row moves by more than its strength.

    A smooth direction, such as bases have: with it the formula alone gave sprite world 2 to 100 times the contrast.
    """
    model, text = sprites if world == "sprite world" else (base, conditioning(1))
    latent = (sigma ** 2 + 0.5) ** 0.5 * noisy(1.0, 16)
    v = torch.linspace(-1, 1, 16).expand(4, 16, 16).clone()
    v /= v.norm()
    basis = latent_basis(Triplets(v[None], torch.ones(1, 1), torch.ones(1), torch.ones(1)), 0, sigma)
    rows, told = edited(comfy, model, latent, basis, sigma, text, method=NORMALISED, strength=16.0, count=3)
    torch.testing.assert_close(rows[1:2], latent, rtol=1e-6, atol=1e-6)             # the host's factor and back
    travel = (rows[[0, 2]] - latent).flatten(1).norm(dim=1) * FACTOR / (1 + sigma ** 2) ** 0.5
    assert (travel < 16.01).all() and (travel > 0.1).all() and "moved by" in told
    assert widest(latent, rows) < 0.06
    assert widest(denoised(model, latent, text, sigma), denoised(model, rows, text, sigma)) < 0.11


def test_a_short_normalised_edit_is_not_shortened(comfy, base, found):
    rows, text = edited(comfy, base, noisy(), found, method=NORMALISED, strength=0.05)
    travel = (rows - noisy()).norm() * FACTOR / 26 ** 0.5
    assert 0.01 < travel <= 0.0501 and "Warning" not in text


@pytest.mark.fault("G6")
def test_a_complement_is_taken_out_of_an_edit(comfy, base, found, other):
    """The latent moves as far as without, and not at all along the complement's directions."""
    plain, text = edited(comfy, base, noisy(), found)
    kept, told = edited(comfy, base, noisy(), found, complement=other)
    v, w = ((rows - noisy())[0] * FACTOR / 26 ** 0.5 / 4 for rows in (plain, kept))
    torch.testing.assert_close(v, found.V[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(w.norm(), torch.tensor(1.0), rtol=1e-4, atol=0)
    away = other.V.flatten(1)
    assert (away @ w.flatten()).abs().max() < 1e-4 < 0.02 < (away @ v.flatten()).norm()
    left = float((1 - (away @ found.V[0].flatten()).square().sum()).sqrt())
    assert "complement" not in text and f"complement: 2 directions taken out; left of each: 0: {left:.2f}" in told
    with pytest.raises(ValueError, match="Nothing is left of direction 0"):
        edited(comfy, base, noisy(), found, complement=found)
    with pytest.raises(ValueError, match="same model and image size"):
        edited(comfy, base, noisy(), found, complement=replace(other, V=other.V[:, :, :4]))


@pytest.mark.fault("G6")
def test_a_direction_is_carried_in_x(comfy, found):
    """v' = V' V'^T v, and the share of v that is there."""
    itself, coverage, _ = comfy.run("FrozenTransportBasis", basis=found, direction=1, target=found, space="x")
    assert coverage == pytest.approx(1, abs=1e-4) and itself.provenance["space"] == "x"
    torch.testing.assert_close(itself.V[0], found.V[1], rtol=0, atol=1e-4)
    torch.testing.assert_close(itself.U[0], found.U[1], rtol=0, atol=1e-4)


@pytest.mark.fault("E8")
def test_what_no_solver_computed_is_not_reported(comfy, base, found):
    """Transported, mean and prompt directions have no singular values and no residuals of their own."""
    carried = comfy.run("FrozenTransportBasis", basis=found, direction=1, target=found)[0]
    mean = comfy.run("FrozenGlobalBasis", basis=found, basis_2=found)[0]
    prompt = comfy.run("FrozenPromptDirection", model=base, positive_a=conditioning(1), positive_b=conditioning(2),
                       latent={"samples": noisy()}, sigmas=until(5.0))[0]
    for basis, solver in ((carried, "transport"), (mean, "global basis"), (prompt, "prompt direction")):
        plot, text = comfy.run("FrozenBasisReport", basis=basis)
        assert f"solver {solver}" in text and "s, gaps and residuals: not computed" in text
        for figure in ("largest residual", "\ns: ", "products", "converged", "gap from"):
            assert figure not in text
        assert plot.shape[1] < comfy.run("FrozenBasisReport", basis=found)[0].shape[1]      # no empty plot of s
    assert "largest residual" in comfy.run("FrozenBasisReport", basis=found)[1]
    assert not {"products", "converged", "angle"} & (carried.provenance.keys() | mean.provenance.keys())


@pytest.mark.fault("G6")
def test_the_path_through_several_bases_is_told(comfy, found, other):
    """The first paper's semantic path length: the distances from each basis to the next, added up."""
    text = comfy.run("FrozenBasisReport", basis=found, basis_2=other, basis_3=found)[1]
    step = geodesic_distance(found.U, other.U)
    assert f"semantic path length {2 * step:.2f}, from each basis to the next: {step:.2f}, {step:.2f}" in text
