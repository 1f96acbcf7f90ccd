"""Preset "official script" against InjectFusion's released script, written down anew in the paper's scale and float64.

The facts are those of diffusion_latent.py (diff_style, precompute_pairs_with_h) and diffusion_utils.py
(denoising_step) of InjectFusion_official: its grids, which steps it treats otherwise than plain DDIM, and what it does
there.
"""
from __future__ import annotations

import numpy as np
import pytest
import torch
from h_space_examples import QUICK, guider, injected

from frozen_diffusion.modules.hspace.steps import InjectionSettings, draws
from frozen_diffusion.modules.seeding import stream
from testhost.models import conditioning

pytestmark = pytest.mark.usefixtures("unloaded")

SIZE, FACTOR = 4, 0.18215
ABAR = (1 - torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
NODE = {"preset": "official script", "gamma": "0.5", "t_edit": 300.0, "t_boost": 0.0, "omega": 0.3, "mode": "symmetric",
        "apply_to": "both", "norm_mode": "masked", "check": "model", "gamma_skips": 0.0, "dt_lambda": 1.0,
        "replace_steps": 50, "auto_gamma": True, "shared_encoder": False, "lead": 20.0}      # what it leaves unread too


@pytest.fixture(scope="module")
def small(tiny_sd15):
    """A U-Net that is quick enough for a thousand steps, in fp64."""
    return tiny_sd15(torch.float64, **QUICK)


def picture(name):
    return 5 * torch.randn(1, 4, SIZE, SIZE, generator=stream("official", name))


def script_grid(count):
    return [int(point + 1e-6) for point in np.linspace(0, 1, count) * 999]


class Script:
    """The released script on the network of a MODEL: x in the paper's scale; timestep -1 is the picture."""

    def __init__(self, model):
        self.unet, self.context = model.model.diffusion_model, conditioning(1)[0][0].double()

    def network(self, x, t, content=None, gamma=0.0):
        """(eps, h), the middle block's output h turned towards `content`."""
        seen = []

        def hook(_, inputs, h):
            seen.append(h)
            if content is None:
                return h
            u, v = h.flatten(), content.flatten() * h.norm() / content.norm()
            angle = torch.acos(u @ v / (u.norm() * v.norm()))
            return (torch.sin((1 - gamma) * angle) * h + torch.sin(gamma * angle) * v.view(h.shape)) / torch.sin(angle)

        handle = self.unet.middle_block[-1].register_forward_hook(hook)
        with torch.no_grad():
            eps = self.unet(x, torch.tensor([float(t)]), self.context, transformer_options={})
        handle.remove()
        return eps, seen[0]

    def inversion(self, latent, count):
        """(x at 999, {timestep: h})."""
        x, features, grid = FACTOR * latent.double(), {}, script_grid(count)
        for t, later in zip(grid[:-1], grid[1:], strict=True):
            eps, features[t] = self.network(x, t)
            x = ABAR[later].sqrt() * (x - (1 - ABAR[t]).sqrt() * eps) / ABAR[t].sqrt() + (1 - ABAR[later]).sqrt() * eps
        return x, features

    def generation(self, x, features, count, noise, gamma=0.3, t_edit=400, t_noise=200, dt_lambda=1.0, dt_end=950,
                   replace_steps=50):
        """x after every step; `features` of the content."""
        grid, on_grid = script_grid(count), script_grid(replace_steps)
        recorded = sorted(features, reverse=True)
        way = []
        for step, (t, later) in enumerate(zip(grid[::-1], [*grid[:-1][::-1], -1], strict=True)):
            a, a_next = ABAR[t], ABAR[later] if later >= 0 else torch.ones((), dtype=torch.float64)
            changed = eps = self.network(x, t)[0]
            eta = 0
            if t in on_grid:
                eta = 0 if t > t_noise else 1
                if t >= t_edit:
                    nearest = min(recorded, key=lambda at, t=t: abs(at - t))
                    changed = self.network(x, t, features[nearest], gamma)[0]
            clean = (x - (1 - a).sqrt() * changed) / a.sqrt()
            c1 = eta * ((1 - a / a_next) * (1 - a_next) / (1 - a)).sqrt()
            following = a_next.sqrt() * clean + (1 - a_next - c1 ** 2).sqrt() * eps + c1 * noise(step).double()
            if t in on_grid and dt_lambda != 1 and t >= dt_end:
                following = a_next.sqrt() * clean + (1 - a_next).sqrt() * eps * dt_lambda
            x = following
            way.append(x)
        return way


def inverted(comfy, model, latent, steps, **changes):
    """(latent at 999, trace, sigmas) of the node."""
    inputs = {"refinements": 0, "deep_skips": 0, "check": False, "trace_precision": "fp32"} | changes
    noise, trace, sigmas, *_ = comfy.run("FrozenInvertDDIM", model=model, positive=conditioning(1), steps=steps,
                                         latent={"samples": latent}, **inputs)
    return noise["samples"], trace, sigmas


def ours(model, sampler, noise, sigmas):
    """The latents after every step of a run, as the host has them."""
    way = []
    guider(model).sample(torch.zeros_like(noise), noise, sampler, sigmas, disable_pbar=True, seed=0,
                         callback=lambda step, denoised, x, total: way.append(x.clone()))
    return way


def error(way, theirs):
    """The largest relative difference of two runs, at any of their steps, in the paper's scale."""
    grid, differences = [*script_grid(len(way))[:-1][::-1], -1], []
    for t, x, wanted in zip(grid, way, theirs, strict=True):
        given = x.double() * (ABAR[t].sqrt() if t >= 0 else 1.0)
        differences.append(((given - wanted).norm() / wanted.norm()).item())
    return max(differences)


@pytest.fixture(scope="module")
def content(comfy, small):
    """(trace of the node, features of the script) of a content inverted in 51 steps: two of 50 steps lie in the middle
    between recorded ones."""
    return inverted(comfy, small, picture("content"), 51)[1], Script(small).inversion(picture("content"), 51)[1]


@pytest.fixture(scope="module")
def thousand(comfy, small):
    """(latent at 999, trace, sigmas) of a style inverted in 1000 steps."""
    return inverted(comfy, small, picture("style"), 1000)


@pytest.mark.fault("G1")
def test_a_thousand_steps_are_a_thousand_timesteps(thousand):
    noise, trace, sigmas = thousand
    assert trace.times == tuple(range(1000)) and len(sigmas) == 1001 and (sigmas.diff() < 0).all()
    assert noise.isfinite().all()


@pytest.mark.fault("G1", "G4")
@pytest.mark.parametrize("steps", [50, 1000])
def test_the_preset_is_the_script(comfy, small, content, thousand, steps):
    """Every latent on the way, from the style's noise to the picture."""
    trace, features = content
    noise, _, sigmas = thousand if steps == 1000 else inverted(comfy, small, picture("style"), steps)
    assert len(sigmas) == steps + 1
    sampler = comfy.run("FrozenHSpaceInjectionSampler", trace=trace, **NODE)[0]
    way = ours(small, sampler, noise, sigmas)
    theirs = Script(small).generation(noise.double() * FACTOR * ABAR[999].sqrt(), features, steps, draws(0, noise))
    assert error(way, theirs) < 1e-4


@pytest.mark.fault("G4")
@pytest.mark.parametrize("changes", [{"t_edit": 100, "t_boost": 300},
                                     {"t_edit": 1001, "t_boost": 999, "dt_lambda": 0.99, "dt_end": 700}],
                         ids=["t_edit below t_boost", "dt_lambda without injection and instead of noise"])
def test_conventions_of_the_script(small, content, changes):
    """Beside those of the preset's own values; ours differ."""
    trace, features = content
    noise = 14 * torch.randn(1, 4, SIZE, SIZE, generator=stream("official", "noise")) / FACTOR
    sigmas = torch.tensor([((1 - ABAR[t]) / ABAR[t]).sqrt() for t in script_grid(50)[::-1]] + [0.0])
    settings = {"omega": 0.0, "t_edit": 400, "t_boost": 200, "released": True} | changes
    released, own = (ours(small, injected(trace, InjectionSettings(**settings | {"released": on})), noise, sigmas)
                     for on in (True, False))
    told = {"t_noise" if name == "t_boost" else name: value for name, value in changes.items()}
    theirs = Script(small).generation(noise.double() * FACTOR * ABAR[999].sqrt(), features, 50, draws(0, noise), **told)
    assert error(released, theirs) < 1e-4 < error(own, theirs)


@pytest.mark.fault("G4")
def test_steps_that_miss_the_scripts_grid_are_refused(comfy, small, content):
    """The script would run and inject in one step of them."""
    sampler = comfy.run("FrozenHSpaceInjectionSampler", trace=content[0], **NODE)[0]
    noise = torch.zeros(1, 4, SIZE, SIZE)
    sigmas = torch.tensor([((1 - ABAR[t]) / ABAR[t]).sqrt() for t in script_grid(20)[::-1]] + [0.0])
    with pytest.raises(ValueError, match="meet it at 1 of 30.*50 or 1000 steps"):
        ours(small, sampler, noise, sigmas)
