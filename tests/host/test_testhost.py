"""The test host itself: tiny models behave like models, and the host runs in this process."""
import importlib
from pathlib import Path

import pytest
import torch

from testhost.models import sample

BENCHES = Path(__file__).resolve().parents[1] / "bench"


@pytest.mark.parametrize("family", ["tiny_sd15", "tiny_sdxl"])
def test_tiny_models_sample(family, request):
    """Same seed, same picture; finite and neither dead nor exploding."""
    make = request.getfixturevalue(family)
    first, again = (sample(make(), frames=2) for _ in range(2))
    assert torch.equal(first, again)
    assert first.isfinite().all() and 0.1 < first.std() < 1000


def test_every_part_of_a_tiny_model_counts(tiny_sd15):
    """No parameter is uninitialised or constant zero."""
    parameters = tiny_sd15().model.diffusion_model.state_dict()
    assert all(value.isfinite().all() and value.abs().sum() > 0 for value in parameters.values())


def test_nodes_run_in_process(comfy):
    """A core node runs through the fixture as the executor runs it."""
    latent, = comfy.run("EmptyLatentImage", width=64, height=32, batch_size=3)
    assert latent["samples"].shape == (3, 4, 4, 8)


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHES.glob("[!_]*.py")))
def test_benchmarks_can_be_started(name):
    """They are too slow for the suite; what they import is not."""
    module = importlib.import_module(f"bench.{name}")
    assert callable(module.run) and module.__doc__
