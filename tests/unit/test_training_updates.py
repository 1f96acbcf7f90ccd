"""Several updates in a step, on a toy GAN: own optimizers, a lazy regulariser, EMA without warm-up, exact resume."""
from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from frozen_diffusion.modules.seeding import batch_indices, stream
from frozen_diffusion.modules.training.checkpoint import CheckpointError, CheckpointStore
from frozen_diffusion.modules.training.ema import MovingAverage
from frozen_diffusion.modules.training.loop import NonFiniteError, train
from frozen_diffusion.modules.training.settings import TrainSettings
from frozen_diffusion.modules.training.updates import OptimizerSettings, Update

SETTINGS = TrainSettings(steps=10, lr=2e-3, betas=(0.0, 0.99), weight_decay=0.0, checkpoint_every=4)
LAZY = 4
OF_DISCRIMINATOR = OptimizerSettings(lr=4e-3, betas=(0.0, 0.9))
REAL = 0.3 * torch.randn(64, 2, generator=stream("toy gan")) + torch.tensor([1.0, -2.0])


def layers(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 24), nn.SiLU(), nn.Linear(24, outputs))


class OfGenerator(MovingAverage):
    """The average of the generator alone, updated with the whole model."""

    def update(self, model):
        super().update(model["generator"])


class ToyGAN:
    """Points around (1, -2) from noise: non-saturating loss, R1 now and then with the discriminator's optimizer."""

    def __init__(self, every=LAZY, d=OF_DISCRIMINATOR, bad=()):
        torch.manual_seed(3)
        self.net, self.bad = nn.ModuleDict({"generator": layers(2, 2), "discriminator": layers(2, 1)}), bad
        self.calls: list[str] = []
        self.ema = OfGenerator(self.net["generator"], 0.9, warmup=False)
        self.updates = [Update(self.of_generator, "generator", "generator."),
                        Update(self.of_discriminator, "discriminator", "discriminator.", optimizer=d),
                        Update(self.r1, "r1", "discriminator.", every)]

    def batch(self, draw):
        return draw, REAL[batch_indices(len(REAL), 8, 0, draw)]

    def fakes(self, generator):
        return self.net["generator"](torch.randn(8, 2, generator=generator))

    def of_generator(self, batch, generator):
        self.calls.append("generator")
        return F.softplus(-self.net["discriminator"](self.fakes(generator))).mean()

    def of_discriminator(self, batch, generator):
        self.calls.append("discriminator")
        judge = self.net["discriminator"]
        loss = F.softplus(judge(self.fakes(generator))).mean() + F.softplus(-judge(batch[1])).mean()
        return (loss * float("nan") if batch[0] in self.bad else loss), {"real": judge(batch[1]).mean().item()}

    def r1(self, batch, generator):
        self.calls.append("r1")
        real = batch[1].requires_grad_()
        slope, = torch.autograd.grad(self.net["discriminator"](real).sum(), real, create_graph=True)
        return 0.5 * LAZY * slope.square().sum(1).mean()

    def run(self, settings=SETTINGS, store=None, stop_after=None):
        records = []
        with contextlib.closing(train(self.net, self.updates, self.batch, settings, store, self.ema)) as steps:
            for record in steps:
                records.append(record)
                if record.step == stop_after:
                    break
        return records


def test_updates_come_in_their_order_and_the_lazy_one_now_and_then():
    toy = ToyGAN()
    records = toy.run()
    step = ["generator", "discriminator"]
    assert toy.calls == sum([step + ["r1"] * (number % LAZY == 0) for number in range(10)], [])
    assert all({"discriminator loss", "discriminator gradient", "real"} <= set(record.extras) for record in records)
    assert [("r1 loss" in record.extras) for record in records] == [number % LAZY == 0 for number in range(10)]


def test_an_update_changes_its_own_weights_alone():
    """The same as torch's optimizers by hand, one after the other, with the toy's own noise."""
    toy, hand = ToyGAN(), ToyGAN()
    toy.run()
    parts = {name: list(hand.net[name].parameters()) for name in hand.net}
    own = {"generator": torch.optim.AdamW(parts["generator"], 2e-3, (0.0, 0.99), weight_decay=0.0, fused=True),
           "discriminator": torch.optim.AdamW(parts["discriminator"], 4e-3, (0.0, 0.9), weight_decay=0.0, fused=True)}
    for step in range(10):
        for update in hand.updates:
            if step % update.every == 0:
                owner = update.weights.removesuffix(".")
                result = update.loss(hand.batch(step), stream("loss", update.name, 0, step))
                loss = result[0] if isinstance(result, tuple) else result
                gradients = torch.autograd.grad(loss, parts[owner], allow_unused=True)
                for weight, gradient in zip(parts[owner], gradients, strict=True):
                    weight.grad = gradient
                if gradients[0] is not None:
                    nn.utils.clip_grad_norm_(parts[owner], 1.0)
                own[owner].step()
    for name, weight in toy.net.state_dict().items():
        torch.testing.assert_close(weight, hand.net.state_dict()[name])


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_a_resumed_gan_is_the_uninterrupted_one_bit_for_bit(tmp_path, stop):
    whole = ToyGAN()
    expected = whole.run(store=CheckpointStore(tmp_path / "whole.safetensors"))
    first, second, store = ToyGAN(), ToyGAN(), CheckpointStore(tmp_path / "cut.safetensors")
    before = first.run(store=store, stop_after=stop)
    after = second.run(store=store)
    assert [record.loss for record in before + after] == [record.loss for record in expected]
    assert [record.extras for record in before + after] == [record.extras for record in expected]
    for one, other in ((whole.net.state_dict(), second.net.state_dict()), (whole.ema.weights, second.ema.weights)):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_gan_with_other_updates_is_not_resumed(tmp_path):
    store = CheckpointStore(tmp_path / "gan.safetensors")
    ToyGAN().run(store=store, stop_after=2)
    for change in ({"every": 8}, {"d": OptimizerSettings(lr=4e-3, betas=(0.0, 0.5))}):
        with pytest.raises(CheckpointError, match="was made with updates"):
            ToyGAN(**change).run(store=store)
    assert ToyGAN(d=OptimizerSettings(lr=1e-3, betas=(0.0, 0.9))).run(store=store)     # the rate may differ


def test_a_bad_second_update_leaves_the_checkpoint(tmp_path):
    store = CheckpointStore(tmp_path / "gan.safetensors")
    toy = ToyGAN(bad=(6,))
    with pytest.raises(NonFiniteError, match="the loss of step 7 is nan. The checkpoint of step 4"):
        toy.run(store=store)
    assert store.facts()["step"] == 4 and all(weight.grad is None for weight in toy.net.parameters())


def test_ema_without_warm_up_is_the_plain_formula():
    net = nn.Linear(2, 1)
    ema, expected = MovingAverage(net, 0.9, warmup=False), net.weight.detach().clone()
    for _ in range(3):
        with torch.no_grad():
            net.weight += 1
        ema.update(net)
        expected = 0.9 * expected + 0.1 * net.weight.detach()
    torch.testing.assert_close(ema.weights["weight"], expected)


def test_weight_decay_by_parameter():
    """Without gradient nothing but decay moves a weight: the bias here has none, the other half of the usual."""
    net = nn.Linear(3, 2)
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    settings = TrainSettings(steps=1, lr=0.1, weight_decay=0.5)
    list(train(net, lambda batch, generator: 0 * (net.weight.sum() + net.bias.sum()), lambda draw: None, settings,
               decay_scale=lambda name: 0.5 if name == "weight" else 0.0))
    torch.testing.assert_close(net.weight.detach(), before["weight"] * (1 - 0.1 * 0.5 * 0.5))
    torch.testing.assert_close(net.bias.detach(), before["bias"])


@pytest.mark.parametrize(("updates", "text"), [
    ([Update(None, "a"), Update(None, "a")], "different names"),
    ([Update(None, "a", every=2)], "first update acts in every step"),
    ([Update(None, "a"), Update(None, "b", "generator.")], "belongs to 2 optimizers"),
    ([Update(None, "a", "generator.")], "belongs to 0 optimizers"),
    ([Update(None, "a"), Update(None, "b", "nobody.")], "changes nothing")])
def test_updates_that_make_no_training_are_refused(updates, text):
    with pytest.raises(ValueError, match=text):
        list(train(ToyGAN().net, updates, lambda draw: None, replace(SETTINGS, steps=1)))
    with pytest.raises(ValueError, match="1 or more steps"):
        Update(None, every=0)
