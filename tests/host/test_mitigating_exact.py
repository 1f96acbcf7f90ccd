"""Mitigating gradient in mode exact: gradients that would be wrong are refused, or noticed in the run."""
from __future__ import annotations

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from motion_examples import TINY, random_motion

from frozen_diffusion.modules.host.calls import KEY, know_roles
from frozen_diffusion.modules.host.motion.apply import apply_motion, hold_motion
from frozen_diffusion.modules.host.motion.mitigating_gradient import DIFFERENCE, check_slope, mitigate_gradient
from testhost.models import sample

pytestmark = pytest.mark.usefixtures("unloaded")
SIZE = (8, 8)


def exact(model, **settings):
    return mitigate_gradient(model, 40.0, "exact", **settings)


def with_unet(model, change):
    """A clone of the MODEL with a node that gives the U-Net `change`(x) to see."""
    model = model.clone()
    model.set_model_unet_function_wrapper(
        lambda apply, args: apply(change(args["input"]), args["timestep"], **args["c"]))
    return model


@pytest.mark.fault("E10")
@pytest.mark.parametrize("streams", [False, True])
def test_streamed_weights_are_refused(base, streams):
    """Newer hosts' patchers tell by is_dynamic() whether weights come and go in the middle of a call."""
    model = exact(base)
    model.is_dynamic = lambda: streams
    if not streams:
        assert torch.equal(sample(model, 3, size=SIZE, steps=1), sample(exact(base), 3, size=SIZE, steps=1))
        return
    with pytest.raises(ValueError, match="dynamic loading.*mode fast, or start ComfyUI with --disable-dynamic-vram"):
        sample(model, 3, size=SIZE, steps=1)
    fast = mitigate_gradient(base, 40.0)
    fast.is_dynamic = model.is_dynamic
    assert sample(fast, 3, size=SIZE, steps=1).isfinite().all()


@pytest.mark.fault("E10")
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_wrong_gradients_are_noticed(base, share):
    """Values are right, and the derivative through the U-Net is a part of what it should be."""
    model = with_unet(base, lambda x: share * x + (1 - share) * x.detach())
    with pytest.raises((RuntimeError, ValueError), match="differs by|No gradient"):
        sample(exact(model), 3, size=SIZE, steps=1)


@pytest.mark.fault("E10")
@pytest.mark.parametrize("error", [0.1, 1.5])
def test_a_slope_is_compared_with_differences(error):
    """<g, J v> against <J^T g, v> of a bent function, in float64: a right slope passes, a wrong one does not."""
    generator = torch.Generator().manual_seed(4)
    x, g = (torch.randn(3, 4, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2))

    def predict(x):
        return torch.tanh(x) + 0.1 * x.roll(1, 0) ** 2

    slope = torch.autograd.functional.vjp(predict, x, g)[1]
    check_slope(predict, x, g, slope, DIFFERENCE)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    for wrong in ((1 + error) * slope, slope + error * slope.norm() * noise / noise.norm() + error * slope, g):
        with pytest.raises(RuntimeError, match="differs by"):
            check_slope(predict, x, g, wrong, DIFFERENCE)


@pytest.mark.fault("E10")
def test_the_gradient_is_checked_once_a_run(base):
    """At the first active step of every run, each node for itself; the marked calls are no steps."""
    calls = []

    def count(executor, x, timesteps, context, y, control, options, **kwargs):
        calls.append((round(float(options["sigmas"][0]), 3), options[KEY].extra))
        return executor(x, timesteps, context, y, control, options, **kwargs)

    model = base.clone()
    know_roles(model)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", count)
    late = exact(model, start_percent=0.5)
    for _ in range(2):
        calls.clear()
        sample(late, 2, size=SIZE, steps=4)
        levels = sorted({level for level, _ in calls}, reverse=True)
        assert [calls.count((level, True)) for level in levels] == [0, 0, 2, 0]
        assert [calls.count((level, False)) for level in levels] == [1, 1, 1, 1]
    calls.clear()
    sample(exact(late, end_percent=0.4), 2, size=SIZE, steps=4)
    assert [calls.count((level, True)) for level in levels] == [2, 0, 2, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_right_gradients_of_half_precision_pass(tiny_sd15, dtype):
    """Rounding is no wrong gradient."""
    held = hold_motion(TINY, random_motion().state_dict(), "random", dtype=dtype)
    model = apply_motion(tiny_sd15(dtype=dtype), held)
    assert sample(exact(model), 2, size=SIZE, steps=1).isfinite().all()
