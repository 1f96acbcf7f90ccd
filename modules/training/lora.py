"""LoRA: a low-rank change beside frozen layers, scaled at every call, switched off exactly, merged, read and written.

    loras = attach(unet, {"lora_unet_mid_block_attn1_to_q": "middle_block.1.attn1.to_q"}, rank=4)
    for record in train(loras, loss, batches, settings):
        ...
    with loras.off():
        ...                                     # the network as it was, bit for bit
    save_file(loras.tensors(), "style.safetensors")
    loras.detach()

The network gets forward hooks and nothing else: its state_dict keeps its names, and whether its own weights are trained
is the caller's to say. What several LoRAs add to one layer adds up.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from .lora_keys import Factors, Role, kohya_key

Layer = nn.Linear | nn.Conv2d
Scale = float | Callable[[], float]         # a function is asked at every call: for a scale of each step, say


class LoRA(nn.Module):
    """y = layer(x) + scale * alpha / rank * up(down(x)); `down` and `up` are fp32, whatever the layer is.

    Beside a convolution `down` has its kernel, stride and padding, and `up` is 1x1. At scale 0 the layer's output is
    handed on as it is.

    Args:
        layer: as `layer_at` gives it.
        factors: where to start, e.g. `fresh_factors`. 1x1 convolutions are taken for matrices, and matrices for them.
        name: of the layer, for errors.

    Raises ValueError when the factors do not fit. Source: Hu et al., "LoRA", ICLR 2022, section 4.1.
    """

    def __init__(self, layer: Layer, factors: Factors, name: str = "the layer"):
        super().__init__()
        outputs, *inputs = layer.weight.shape                                   # inputs: in, or in, h, w
        rank, ones = len(factors.down), [1] * (len(inputs) - 1)
        self.down = _parameter(factors.down, (rank, *inputs), layer, f"{name}, down")
        self.up = _parameter(factors.up, (outputs, rank, *ones), layer, f"{name}, up")
        self.alpha = factors.alpha
        self.scale: Scale = 1.0
        self.geometry = None if isinstance(layer, nn.Linear) else {
            "stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}

    @property
    def rank(self) -> int:
        return len(self.down)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """scale * alpha / rank * up(down(x)), in the dtype that the layer computes in."""
        down, up = self.down.to(x.dtype), (scale * self.alpha / self.rank * self.up).to(x.dtype)
        if self.geometry is None:
            return functional.linear(functional.linear(x, down), up)            # [..., in] -> rank -> out
        return functional.conv2d(functional.conv2d(x, down, **self.geometry), up)

    def add_to_output(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The layer's forward hook."""
        scale = self.scale() if callable(self.scale) else self.scale
        return output + self(inputs[0], scale) if scale else output

    def weight_change(self) -> Tensor:
        """alpha / rank * up @ down, in the shape of the layer's weight."""
        change = self.up.flatten(1) @ self.down.flatten(1)                      # [out, in * h * w]
        return self.alpha / self.rank * change.unflatten(1, self.down.shape[1:])


class LoRASet(nn.Module):
    """LoRAs beside layers of one network, with their hooks in it; `attach` and `attach_factors` make one.

    Attributes:
        by_name: the LoRAs by public name.
        paths: of the layers in the network, by public name.
    """

    def __init__(self, network: nn.Module, paths: Mapping[str, str], factors: Mapping[str, Factors]):
        super().__init__()
        self.paths = {name: paths[name] for name in factors}
        layers = {name: layer_at(network, path) for name, path in self.paths.items()}
        self.by_name = {name: LoRA(layer, factors[name], self.paths[name]) for name, layer in layers.items()}
        for name, lora in self.by_name.items():
            self.add_module(child_name(name), lora)
        self.hooks = [layers[name].register_forward_hook(lora.add_to_output) for name, lora in self.by_name.items()]

    def detach(self) -> None:
        """Take the hooks out of the network; the factors stay here."""
        while self.hooks:
            self.hooks.pop().remove()

    def set_scale(self, scale: Scale) -> None:
        for lora in self.by_name.values():
            lora.scale = scale

    @contextmanager
    def scaled(self, scale: Scale) -> Iterator[None]:
        """All LoRAs at this scale within the block.

        With gradient checkpointing the backward pass belongs inside the block: it calls the layers again.
        """
        before = {lora: lora.scale for lora in self.by_name.values()}
        self.set_scale(scale)
        try:
            yield
        finally:
            for lora, own in before.items():
                lora.scale = own

    def off(self) -> AbstractContextManager[None]:
        """The network as if it had no LoRA, within the block; see `scaled`."""
        return self.scaled(0.0)

    @torch.no_grad()
    def merged(self, state: Mapping[str, Tensor], scale: float = 1.0) -> dict[str, Tensor]:
        """A state_dict of the network with the changes in its weights, which are new tensors of the same dtypes."""
        state = dict(state)
        for name, lora in self.by_name.items():
            key = f"{self.paths[name]}.weight"
            state[key] = (state[key] + scale * lora.weight_change().to(state[key].device)).to(state[key].dtype)
        return state

    def tensors(self, key: Callable[[str, Role], str] = kohya_key) -> dict[str, Tensor]:
        """What a file holds: down, up and alpha of every LoRA under `key(name, role)`, by default kohya's names."""
        return {key(name, role): tensor for name, lora in self.by_name.items()
                for role, tensor in (("down", lora.down.detach()), ("up", lora.up.detach()),
                                     ("alpha", torch.tensor(float(lora.alpha))))}


def attach(network: nn.Module, names: Mapping[str, str], rank: int, alpha: float | None = None,
           seed: int = 0) -> LoRASet:
    """Fresh LoRAs beside the named layers: the network computes what it did before.

    Args:
        names: public names, dots and all -> paths of the layers in the network.
        alpha: None = rank, so that the change is up @ down.
        seed: of `down`, drawn in the order of `names`. torch's random state is left as it was.
    """
    generator = torch.Generator().manual_seed(seed)
    return LoRASet(network, names, {name: fresh_factors(layer_at(network, path), rank, alpha, generator)
                                    for name, path in names.items()})


def attach_factors(network: nn.Module, names: Mapping[str, str], factors: Mapping[str, Factors]) -> LoRASet:
    """The LoRAs of a file, as `lora_keys.read_factors` gives them, beside the layers that `names` has for their stems.

    Raises ValueError for factors without a layer, or that do not fit theirs.
    """
    if unknown := [stem for stem in factors if stem not in names]:
        raise ValueError(f"The LoRA changes {len(factors)} layers, but {len(unknown)} of them are not in this network, "
                         f"e.g. {unknown[0]}. Use a LoRA made for this model.")
    return LoRASet(network, names, factors)


def fresh_factors(layer: Layer, rank: int, alpha: float | None = None,
                  generator: torch.Generator | None = None) -> Factors:
    """Factors to train from: `down` normal with standard deviation 1 / rank, `up` zero, so that nothing changes yet."""
    if rank < 1:
        raise ValueError(f"The rank of a LoRA must be at least 1, e.g. 4; {rank} was given.")
    outputs, *inputs = layer.weight.shape
    down = torch.randn(rank, *inputs, generator=generator, dtype=torch.float32) / rank
    return Factors(down, torch.zeros(outputs, rank), rank if alpha is None else alpha)


def check_rank(network: nn.Module, paths: Iterable[str], rank: int) -> None:
    """Raises ValueError for a rank that is larger than one of these layers, and if there is none."""
    weights = [layer_at(network, path).weight for path in paths]
    if not weights:
        raise ValueError("The model has no attention layers of this kind, so a LoRA would stand beside nothing and "
                         "learn nothing. Use another image model or motion module.")
    most = min(min(weight.shape[0], weight[0].numel()) for weight in weights)
    if rank > most:
        raise ValueError(f"A LoRA of rank {rank} is larger than the smallest layer that it changes. Set the rank to "
                         f"{most} at most, e.g. 4.")


def layer_at(network: nn.Module, path: str) -> Layer:
    """The layer of that path. Raises ValueError if no LoRA can stand beside it."""
    layer = network.get_submodule(path)
    convolution = isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros"
    if not (convolution or isinstance(layer, nn.Linear)):
        raise ValueError(f"{path} is {type(layer).__name__}({layer.extra_repr()}); a LoRA stands beside an nn.Linear, "
                         "or an nn.Conv2d of one group that pads with zeros. Leave it out.")
    return layer


def child_name(name: str) -> str:
    """A public name as the parameters of a LoRASet have it: torch allows no dots there."""
    return name.replace(".", "/")


def _parameter(factor: Tensor, shape: tuple[int, ...], layer: Layer, what: str) -> nn.Parameter:
    """A float32 copy of the factor in this shape, on the layer's device."""
    if len(factor) != shape[0] or factor[0].numel() != math.prod(shape[1:]):
        raise ValueError(f"{what}: the LoRA's factor is of shape {tuple(factor.shape)}, the layer takes {shape}. Use a "
                         "LoRA made for this model.")
    return nn.Parameter(factor.reshape(shape).to(layer.weight.device, torch.float32, copy=True))
