"""The training loop: exact resume, cancel, non-finite values, full disk, average, schedules."""
from __future__ import annotations

import contextlib
import os
from dataclasses import replace

import pytest
import torch
from torch import nn

from frozen_diffusion.modules.files import atomic_write
from frozen_diffusion.modules.seeding import batch_indices, stream
from frozen_diffusion.modules.training.checkpoint import CheckpointError, CheckpointStore
from frozen_diffusion.modules.training.ema import MovingAverage
from frozen_diffusion.modules.training.loop import NonFiniteError, train
from frozen_diffusion.modules.training.settings import TrainSettings, learning_rate


def network() -> nn.Module:
    torch.manual_seed(7)
    net = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Dropout(0.3), nn.Linear(16, 2))
    net.register_parameter("unused", nn.Parameter(torch.ones(3)))
    return net


DATA = torch.randn(10, 4, generator=stream("test data"))
TARGET = DATA[:, :2] * DATA[:, 2:]


class Task:
    """A small regression with noise and dropout; `fail` maps a draw to what happens there."""

    def __init__(self, fail=None):
        self.net, self.fail = network(), fail or {}

    def batches(self, draw):
        if draw in self.fail and isinstance(self.fail[draw], BaseException):
            raise self.fail[draw]
        return draw, batch_indices(len(DATA), 4, 0, draw)

    def loss(self, batch, generator):
        draw, rows = batch
        noise = 0.1 * torch.randn(len(rows), 4, generator=generator)
        value = (self.net(DATA[rows] + noise) - TARGET[rows]).square().mean()
        return value * self.fail.get(draw, 1.0), {"rows": float(len(rows))}

    def run(self, settings, store=None, ema=None, stop_after=None):
        records = []
        with contextlib.closing(train(self.net, self.loss, self.batches, settings, store, ema)) as steps:
            for record in steps:
                records.append(record)
                if record.step == stop_after:
                    break
        return records


SETTINGS = TrainSettings(steps=12, lr=1e-2, warmup=2, schedule="cosine", accumulate=2, checkpoint_every=5)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("change", [{}, {"precision": "bf16"}, {"optimizer": "muon"}, {"optimizer": "muon-conv"}])
@pytest.mark.parametrize("stop", [1, 5, 7, 12])
def test_resumed_run_equals_uninterrupted_bit_for_bit(tmp_path, change, stop):
    settings = replace(SETTINGS, **change)
    whole = Task()
    ema = MovingAverage(whole.net, 0.9)
    expected = whole.run(settings, CheckpointStore(tmp_path / "whole.safetensors"), ema)

    store = CheckpointStore(tmp_path / "cut.safetensors")
    first = Task()
    before = first.run(settings, store, MovingAverage(first.net, 0.9), stop_after=stop)
    torch.manual_seed(99)                       # whatever else happens in the process must not matter
    second = Task()
    resumed_average = MovingAverage(second.net, 0.9)
    after = second.run(settings, store, resumed_average)

    assert same(whole.net.state_dict(), second.net.state_dict())
    assert same(ema.weights, resumed_average.weights)
    assert [r.loss for r in before + after] == [r.loss for r in expected]
    assert same(*(CheckpointStore(tmp_path / f"{n}.safetensors").load()[0] for n in ("whole", "cut")))


def test_loss_falls_and_records_tell():
    records = Task().run(TrainSettings(steps=60, lr=1e-2))
    assert [r.step for r in records] == list(range(1, 61))
    assert sum(r.loss for r in records[-10:]) < 0.7 * sum(r.loss for r in records[:10])
    assert records[0].extras == {"rows": 4.0} and records[0].grad_norm > 0 and records[0].lr == 1e-2


@pytest.mark.fault("E9")
def test_reported_terms_are_means_over_the_draws_of_a_step():
    """Like the loss; a term that only some draws report is the mean of those."""
    net = nn.Linear(1, 1)

    def loss(draw, generator):
        value = (net.weight * 0).sum() + draw
        return value, {"term": value.item()} | ({"now and then": 10.0 * draw} if draw % 4 in (1, 2) else {})

    first, second = train(net, loss, lambda draw: draw, TrainSettings(steps=2, accumulate=4))
    assert first.loss == first.extras["term"] == 1.5 and second.loss == second.extras["term"] == 5.5
    assert first.extras["now and then"] == 15 and second.extras["now and then"] == 55


def test_works_inside_inference_mode_and_leaves_it_alone(tmp_path):
    store = CheckpointStore(tmp_path / "run.safetensors")
    for steps in (2, 4):                        # from scratch, then resumed
        task = Task()
        with torch.inference_mode():
            ema = MovingAverage(task.net)
            for _ in train(task.net, task.loss, task.batches, TrainSettings(steps=steps), store, ema):
                assert torch.is_inference_mode_enabled()
    with torch.inference_mode():
        frozen = network()
    with pytest.raises(ValueError, match="inference mode"):
        next(train(frozen, task.loss, task.batches, TrainSettings(steps=2)))


def test_global_random_state_is_put_back():
    task = Task()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    task.run(TrainSettings(steps=2))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_loss_stops_at_last_good_checkpoint(tmp_path, bad):
    store = CheckpointStore(tmp_path / "run.safetensors")
    task = Task({14: bad})                      # draw 14 belongs to step 8
    with pytest.raises(NonFiniteError, match=r"loss of step 8 .*checkpoint of step 5 .*Lower the"):
        task.run(SETTINGS, store)
    assert store.facts()["step"] == 5
    assert all(weight.isfinite().all() for weight in task.net.parameters())


def test_non_finite_gradient_stops():
    net = nn.Linear(1, 1)
    steps = train(net, lambda batch, generator: (net.weight * 0).sqrt().sum(), lambda draw: None,
                  TrainSettings(steps=1))
    with pytest.raises(NonFiniteError, match=r"gradient of step 1 .*No checkpoint had been written"):
        next(steps)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")])
def test_exception_inside_a_step_leaves_the_last_finished_step(tmp_path, error):
    store = CheckpointStore(tmp_path / "run.safetensors")
    with pytest.raises(type(error)):
        Task({7: error}).run(SETTINGS, store)   # in the middle of step 4: one of two draws is done
    assert store.facts()["step"] == 3
    resumed = Task()
    resumed.run(SETTINGS, store)
    whole = Task()
    whole.run(SETTINGS)
    assert same(whole.net.state_dict(), resumed.net.state_dict())


def test_cut_during_the_update_keeps_the_older_checkpoint(tmp_path):
    class CutAverage(MovingAverage):
        def update(self, model):
            if self.updates == 7:
                raise KeyboardInterrupt
            super().update(model)

    store, task = CheckpointStore(tmp_path / "run.safetensors"), Task()
    with pytest.raises(KeyboardInterrupt):
        task.run(SETTINGS, store, CutAverage(task.net, 0.9))
    assert store.facts()["step"] == 5


def test_other_settings_network_or_run_are_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    Task().run(SETTINGS, CheckpointStore(path, {"data": "A"}), stop_after=3)
    with pytest.raises(CheckpointError, match="made with warmup 2, this run has 0.*These may differ: .*lr, precision"):
        Task().run(TrainSettings(**{**SETTINGS.__dict__, "warmup": 0}), CheckpointStore(path))
    with pytest.raises(CheckpointError, match="made with data 'A', this run has 'B'"):
        Task().run(SETTINGS, CheckpointStore(path, {"data": "B"}))
    other = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="weights of another network"):
        next(train(other, None, None, SETTINGS, CheckpointStore(path)))
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(CheckpointError, match="cannot be read as a training checkpoint"):
        Task().run(SETTINGS, CheckpointStore(path))


def test_a_run_that_became_nan_goes_on_with_another_rate_or_precision(tmp_path):
    store = CheckpointStore(tmp_path / "run.safetensors")
    with pytest.raises(NonFiniteError):
        Task(fail={14: float("nan")}).run(SETTINGS, store)
    calmer = TrainSettings(**{**SETTINGS.__dict__, "lr": 1e-3, "precision": "bf16", "grad_clip": 0.1})
    records = Task().run(calmer, store)
    assert [records[0].step, records[-1].step] == [6, 12]       # the last good checkpoint is of step 5


def test_a_finished_run_can_be_lengthened(tmp_path):
    store = CheckpointStore(tmp_path / "run.safetensors")
    Task().run(TrainSettings(steps=3), store)
    assert Task().run(TrainSettings(steps=3), store) == []
    assert [r.step for r in Task().run(TrainSettings(steps=5), store)] == [4, 5]


def test_full_disk_keeps_the_previous_checkpoint(small_disk):
    path = small_disk / "run.safetensors"
    store, task = CheckpointStore(path), Task()
    steps = train(task.net, task.loss, task.batches, TrainSettings(steps=4, checkpoint_every=1), store)
    next(steps)
    good = path.read_bytes()
    with open(small_disk / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
        while filler.write(bytes(1024)):
            pass
    with pytest.raises(CheckpointError, match=r"not be written.*It needs .* MiB are free.*previous one .* intact"):
        list(steps)
    assert path.read_bytes() == good
    assert sorted(os.listdir(small_disk)) == ["filler", "run.safetensors"]


def test_write_error_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    store, task = CheckpointStore(tmp_path / "run.safetensors"), Task()
    steps = train(task.net, task.loss, task.batches, SETTINGS, store)
    for _ in range(6):
        next(steps)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic_write, "save_file", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        steps.close()
    assert store.facts()["step"] == 5 and os.listdir(tmp_path) == ["run.safetensors"]


def test_average_follows_its_formula_and_is_applied_and_undone_exactly():
    task = Task()
    expected = {name: weight.detach().double() for name, weight in task.net.named_parameters()}
    ema = MovingAverage(task.net, 0.3)
    for record in train(task.net, task.loss, task.batches, TrainSettings(steps=6, lr=1e-2), ema=ema):
        n = record.step - 1
        decay = min(0.3, (1 + n) / (10 + n))                # the warm-up of diffusers' EMAModel
        for name, weight in task.net.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * weight.detach().double()
    for name, value in ema.weights.items():
        assert torch.allclose(value.double(), expected[name], atol=1e-7)
    before = {name: tensor.clone() for name, tensor in task.net.state_dict().items()}
    with ema.applied(task.net):
        assert same(dict(task.net.named_parameters()), ema.weights)
    assert same(before, task.net.state_dict())


def test_learning_rate():
    settings = TrainSettings(steps=12, lr=1.0, warmup=4, schedule="cosine")
    rates = [learning_rate(settings, step) for step in range(12)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0] and rates[8] == pytest.approx(0.5)
    assert rates[4:] == sorted(rates[4:], reverse=True) and rates[-1] > 0


def test_lr_scale_by_name():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    settings = TrainSettings(steps=1, lr=0.1, weight_decay=0.0)
    list(train(net, lambda batch, generator: net(torch.ones(1, 2)).square().sum(), lambda draw: None,
               settings, lr_scale=lambda name: 0.1 if name.startswith("0.") else 1.0))
    moved = {name: (weight - before[name]).abs().max().item() for name, weight in net.named_parameters()}
    assert moved["0.weight"] == pytest.approx(0.01, rel=1e-3)
    assert moved["1.weight"] == pytest.approx(0.1, rel=1e-3)


def test_muon_moves_all_directions_of_a_matrix_equally_far_and_leaves_the_rest_to_adamw():
    def moved(**change) -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        net = nn.Linear(8, 6)
        before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
        list(train(net, lambda batch, generator: net(DATA[:, [0, 1, 2, 3, 3, 2, 1, 0]]).square().sum(),
                   lambda draw: None, TrainSettings(steps=1, lr=0.1, weight_decay=0.0, **change),
                   lr_scale=lambda name: 0.5))
        return {name: weight.detach() - before[name] for name, weight in net.named_parameters()}

    muon, adamw = moved(optimizer="muon"), moved()
    assert muon["bias"].equal(adamw["bias"])
    sizes, others = (torch.linalg.svdvals(change["weight"])[:4] for change in (muon, adamw))    # the inputs span four
    assert sizes.mean().item() == pytest.approx(0.05 * 0.2 * 8 ** 0.5, rel=0.2)         # rate, scale, sqrt(widest side)
    assert sizes.max() / sizes.min() < 2 < others.max() / others.min()


def test_muon_takes_kernels_for_matrices_if_asked_to():
    """A 1x1 convolution is trained as the linear layer that it is; plain muon leaves it to AdamW."""
    def moved(net, x, kind) -> torch.Tensor:
        before = net.weight.detach().clone()
        list(train(net, lambda batch, generator: net(x).square().sum(), lambda draw: None,
                   TrainSettings(steps=3, lr=0.1, weight_decay=0.01, optimizer=kind)))
        return (net.weight.detach() - before).flatten(1)

    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    linear, kernel, other = nn.Linear(4, 3), nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)
    for convolution in (kernel, other):
        convolution.weight.data.copy_(linear.weight.data[..., None, None])
        convolution.bias.data.copy_(linear.bias.data)
    as_matrix = moved(kernel, x[..., None, None], "muon-conv")
    torch.testing.assert_close(as_matrix, moved(linear, x, "muon"), rtol=1e-3, atol=1e-5)
    assert not torch.allclose(moved(other, x[..., None, None], "muon"), as_matrix, rtol=0.1)


def test_muon_without_torch_for_it(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ValueError, match="torch 2.9.*this is.*adamw"):
        next(train(network(), None, None, replace(SETTINGS, optimizer="muon")))


def test_every_epoch_shows_every_sample_once():
    draws = [index for draw in range(5) for index in batch_indices(10, 4, 3, draw)]
    assert sorted(draws[:10]) == sorted(draws[10:20]) == list(range(10)) and draws[:10] != draws[10:20]
    assert batch_indices(2, 5, 0, 1) == batch_indices(2, 5, 0, 1) and len(batch_indices(2, 5, 0, 1)) == 5


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"lr": 0.0}, {"schedule": "linear"}, {"precision": "fp16"},
                                   {"optimizer": "sgd"}])
def test_wrong_settings(wrong):
    with pytest.raises(ValueError, match="must be"):
        TrainSettings(**{"steps": 1, **wrong})
