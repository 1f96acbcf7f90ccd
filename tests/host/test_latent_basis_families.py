"""The latent basis on SDXL and on a model that does not fit, and what its nodes say to wrong inputs."""
from __future__ import annotations

import pytest
import torch
from motion_examples import TINY, random_motion

from frozen_diffusion.modules.host.motion.apply import apply_motion, hold_motion
from frozen_diffusion.modules.seeding import stream
from testhost.models import conditioning, leave_room_for_half, tiny_flux, watch_loading, with_lora

pytestmark = pytest.mark.usefixtures("unloaded")

SIGMAS = torch.tensor([5.0, 1.0, 0.0])
FACTOR, SDXL_FACTOR = 0.18215, 0.13025          # of latents, in the host
EDIT = {"direction": 0, "strength": 3.0, "count": 3, "method": "x-space guidance", "steps": 2, "eta": 1.0,
        "keep_norm": False, "by_noise": False}


def noisy(size=8, channels=4, factor=FACTOR):
    return {"samples": 5 * torch.randn(1, channels, size, size, generator=stream("basis families", size)) / factor}


def computed(comfy, model, latent, **changes):
    settings = {"sigmas": SIGMAS, "rank": 2, "solver": "lanczos", "tolerance": 1e-3, "seed": 0, "mask_space": "h"}
    return comfy.run("FrozenComputeLatentBasis", model=model, positive=conditioning(1), latent=latent,
                     **{**settings, **changes})[0]


def edited(comfy, model, latent, basis, sigmas=SIGMAS, **changes):
    rows, text = comfy.run("FrozenEditAlongBasis", model=model, positive=conditioning(1), latent=latent, sigmas=sigmas,
                           basis=basis, **{**EDIT, **changes})
    return rows["samples"], text


def towards(comfy, model, latent, basis=None, seeds=(1, 2)):
    return comfy.run("FrozenPromptDirection", model=model, positive_a=conditioning(seeds[0]),
                     positive_b=conditioning(seeds[1]), latent=latent, sigmas=SIGMAS, basis=basis)


@pytest.fixture(scope="module")
def found(comfy, base):
    return computed(comfy, base, noisy())


def test_sdxl_is_edited(comfy, tiny_sdxl):
    """In its own scale: addition is x + strength v there; guidance takes the latent elsewhere; strength 0 keeps it."""
    model, latent = tiny_sdxl(), noisy(factor=SDXL_FACTOR)
    basis = computed(comfy, model, latent)
    assert basis.V.shape == (2, 4, 8, 8) and basis.U.shape == (2, 128, 2, 2)
    added, _ = edited(comfy, model, latent, basis, method="addition", direction=1)
    moved = 26 ** 0.5 * 3.0 * basis.V[1:] / SDXL_FACTOR
    for row, sign in enumerate((-1, 0, 1)):
        torch.testing.assert_close(added[row:row + 1], latent["samples"] + sign * moved, rtol=1e-4, atol=1e-3)
    guided, text = edited(comfy, model, latent, basis, direction=-1)
    assert guided.shape == (6, 4, 8, 8) and "directions [0, 1]" in text and "another model" not in text
    for row, still in enumerate((False, True, False, False, True, False)):
        assert torch.equal(guided[row:row + 1], latent["samples"]) == still
    assert guided.isfinite().all() and not torch.allclose(guided[:3], guided[3:], atol=1e-2)
    direction, text = towards(comfy, model, latent, basis)
    assert direction.V.shape == (1, 4, 8, 8) and "coverage" in text


def test_a_model_that_does_not_fit_has_the_same_basis(comfy, base, found, monkeypatch):
    """The host keeps what is too much for the device elsewhere and merges its LoRAs call by call: here with little
    memory on the CPU, where both places are the same. The encoder's private copy does not see the difference."""
    model, states = with_lora(base, ("to_q.weight",)), []

    def everything():
        watched = watch_loading(model, states)
        basis = computed(comfy, watched, noisy(), rank=1)
        return basis, edited(comfy, watched, noisy(), basis)[0], towards(comfy, watched, noisy(), basis)[0].V

    whole, edits, direction = everything()
    assert set(states) == {(False, False)}
    states.clear()
    leave_room_for_half(monkeypatch, base)
    partly, part_edits, part_direction = everything()
    assert set(states) == {(True, True)}
    assert torch.equal(partly.V, whole.V) and torch.equal(partly.s, whole.s) and partly.provenance == whole.provenance
    assert torch.equal(part_direction, direction)
    torch.testing.assert_close(part_edits, edits, rtol=1e-3, atol=2e-3)
    assert not torch.allclose(found.s[:1], whole.s, rtol=1e-2)


def test_networks_without_bottleneck_are_refused_by_every_node(comfy, found):
    flux, latent = tiny_flux(), noisy(16, channels=16)
    for call in (lambda: computed(comfy, flux, latent), lambda: edited(comfy, flux, latent, found),
                 lambda: towards(comfy, flux, latent)):
        with pytest.raises(ValueError, match="this MODEL is a Flux, which has no bottleneck here"):
            call()


def test_a_motion_module_is_refused_by_every_node(comfy, base, found):
    moving = apply_motion(base, hold_motion(TINY, random_motion().state_dict(), "random"))
    for call in (lambda: computed(comfy, moving, noisy()), lambda: edited(comfy, moving, noisy(), found),
                 lambda: towards(comfy, moving, noisy(), found)):
        with pytest.raises(ValueError, match="has a motion module.*from before Apply Motion Module"):
            call()


def test_bases_of_another_size_are_refused_by_every_node(comfy, base, tiny_sdxl, found):
    for call, words in (
            (lambda: edited(comfy, base, noisy(16), found), r"\[4, 8, 8\]; this one is \[4, 16, 16\]"),
            (lambda: towards(comfy, base, noisy(16), found), r"\[128, 2, 2\], the basis has \[128, 1, 1\]"),
            (lambda: towards(comfy, tiny_sdxl(), noisy(factor=SDXL_FACTOR), found),
             r"\[128, 2, 2\], the basis has \[128, 1, 1\].*same model"),
            (lambda: computed(comfy, base, noisy(16), start=found), "start"),
            (lambda: edited(comfy, base, noisy(), found, direction=2), "directions 0 to 1")):
        with pytest.raises(ValueError, match=words):
            call()


def test_bases_of_another_model_or_noise_level_are_told(comfy, base, tiny_sd15, found):
    """They may be meant: what fits runs, and the report says so."""
    other = tiny_sd15(seed=3)
    for _, text in (edited(comfy, other, noisy(), found), towards(comfy, other, noisy(), found)):
        assert "computed on another model" in text
    for _, text in (edited(comfy, base, noisy(), found), towards(comfy, base, noisy(), found)):
        assert "another model" not in text and "computed at t" not in text
    _, text = edited(comfy, base, noisy(), found, sigmas=torch.tensor([2.0, 1.0, 0.0]))
    assert "the basis was computed at t" in text


def test_latents_and_levels_that_have_no_basis_are_refused_by_every_node(comfy, base, found):
    batch = {"samples": noisy()["samples"].repeat(2, 1, 1, 1)}
    empty = {"samples": torch.zeros(1, 4, 8, 8)}
    for latent, sigmas, words in ((batch, SIGMAS, "batch of 2"), (empty, SIGMAS, "no signal"),
                                  (noisy(), torch.tensor([0.0]), "fully denoised"),
                                  (noisy(), torch.tensor([99.0, 0.0]), "noise level is 99")):
        for call in (lambda at=latent, to=sigmas: computed(comfy, base, at, sigmas=to),
                     lambda at=latent, to=sigmas: edited(comfy, base, at, found, sigmas=to),
                     lambda at=latent, to=sigmas: comfy.run(
                         "FrozenPromptDirection", model=base, positive_a=conditioning(1), positive_b=conditioning(2),
                         latent=at, sigmas=to)):
            with pytest.raises(ValueError, match=words):
                call()
    with pytest.raises(ValueError, match="mask for h is empty"):
        computed(comfy, base, noisy(), mask=torch.zeros(1, 64, 64))
    with pytest.raises(ValueError, match="Both prompts give the same h"):
        towards(comfy, base, noisy(), seeds=(1, 1))
