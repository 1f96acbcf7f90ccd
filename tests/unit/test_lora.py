"""LoRAs beside layers: exact where they must be, the same as merged weights, in and out of files."""
from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from frozen_diffusion.modules.training.lora import LoRASet, attach, attach_factors
from frozen_diffusion.modules.training.lora_keys import Factors, kohya_key, read_factors, split_key

NAMES = {"lora_unet_conv": "body.conv", "body.wide": "body.wide", "point": "body.point", "out.0": "out"}


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Network(nn.Module):
    """Convolutions with stride, padding and dilation, a 1x1 one and a linear layer, all frozen."""

    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict({"conv": nn.Conv2d(3, 8, 3, stride=2, padding=1),
                                   "wide": nn.Conv2d(8, 8, (3, 1), padding="same", dilation=2),
                                   "point": nn.Conv2d(8, 6, 1)})
        self.out = nn.Linear(6, 5)
        for number, weight in enumerate(self.requires_grad_(False).parameters()):
            weight.copy_(0.5 * randn(*weight.shape, seed=number))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.body.values():
            x = layer(x).tanh()                                                 # [B, 8, 4, 4]
        return self.out(x.movedim(1, -1))                                       # [B, 4, 4, 5]


X = randn(2, 3, 8, 8, seed=50)


def trained(network: nn.Module, rank: int = 2, alpha: float | None = None, seed: int = 0) -> LoRASet:
    """LoRAs that change something."""
    loras = attach(network, NAMES, rank, alpha, seed)
    for number, lora in enumerate(loras.by_name.values()):
        lora.up.data = 0.5 * randn(*lora.up.shape, seed=seed + number)
    return loras


def test_nothing_changes_at_first_at_scale_zero_and_when_off():
    """Also where the change is no number: a layer that is off adds nothing, not even zeros."""
    network = Network()
    before = network(X)
    loras = attach(network, NAMES, 4)
    assert torch.equal(network(X), before)
    for lora in loras.by_name.values():
        lora.up.data.fill_(torch.nan)
    assert network(X).isnan().all()
    with loras.off():
        assert torch.equal(network(X), before)
    loras.set_scale(0.0)
    assert torch.equal(network(X), before)
    loras.set_scale(lambda: 0.0)
    assert torch.equal(network(X), before)


def test_a_block_leaves_the_scales_as_it_found_them():
    loras = attach(Network(), NAMES, 4)
    loras.by_name["point"].scale = 0.3
    with pytest.raises(KeyError), loras.scaled(2.0):
        assert {lora.scale for lora in loras.by_name.values()} == {2.0}
        with loras.off():
            assert {lora.scale for lora in loras.by_name.values()} == {0.0}
        assert {lora.scale for lora in loras.by_name.values()} == {2.0}
        raise KeyError
    assert [lora.scale for lora in loras.by_name.values()] == [1.0, 1.0, 0.3, 1.0]


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (5.0, 1.0), (1.0, -0.7)])
def test_merged_weights_are_the_hooked_network(alpha, scale):
    network = Network()
    loras = trained(network, 3, alpha)
    loras.set_scale(scale)
    state = loras.merged(network.state_dict(), scale)
    out, plain = network(X), Network()
    assert (out - plain(X)).abs().max() > 0.1
    plain.load_state_dict(state)
    torch.testing.assert_close(plain(X), out, rtol=1e-4, atol=1e-5)
    change = loras.by_name["lora_unet_conv"].weight_change()
    by_hand = torch.einsum("orxy,rihw->oihw", loras.by_name["lora_unet_conv"].up, loras.by_name["lora_unet_conv"].down)
    torch.testing.assert_close(change, by_hand * (1 if alpha is None else alpha / 3))


def test_merging_keeps_dtypes_and_the_state_it_was_given():
    network = Network().to(torch.bfloat16)
    state = network.state_dict()
    kept = {key: value.clone() for key, value in state.items()}
    changed = trained(network).merged(state)
    assert {value.dtype for value in changed.values()} == {torch.bfloat16}
    assert all(torch.equal(state[key], kept[key]) for key in kept)
    assert {key for key in kept if not torch.equal(changed[key], kept[key])} == {
        f"{path}.weight" for path in NAMES.values()}


def test_two_loras_on_one_layer_add_up():
    """As the sum of the weight changes, and as one LoRA of both ranks."""
    network = Network()
    one, two = trained(network, 2), trained(network, 3, alpha=1.5, seed=9)
    one.set_scale(0.5)
    out, plain = network(X), Network()
    plain.load_state_dict(two.merged(one.merged(network.state_dict(), 0.5)))
    torch.testing.assert_close(plain(X), out, rtol=1e-4, atol=1e-5)
    joined, factors = Network(), {}
    for name in NAMES:
        a, b = one.by_name[name], two.by_name[name]
        factors[name] = Factors(torch.cat((a.down, b.down)), torch.cat((0.5 * a.up, 0.5 * b.up), dim=1), 5.0)
    attach_factors(joined, NAMES, factors)
    torch.testing.assert_close(joined(X), out, rtol=1e-4, atol=1e-5)
    with one.off(), two.off():
        assert torch.equal(network(X), Network()(X))


def test_a_function_is_asked_for_the_scale_at_every_call():
    network, steps = Network(), [1.0, 0.5, 0.0]
    loras, outputs = trained(network), []
    with loras.scaled(0.0):
        loras.by_name["out.0"].scale = lambda: steps[0]
        while steps:
            outputs.append(network(X))
            del steps[0]
    full, half, none = outputs
    assert torch.equal(none, Network()(X)) and not torch.equal(full, none)
    torch.testing.assert_close(half, (full + none) / 2)


def test_only_the_factors_get_gradients_and_one_set_trains_while_another_is_frozen():
    network = Network()
    absorber, motion = trained(network), attach(network, NAMES, 2, seed=4)
    absorber.requires_grad_(False)
    network(X).square().mean().backward()
    assert all(weight.grad is None for part in (network, absorber) for weight in part.parameters())
    for lora in motion.by_name.values():
        assert lora.up.grad.abs().sum() > 0 and lora.down.grad.count_nonzero() == 0     # up is 0 in the first step
    motion.requires_grad_(False)
    absorber.requires_grad_(True)
    network(X).square().mean().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in absorber.parameters())


def test_initial_values_come_from_the_seed_alone():
    network, state = Network(), torch.get_rng_state()
    one, same, other = (attach(network, NAMES, 64, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    for name in NAMES:
        downs = [loras.by_name[name].down for loras in (one, same, other)]
        assert torch.equal(downs[0], downs[1]) and not torch.equal(downs[0], downs[2])
    assert one.by_name["lora_unet_conv"].down.std().item() == pytest.approx(1 / 64, rel=0.1)
    assert one.by_name["lora_unet_conv"].alpha == 64


def test_the_network_keeps_its_names_and_is_as_before_once_detached():
    network = Network()
    hooks = {name: dict(layer._forward_hooks) for name, layer in network.named_modules()}
    names, parameters = list(network.state_dict()), list(network.parameters())
    other = trained(network, seed=1)
    out = network(X)
    loras = trained(network)
    assert list(network.state_dict()) == names and len(list(network.parameters())) == len(parameters)
    assert not torch.equal(network(X), out)
    loras.detach()
    loras.detach()
    assert torch.equal(network(X), out)
    other.detach()
    assert {name: dict(layer._forward_hooks) for name, layer in network.named_modules()} == hooks
    assert all(now is then for now, then in zip(network.parameters(), parameters, strict=True))


def test_parameters_carry_the_public_names_without_dots():
    loras = attach(Network(), NAMES, 2)
    assert list(loras.by_name) == list(NAMES)
    assert [name for name, _ in loras.named_parameters()][2:4] == ["body/wide.down", "body/wide.up"]
    again = attach(Network(), NAMES, 2, seed=8)
    again.load_state_dict(loras.state_dict())
    assert torch.equal(again.by_name["out.0"].down, loras.by_name["out.0"].down)


def test_copies_of_network_and_loras_together_belong_together():
    whole = nn.ModuleDict({"network": Network()})
    whole["lora"] = trained(whole["network"])
    twin = copy.deepcopy(whole)
    before = whole["network"](X)
    with twin["lora"].off():
        assert torch.equal(twin["network"](X), Network()(X)) and torch.equal(whole["network"](X), before)
    twin["lora"].detach()
    assert torch.equal(twin["network"](X), Network()(X)) and torch.equal(whole["network"](X), before)


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_gradient_checkpointing_gives_the_same_gradients(scale):
    """The block holds the backward pass too, which calls the layers again."""
    network = Network()
    loras, other = trained(network), trained(network, seed=5)
    x, gradients = X.clone().requires_grad_(), []
    for call in (network, lambda x: checkpoint(network, x, use_reentrant=False)):
        with other.scaled(scale):
            out = call(x)
            gradients.append(torch.autograd.grad(out.square().mean(), [x, *loras.parameters()]))
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_bf16_by_autocast_and_as_weights():
    network = Network()
    loras = trained(network)
    exact = network(X)
    with torch.autocast("cpu", torch.bfloat16):
        out = network(X)
    out.float().square().mean().backward()
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, rtol=0.05, atol=0.05)
    network.to(torch.bfloat16)
    assert {weight.dtype for weight in loras.parameters()} == {torch.float32}
    half = network(X.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0.05, atol=0.05)
    half.float().square().mean().backward()
    assert all(weight.grad.dtype == torch.float32 and weight.grad.abs().sum() > 0 for weight in loras.parameters())
    with loras.off():
        assert torch.equal(network(X.bfloat16()), Network().to(torch.bfloat16)(X.bfloat16()))


FAMILIES = {"{}.lora_down.weight": "{}.lora_up.weight", "{}_lora.down.weight": "{}_lora.up.weight",
            "{}.lora_A.weight": "{}.lora_B.weight", "{}.lora.down.weight": "{}.lora.up.weight",
            "{}.lora_linear_layer.down.weight": "{}.lora_linear_layer.up.weight",
            "{}.lora_A.default.weight": "{}.lora_B.default.weight", "{}.lora_A": "{}.lora_B"}


@pytest.mark.parametrize("down", FAMILIES)
@pytest.mark.parametrize("alpha", [None, 3.0])
def test_every_family_of_names_is_read_back(down, alpha):
    loras = trained(Network(), 2, alpha)
    patterns = {"down": down, "up": FAMILIES[down], "alpha": "{}.alpha"}
    state = loras.tensors(lambda name, role: patterns[role].format(name))
    if alpha is None:
        state = {key: value for key, value in state.items() if not key.endswith(".alpha")}
    state["out.0.dora_scale"] = torch.ones(1)
    factors, others = read_factors(state)
    assert list(factors) == list(NAMES) and others == ["out.0.dora_scale"]
    network = Network()
    again = attach_factors(network, NAMES, factors)
    for name, lora in loras.by_name.items():
        assert torch.equal(again.by_name[name].weight_change(), lora.weight_change())
    assert again.by_name["point"].alpha == (alpha or 2)


def test_stems_are_the_names_before_any_suffix():
    assert split_key("a.attn1.processor.to_q_lora.up.weight") == ("a.attn1.processor.to_q", "up")
    assert split_key("lora_unet_x_to_out_0.alpha") == ("lora_unet_x_to_out_0", "alpha")
    assert split_key("a.to_q.lora_A.default.weight") == ("a.to_q", "down")
    assert split_key("a.to_q.weight") is None and split_key("a.to_q.lora_mid.weight") is None
    assert [kohya_key("x", role) for role in ("down", "up", "alpha")] == [
        "x.lora_down.weight", "x.lora_up.weight", "x.alpha"]


def test_what_is_no_whole_lora_is_returned_by_name():
    down, up = randn(2, 4), randn(3, 2)
    factors, others = read_factors({
        "a.lora_up.weight": up, "config": "text", "b.lora_down.weight": down, "a.lora_down.weight": down,
        "a.lora_B.weight": up, "c.alpha": torch.tensor(1.0), "a.diff_b": up})
    assert factors.keys() == {"a"} and factors["a"].alpha == 2
    assert others == ["config", "b.lora_down.weight", "a.lora_B.weight", "c.alpha", "a.diff_b"]


def test_factors_of_1x1_convolutions_fit_linear_layers_and_the_other_way_round():
    network, stored = Network(), trained(Network())
    factors = {name: Factors(lora.down, lora.up, 2.0) for name, lora in stored.by_name.items()}
    point, out = factors["point"], factors["out.0"]
    loras = attach_factors(network, NAMES, {
        "point": point._replace(down=point.down.flatten(1), up=point.up.flatten(1)),
        "out.0": out._replace(down=out.down[..., None, None], up=out.up[..., None, None])})
    for name, lora in loras.by_name.items():
        assert torch.equal(lora.weight_change(), stored.by_name[name].weight_change())
    loras.by_name["point"].down.data.zero_()
    assert stored.by_name["point"].down.count_nonzero()             # what was given is not trained
    network(X)


@pytest.mark.parametrize(("make", "sentence"), [
    (lambda network: attach(network, NAMES, 0), "rank of a LoRA must be at least 1, e.g. 4; 0 was given"),
    (lambda network: attach(network, {"a": "body"}, 2),
     r"body is ModuleDict\(\); a LoRA stands beside an nn.Linear.*Leave it out"),
    (lambda network: attach_factors(network, NAMES, {"x": Factors(randn(1, 2), randn(2, 1), 1.0)}),
     "changes 1 layers, but 1 of them are not in this network, e.g. x. Use a LoRA made for this model"),
    (lambda network: attach_factors(network, NAMES, {"out.0": Factors(randn(2, 7), randn(5, 2), 1.0)}),
     r"out, down: the LoRA's factor is of shape \(2, 7\), the layer takes \(2, 6\)"),
    (lambda network: read_factors({"a.lora_A.weight": randn(2, 7), "a.lora_B.weight": randn(5, 3)}),
     r"The LoRA of a has factors of shapes \(2, 7\) \(down\) and \(5, 3\) \(up\)")])
def test_what_is_wrong_is_told_and_the_network_left_alone(make, sentence):
    network = Network()
    with pytest.raises(ValueError, match=sentence):
        make(network)
    assert not any(layer._forward_hooks for layer in network.modules())


def test_a_grouped_convolution_is_refused():
    with pytest.raises(ValueError, match="0 is Conv2d.4, 4.*groups=2.*one group"):
        attach(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), {"a": "0"}, 2)
