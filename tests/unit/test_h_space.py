"""h-space injection as mathematics: blending, the steps, the grid, traces; oracles in float64."""
import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from frozen_diffusion.modules.curve import Curve, parse_curve
from frozen_diffusion.modules.files.atomic_write import write_atomically
from frozen_diffusion.modules.hspace.slerp import angles, inject, norms, slerp, spherical_mean
from frozen_diffusion.modules.hspace.steps import (
    PRESETS,
    InjectionSettings,
    calibrated,
    injected_steps,
    noise_parts,
    sample_injected,
    timestep_grid,
)
from frozen_diffusion.modules.hspace.timesteps import first_reached, ssim_distance
from frozen_diffusion.modules.hspace.trace import (
    HTrace,
    TraceError,
    beside,
    masked,
    merge_batch,
    merge_mean,
    psnr,
    read_trace,
    trace_tensors,
)
from frozen_diffusion.modules.seeding import stream

ABAR = (1 - torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)


def random(*shape, name="x", dtype=torch.float64):
    return torch.randn(*shape, generator=stream("h-space test", name), dtype=dtype)


def sigma_of(t: int) -> float:
    return ((1 - ABAR[t]) / ABAR[t]).sqrt().item()


@pytest.mark.parametrize("gamma", [0.1, 0.3, 0.5, 0.9])
def test_slerp_keeps_the_norm_and_turns_by_its_share(gamma):
    h, content = random(3, 8, 4, 4), 7 * random(3, 8, 4, 4, name="content")
    blend = inject(h, content, gamma)
    torch.testing.assert_close(norms(blend), norms(h), rtol=1e-12, atol=0)
    torch.testing.assert_close(angles(blend, h), gamma * angles(h, content), rtol=1e-9, atol=0)
    torch.testing.assert_close(inject(h, 123 * content, gamma), blend)
    other = inject(content, h, 1 - gamma)
    torch.testing.assert_close(other / norms(other).view(-1, 1, 1, 1), blend / norms(blend).view(-1, 1, 1, 1))
    single = torch.cat([inject(h[row:row + 1], content[row:row + 1], gamma) for row in range(3)])
    torch.testing.assert_close(single, blend, rtol=1e-12, atol=1e-12)


def test_ends_of_the_arc():
    h, content = random(2, 4, 2, 2, dtype=torch.float32), random(2, 4, 2, 2, name="content", dtype=torch.float32)
    assert torch.equal(inject(h, content, 0.0), h)
    end = inject(h, content, 1.0)
    torch.testing.assert_close(end, content * (norms(h) / norms(content)).view(-1, 1, 1, 1))


@pytest.mark.parametrize("content", ["same", "opposite", "zero", "scaled"])
def test_no_direction_to_turn_to(content):
    """Where the released code gives NaN, the feature stays as it is."""
    h = random(2, 4, 2, 2, dtype=torch.float32)
    other = {"same": h, "opposite": -h, "zero": torch.zeros_like(h), "scaled": 3 * h}[content]
    assert torch.equal(inject(h, other, 0.4), h)
    assert inject(torch.zeros_like(h), h, 0.4).abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(dtype):
    """The squares of a whole feature map sum up to more than float16 can hold."""
    h, content = (30 * random(1, 1280, 8, 8, name=name, dtype=torch.float32) for name in "ab")
    blend = inject(h.to(dtype), content.to(dtype), 0.3)
    assert blend.dtype == dtype
    torch.testing.assert_close(blend.float(), inject(h, content, 0.3), rtol=2e-2, atol=0.5)


def test_a_mask_of_ones_of_zeros_and_of_a_region():
    h, content = random(2, 4, 4, 4), random(2, 4, 4, 4, name="content")
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    assert torch.equal(inject(h, content, 0.5, mask), h)
    torch.testing.assert_close(inject(h, content, 0.5, mask + 1), inject(h, content, 0.5))
    mask[..., 1:3, 1:3] = 1
    blend = inject(h, content, 0.5, mask)
    outside = (mask == 0).expand_as(h)
    assert torch.equal(blend[outside], h[outside])
    torch.testing.assert_close(norms(blend * mask), norms(h * mask))
    loud = inject(h, 3.7 * content, 0.5, mask, match=False)
    assert (norms(loud * mask) > 1.3 * norms(h * mask)).all()
    torch.testing.assert_close(inject(h, content, 0.5, 0.25 * mask),
                               torch.where(outside, h, 0.25 * blend + 0.75 * h))


def test_spherical_mean():
    a, b = random(2, 8, name="a"), random(2, 8, name="b")
    mean = spherical_mean(torch.stack([a, b * norms(a)[:, None] / norms(b)[:, None]]), torch.tensor([0.7, 0.3]))
    torch.testing.assert_close(mean, slerp(a, b * norms(a)[:, None] / norms(b)[:, None], 0.3), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(spherical_mean(torch.stack([a, b]), torch.tensor([1.0, 0.0])), a)
    with pytest.raises(ValueError, match="weights"):
        spherical_mean(torch.stack([a, b]), torch.tensor([0.0, 0.0]))


def official_step(x, t, later, eps, eps_injected, eps_at, omega, eta, noise, t_edit, dt_lambda=1.0, dt_end=950):
    """One step in variance-preserving form, written down from the specification (2.4, 2.5, 2.7)."""
    a, a_next = ABAR[t], ABAR[later] if later >= 0 else torch.ones((), dtype=torch.float64)
    s = eta * ((1 - a_next) / (1 - a)).sqrt() * (1 - a / a_next).sqrt()

    def x0(of, at=x):
        return (at - (1 - a).sqrt() * of) / a.sqrt()

    edited = t >= t_edit
    if edited and omega:
        plain, injected = x0(eps), x0(eps_injected)
        dims = (1, 2, 3)
        contrast = plain.std(dims, keepdim=True) / injected.std(dims, keepdim=True)
        mean = injected.mean(dims, keepdim=True)
        dx = a.sqrt() * (mean + (injected - mean) * contrast - plain) + omega * (1 - a).sqrt() * (eps_injected - eps)
        at = x + dx
        again = eps_at(at)
        return a_next.sqrt() * x0(again, at) + (1 - a_next - s ** 2).sqrt() * again + s * noise
    direction = (1 - a_next - s ** 2).sqrt() * eps * (dt_lambda if edited and t >= dt_end else 1.0)
    return a_next.sqrt() * x0(eps_injected if edited else eps) + direction + s * noise


@pytest.mark.parametrize("omega", [0.0, 0.3])
@pytest.mark.parametrize(("t", "eta"), [(0, 0), (399, 0), (400, 0), (401, 0), (960, 0), (999, 0), (0, 1), (399, 1)])
def test_a_step_is_the_papers(t, omega, eta):
    """Our step in the host's variables against the paper's formulas, in float64."""
    later = t - 20 if t >= 20 else -1
    x, eps, other, noise = (random(2, 4, 3, 3, name=name) for name in ("x", "eps", "other", "noise"))

    def eps_at(at):
        return eps + 0.1 * (at - x)

    def denoise(big, step, injected):
        vp = big * ABAR[t].sqrt()
        return big - sigma_of(t) * (other + 0.1 * (vp - x) if injected else eps_at(vp))

    sigmas = [sigma_of(t), sigma_of(later) if later >= 0 else 0.0]
    settings = InjectionSettings(t_edit=400, t_boost=1000 if eta else -1, omega=omega, dt_lambda=0.9985)
    ours = next(sample_injected(denoise, x / ABAR[t].sqrt(), sigmas, [t], settings, lambda step: noise))
    a_next = ABAR[later] if later >= 0 else 1.0
    theirs = official_step(x, t, later, eps, other, eps_at, omega, eta, noise, 400, 0.9985)
    torch.testing.assert_close(ours.x * a_next ** 0.5, theirs, rtol=1e-9, atol=1e-9)
    assert ours.injected == (t >= 400)


def test_calibration_identities():
    x, plain, injected = (random(2, 4, 3, 3, name=name) for name in ("x", "plain", "injected"))
    dims = (1, 2, 3)

    def contrasted(of):
        mean = of.mean(dims, keepdim=True)
        return mean + (of - mean) * plain.std(dims, keepdim=True) / of.std(dims, keepdim=True)

    same = injected / injected.std(dims, keepdim=True) * plain.std(dims, keepdim=True)
    for omega in (0.0, 0.3, 1.0):
        torch.testing.assert_close(calibrated(x, plain, same, omega) - x, (1 - omega) * (same - plain))
    residual = calibrated(x, plain, injected, 1.0) - x
    torch.testing.assert_close(residual, contrasted(injected) - injected)
    torch.testing.assert_close(contrasted(injected).std(dims), plain.std(dims))


def test_noise_parts_are_ddims_eta():
    for t, later in ((999, 979), (200, 180), (40, 20)):
        down, up = noise_parts(sigma_of(t), sigma_of(later), 1.0)
        a, a_next = ABAR[t], ABAR[later]
        s = ((1 - a_next) / (1 - a)).sqrt() * (1 - a / a_next).sqrt()
        assert up == pytest.approx((s / a_next.sqrt()).item(), rel=1e-12)
        assert down == pytest.approx(((1 - a_next - s ** 2).sqrt() / a_next.sqrt()).item(), rel=1e-12)
    assert noise_parts(1.0, 0.5, 0.0) == (0.5, 0.0)


def test_which_steps_are_injected():
    """The released code's grids: 30 of 50 points at or above 400, 25 above 500, 10 at or below 200."""
    grid = [int(step / 49 * 999) for step in range(50)]
    assert sum(time >= 400 for time in grid) == 30 and sum(time >= 500 for time in grid) == 25
    assert sum(time <= 200 for time in grid) == 10 and sum(time >= 950 for time in grid) == 3
    down = grid[::-1]
    assert sum(injected_steps(down, InjectionSettings())) == 30
    every = list(range(999, -1, -1))
    chosen = injected_steps(every, InjectionSettings())
    assert [time for time, on in zip(every, chosen, strict=True) if on] == [time for time in down if time >= 400]
    assert sum(injected_steps(down, InjectionSettings(t_edit=1001))) == 0
    assert sum(injected_steps(down, InjectionSettings(gamma=Curve(((0.0, 0.0),))))) == 0


@pytest.mark.fault("G1")
def test_every_grid_of_timesteps_rises():
    """The released code's: int(linspace(0, 1, n) * 999 + 1e-6)."""
    for count in range(2, 1001):
        grid = timestep_grid(count)
        assert grid[0] == 0 and grid[-1] == 999 and all(later > sooner for sooner, later in pairwise(grid))
        assert grid == [int(point + 1e-6) for point in torch.linspace(0, 999, count, dtype=torch.float64).tolist()]


@pytest.mark.fault("G1")
def test_a_thousand_steps_may_all_be_injected():
    every = list(range(999, -1, -1))
    assert sum(injected_steps(every, InjectionSettings(t_edit=0, replace_steps=1000))) == 1000
    assert sum(injected_steps(every, InjectionSettings(t_edit=0, replace_steps=112))) == 112


def test_symmetric_steps_lose_most_of_the_edit():
    """|X'_asym - X'| / |X'_sym - X'| = sigma / (sigma - sigma') at every step."""
    x, plain, changed = (random(1, 4, 3, 3, name=name) for name in ("x", "plain", "changed"))
    sigma, after = 3.0, 2.4
    ends = {}
    for mode in ("asymmetric", "symmetric"):
        settings = InjectionSettings(t_edit=0, t_boost=-1, omega=0.0, mode=mode)
        ends[mode] = next(sample_injected(lambda x, step, on: changed if on else plain, x, [sigma, after], [700],
                                          settings, None)).x
    unchanged = plain + after * (x - plain) / sigma
    moved = [(ends[mode] - unchanged).norm().item() for mode in ("asymmetric", "symmetric")]
    assert moved[0] / moved[1] == pytest.approx(sigma / (sigma - after), rel=1e-9)


def test_presets_are_the_papers():
    assert PRESETS["paper"] == InjectionSettings() and PRESETS["paper"].omega == 0.3
    assert PRESETS["painting"].gamma.at(700) == 0.4 and PRESETS["painting"].t_boost == 0
    few = InjectionSettings(auto_gamma=True)
    assert few.gamma_at(700, 30) == 0.3 and few.gamma_at(700, 20) == pytest.approx(0.45)
    assert few.gamma_at(700, 5) == 0.6
    for wrong in ({"omega": 1.5}, {"omega": math.nan}, {"mode": "both"}):
        with pytest.raises(ValueError):
            InjectionSettings(**wrong)


def test_curves():
    curve = parse_curve("999: 0.1, 400: 0.5")
    assert [curve.at(time) for time in (1000, 999, 699.5, 400, 0)] == [0.1, 0.1, 0.3, 0.5, 0.5]
    assert parse_curve(" 0.3 ").at(123) == 0.3
    for wrong, words in {"": "it is empty", "x": "'x' is no number", "1.2": "1.2 is outside", "-0.1": "outside",
                         "nan": "no number", "0.3, 0.4": "'0.3' has no", "999: 0.1, 0.5": "'0.5' has no timestep",
                         "400: 2": "2 is outside", "inf: 0.3": "no number", "4: .1, 4: .2": "4 is given twice"}.items():
        with pytest.raises(ValueError, match=f"gamma is.*{words}"):
            parse_curve(wrong)


def trace(name="t", steps=3, batch=2, channels=4, **changes):
    features = {"h": random(steps, batch, channels, 2, 2, name=name, dtype=torch.float32).half()}
    return HTrace(features, tuple(float(500 * step) for step in range(steps)), {"model": "m"}, **changes)


def test_traces_are_found_merged_and_masked():
    one, two = trace("one"), trace("two")
    assert [one.nearest(time) for time in (0, 240, 250, 260, 2000)] == [0, 0, 1, 1, 2]      # 250 is as near to 0
    assert one.gap([0, 500, 600]) == pytest.approx(0.1)
    mean = merge_mean([one, two], [0.0, 1.0])
    torch.testing.assert_close(mean.features["h"].float(), two.features["h"].float(), rtol=2e-3, atol=2e-3)
    both = merge_batch([one, two])
    assert both.batch == 4 and [torch.equal(each.features["h"], both.features["h"][:, row:row + 1])
                                for row, each in enumerate(both.contents())] == [True] * 4
    inverted = replace(one, provenance={"from": "inversion"})
    assert inverted.without_last_level().times == (0.0, 500.0) and one.without_last_level().times == one.times
    assert beside(one, inverted).without_last_level().others[0].features["h"].shape[0] == 2
    region = masked(one, torch.full((1, 8, 8), 0.6), threshold=0.5, strength=2.0)
    assert region.mask.shape == (1, 1, 8, 8) and region.threshold == 0.5 and one.mask is None
    both = beside(region, two)
    assert len(both.parts) == 2 and both.parts[1] is two
    with pytest.raises(TraceError, match="Merge first"):
        merge_mean([region, two], [1, 1])
    with pytest.raises(TraceError, match="Mask each"):
        masked(both, torch.ones(1, 8, 8))
    with pytest.raises(TraceError, match="shapes"):
        merge_mean([one, trace("wide", channels=8)], [1, 1])


def test_a_trace_survives_its_file(tmp_path):
    both = beside(masked(trace("one"), torch.ones(1, 8, 8), 0.25, 2.0), trace("two"))
    path = tmp_path / "trace.safetensors"
    write_atomically(path, *trace_tensors(both), "The h-trace")
    again = read_trace(path)
    assert len(again.parts) == 2 and again.times == both.times and again.provenance == both.provenance
    for old, new in zip(both.parts, again.parts, strict=True):
        assert torch.equal(old.features["h"], new.features["h"]) and (old.mask is None) == (new.mask is None)
        assert (old.threshold, old.strength) == (new.threshold, new.strength)
    tensors, metadata = trace_tensors(both)
    parts = [{key: told for key, told in part.items() if key != "threshold"} for part in json.loads(metadata["parts"])]
    write_atomically(path, tensors, metadata | {"parts": json.dumps(parts)}, "The h-trace")
    assert read_trace(path).threshold == 0              # a file from before masks had one


@pytest.mark.fault("E2")
@pytest.mark.parametrize("kind", ["page", "other", "version", "cut", "nan", "short", "parts", "times"])
def test_files_that_are_no_trace(tmp_path, kind):
    path, tensors, metadata = tmp_path / "x.safetensors", *trace_tensors(trace())
    if kind == "nan":
        tensors["0.h"][0, 0, 0, 0, 0] = math.nan
    if kind == "short":
        tensors["0.h"] = tensors["0.h"][:2].contiguous()
    changed = {"other": {"format": "pt"}, "version": metadata | {"format_version": "99"},
               "parts": metadata | {"parts": "many"},
               "times": metadata | {"parts": metadata["parts"].replace('"times": [', '"times": ["soon", ')}}.get(
                   kind, metadata)
    write_atomically(path, tensors, changed, "The h-trace")
    if kind == "page":
        path.write_text("<!doctype html><html>")
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    expected = {"page": "web page", "other": "no h-trace", "version": "version 99", "cut": "cut off",
                "nan": "not finite", "short": "incomplete", "parts": "x.safetensors.*field parts",
                "times": "x.safetensors.*field parts"}[kind]
    with pytest.raises(TraceError, match=expected):
        read_trace(path)


def test_distances_and_thresholds():
    picture = random(2, 3, 32, 32, dtype=torch.float32).sigmoid()
    assert ssim_distance(picture, picture).abs().max() < 1e-5
    near, far = (ssim_distance(picture, picture + step * random(2, 3, 32, 32, name="n", dtype=torch.float32))
                 for step in (0.05, 0.5))
    assert (near < far).all() and (near > 0).all()
    assert first_reached([0, 1, 2, 3], [0.1, 0.6, 0.4, 0.7], 0.5) == 3
    for distances in ([0.1, 0.4], [0.6, 0.4]):
        with pytest.raises(ValueError, match=f"no t_boost.*at 0.5 or above.*highest value is {max(distances)}"):
            first_reached([0, 999], distances, 0.5, "t_boost")
    assert psnr(picture, picture) == math.inf
    assert psnr(torch.tensor([0.0, 1.0]), torch.tensor([0.1, 1.1])) == pytest.approx(20, abs=1e-5)
