"""Several processes that train together: the same as one with as many more draws a step."""
from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from frozen_diffusion.modules.training.processes import Processes, launch_settings, launched

# A regression with a memory, a weight that only some draws use, and a number that only some draws report.
TRAINING = """
import json, sys
from pathlib import Path
import torch
from torch import nn
from frozen_diffusion.modules.seeding import batch_indices, stream
from frozen_diffusion.modules.training.checkpoint import CheckpointStore
from frozen_diffusion.modules.training.loop import TrainSettings, train
from frozen_diffusion.modules.training.processes import launched

processes, folder = launched(torch.device("cpu")), Path(sys.argv[2])
accumulate, stop = int(sys.argv[1]), int(sys.argv[3])
torch.manual_seed(1 + processes.index)              # the first one's weights count
net = nn.ModuleDict({"plain": nn.Linear(4, 2), "rare": nn.Linear(4, 2)})
memory = nn.BatchNorm1d(1)
data = torch.randn(10, 4, generator=stream("data"))


def batch(draw):
    return draw, data[batch_indices(10, 3, 0, draw)]


def loss(batch, generator):
    draw, x = batch
    y = net["plain"](x + 0.1 * torch.randn(x.shape, generator=generator))
    if draw % 4 == 3:
        y = y + net["rare"](x)
    memory.running_mean += x.mean() * processes.is_first
    return (y - x[:, :2]).square().mean(), {"rare": float(draw)} if draw % 4 == 3 else {}


store = CheckpointStore(folder / "run.safetensors")
settings = TrainSettings(steps=6, lr=1e-2, accumulate=accumulate, checkpoint_every=2)
seen = []
for record in train(net, loss, batch, settings, store, memory=memory, processes=processes):
    seen.append((record.loss, record.grad_norm, dict(record.extras)))
    if record.step == stop:
        break
processes.wait()
if processes.is_first:
    weights = {name: weight.tolist() for name, weight in net.state_dict().items()}
    (folder / "told.json").write_text(json.dumps([seen, weights, memory.running_mean.tolist()]))
"""


def trained(tmp_path, name: str, accumulate: int, processes: int = 1, stop: int = 0):
    """(records, weights, memory) of the toy training."""
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    (script := tmp_path / "training.py").write_text(TRAINING)
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if processes > 1 else []
    done = subprocess.run([sys.executable, *launch, str(script), str(accumulate), str(folder), str(stop)],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "told.json").read_text())


def test_two_processes_are_one_with_twice_the_draws(tmp_path):
    """Losses, gradients, reports and weights; and the one goes on from the checkpoint of the two."""
    pytest.importorskip("accelerate")
    one, two = trained(tmp_path, "one", 4), trained(tmp_path, "two", 2, processes=2, stop=4)
    close = {"rel": 1e-5, "abs": 1e-6}
    for (loss, norm, extras), (other, other_norm, other_extras) in zip(one[0][:4], two[0], strict=True):
        assert (other, other_norm) == pytest.approx((loss, norm), **close) and other_extras == pytest.approx(extras)
    on = trained(tmp_path, "two", 4)
    assert [loss for loss, *_ in on[0]] == pytest.approx([loss for loss, *_ in one[0][4:]], **close)
    for name, weight in one[1].items():
        torch.testing.assert_close(torch.tensor(on[1][name]), torch.tensor(weight), rtol=1e-5, atol=1e-6)


def test_one_process_needs_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = launched(torch.device("cpu"))
    weight = torch.nn.Parameter(torch.ones(2))
    alone.mean_gradients([weight])
    assert (alone.count, alone.is_first, weight.grad) == (1, True, None)
    assert alone.mean_report(1.5, {"x": [2.0]}) == (1.5, {"x": [2.0]})
    assert Processes().count == 1


def test_several_processes_want_accelerate(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ValueError, match="pip install accelerate"):
        launched(torch.device("cpu"))


def test_what_the_launcher_was_asked_for(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert launch_settings() == {"precision": "bf16", "accumulate": 4}
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ValueError, match="mixed_precision fp16.*Launch with --mixed_precision bf16"):
        launch_settings()
