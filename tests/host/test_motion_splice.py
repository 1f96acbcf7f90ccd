"""Motion layers in the host's U-Net: where they sit, and that nothing is left of them."""
from contextlib import contextmanager
from dataclasses import replace

import comfy.model_management
import comfy.supported_models
import pytest
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, Upsample
from comfy.patcher_extension import CallbacksMP
from motion_examples import SD15, SDXL, TINY, random_motion

from frozen_diffusion.modules.host.motion.apply import (
    MotionRun,
    apply_motion,
    hold_motion,
    motion_options,
    splice,
    unsplice,
)
from frozen_diffusion.modules.host.motion.splice import (
    MotionSlot,
    PooledNorm,
    carries,
    check_fit,
    insertion_points,
    pooled_groupnorm,
)
from frozen_diffusion.modules.motion.module import MotionConfig, MotionModule
from testhost.models import CONTEXT, sample

TINY_SDXL = MotionConfig("sdxl", (32, 64, 128), mid=False, max_frames=16)


def call(unet, frames: int, run: MotionRun | None, rows: int | None = None, seed: int = 0) -> torch.Tensor:
    """One call of a U-Net on random input, with or without motion options."""
    generator = torch.Generator().manual_seed(seed)
    rows = rows or frames
    x = torch.randn(rows, 4, 8, 8, generator=generator)
    text = torch.randn(rows, 7, 64, generator=generator)
    y = torch.randn(rows, 2816, generator=generator) if unet.num_classes else None
    options = motion_options(run) if run else {}
    with torch.no_grad():
        return unet(x, torch.full((rows,), 500.0), context=text, y=y, transformer_options=options)


def shape(unet) -> list[tuple[str, type]]:
    """Everything that splicing could disturb, in order."""
    return [(name, type(part)) for name, part in unet.named_modules()]


@contextmanager
def hooked(unet, module: MotionModule, frames: int):
    """The same placement by torch's forward hooks instead of splicing."""
    handles = []
    blocks = {"down": unet.input_blocks, "mid": [unet.middle_block], "up": unet.output_blocks}
    for part, of_part in blocks.items():
        targets = []
        for block in of_part:
            spatial = [layer for layer in block if isinstance(layer, SpatialTransformer)]
            targets += spatial[-1:] or [layer for layer in block if isinstance(layer, ResBlock)][:1]
        for target, layer in zip(targets, module.layers(part), strict=False):
            handles.append(target.register_forward_hook(lambda _, __, out, layer=layer: layer(out, frames)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(("family", "config", "slots"), [
    ("tiny_sd15", TINY, 21), ("tiny_sdxl", TINY_SDXL, 15)], ids=["sd15", "sdxl"])
def test_placement_and_exact_removal(family, config, slots, request):
    unet = request.getfixturevalue(family)().model.diffusion_model
    module = random_motion(config)
    before, keys, plain = shape(unet), list(unet.state_dict()), call(unet, 4, None)
    splice(unet, module)
    assert sum(isinstance(part, MotionSlot) for part in unet.modules()) == slots
    assert list(unet.state_dict()) == keys      # extra children neither own weights nor rename their neighbours
    for block in (*unet.input_blocks, *unet.output_blocks):
        kinds = [type(layer) for layer in block]
        if MotionSlot in kinds and Upsample in kinds:
            assert kinds.index(MotionSlot) == kinds.index(Upsample) - 1
    moved = call(unet, 4, MotionRun(4))
    assert torch.equal(call(unet, 4, MotionRun(4, strength=0)), plain)
    assert torch.equal(call(unet, 1, MotionRun(1)), call_without(unet, 1))
    half = call(unet, 4, MotionRun(4, strength=0.5))
    unsplice(unet)
    assert shape(unet) == before and list(unet.state_dict()) == keys
    assert torch.equal(call(unet, 4, None), plain)
    with hooked(unet, module, 4):
        assert torch.equal(call(unet, 4, None), moved)
    assert not torch.allclose(moved, plain, atol=1e-3)
    assert not torch.allclose(half, moved, atol=1e-3) and not torch.allclose(half, plain, atol=1e-3)


def call_without(unet, frames: int) -> torch.Tensor:
    """A call of a spliced U-Net with its layers taken out for the moment, children in the same order after."""
    children = {block: dict(block._modules) for block in unet.modules()}
    unsplice(unet)
    out = call(unet, frames, None)
    for block, named in children.items():
        block._modules = named
    return out


def test_middle_layer_sits_between_transformer_and_resblock(tiny_sd15):
    unet = tiny_sd15().model.diffusion_model
    splice(unet, random_motion())
    assert [type(layer) for layer in unet.middle_block] == [ResBlock, SpatialTransformer, MotionSlot, ResBlock]


def test_splicing_refuses_what_does_not_fit(tiny_sd15):
    unet = tiny_sd15().model.diffusion_model
    before = shape(unet)
    with pytest.raises(ValueError, match=r"width \[64, 64,.*\[32, 32,"):
        splice(unet, random_motion(MotionConfig("sd15", (64, 64, 128, 128))))
    assert shape(unet) == before
    splice(unet, random_motion())
    with pytest.raises(ValueError, match="already carries"):
        splice(unet, random_motion())


def test_layers_called_without_settings_complain(tiny_sd15):
    unet = tiny_sd15().model.diffusion_model
    splice(unet, random_motion())
    with pytest.raises(RuntimeError, match="motion_options"):
        call(unet, 4, None)


@pytest.mark.parametrize(("config", "changes"), [
    (MotionConfig("sd15", SD15), {"model_channels": 320, "context_dim": 768, "num_heads": 8}),
    (MotionConfig("sdxl", SDXL, mid=False), None)], ids=["sd15", "sdxl"])
def test_real_sizes_fit_real_models(config, changes):
    """Full-size U-Nets, built without memory."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    from testhost.models import SD15 as UNET15
    from testhost.models import SDXL as UNETXL
    settings = UNET15 | changes if changes else UNETXL | {"model_channels": 320, "context_dim": 2048,
                                                          "num_head_channels": 64}
    unet = UNetModel(**settings, device="meta", dtype=torch.float16)
    check_fit(unet, config)
    assert sum(len(found) for found in insertion_points(unet).values()) == (21 if changes else 16)


def test_pooled_norms_are_the_official_ones(tiny_sd15):
    """v1's rule: ResBlock norms and the final norm see the whole clip, all others stay; torch is not touched."""
    unet = tiny_sd15().model.diffusion_model
    forward, before = torch.nn.GroupNorm.forward, shape(unet)
    pooled_names, other = [], []
    with pooled_groupnorm(unet, 4):
        for name, part in unet.named_modules():
            if isinstance(part, PooledNorm):
                pooled_names.append(name)
            elif isinstance(part, torch.nn.GroupNorm) and not name.endswith(".0.norm"):
                other.append(name)
        inside = call(unet, 8, None)
    resblocks = sum(isinstance(part, ResBlock) for part in unet.modules())
    assert len(pooled_names) == 2 * resblocks + 1 and "out.0" in pooled_names
    assert other and all(name.endswith(".norm") for name in other)      # those of spatial transformers
    assert shape(unet) == before and torch.nn.GroupNorm.forward is forward
    with by_hand(unet, 4):
        assert torch.allclose(call(unet, 8, None), inside, atol=1e-5)
    with pytest.raises(ZeroDivisionError), pooled_groupnorm(unet, 4):
        raise ZeroDivisionError
    assert shape(unet) == before


@contextmanager
def by_hand(unet, frames: int):
    """The same rule computed from its definition, by hooks that replace each norm's output."""
    def pooled(norm, given, _):
        x = given[0].unflatten(0, (-1, frames))                                 # [b, f, C, H, W]
        groups = x.unflatten(2, (norm.num_groups, -1))                          # [b, f, G, C / G, H, W]
        mean = groups.mean((1, 3, 4, 5), keepdim=True)
        variance = groups.var((1, 3, 4, 5), unbiased=False, keepdim=True)
        x = ((groups - mean) / (variance + norm.eps).sqrt()).flatten(2, 3).flatten(0, 1)
        return x * norm.weight[:, None, None] + norm.bias[:, None, None]

    norms = [block.in_layers[0] for block in unet.modules() if isinstance(block, ResBlock)]
    norms += [block.out_layers[0] for block in unet.modules() if isinstance(block, ResBlock)] + [unet.out[0]]
    handles = [norm.register_forward_hook(pooled) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def test_weights_move_while_spliced(tiny_sd15):
    """The host ejects around every move of weights; patches keyed by path reach the right layers."""
    base = tiny_sd15()
    unet, before = base.model.diffusion_model, shape(base.model.diffusion_model)
    weights = {key: value.clone() for key, value in unet.state_dict().items()}
    key = "output_blocks.2.1.conv.weight"       # an Upsample right behind a motion layer
    model = apply_motion(base, hold_motion(TINY, random_motion().state_dict(), "random"))
    model.add_patches({"diffusion_model." + key: ("diff", (torch.ones_like(weights[key]),))})
    device = comfy.model_management.get_torch_device()
    model.patch_model(device)
    assert model.is_injected and torch.equal(unet.state_dict()[key], weights[key] + 1)
    model.partially_unload(model.offload_device, 1e9)
    assert model.is_injected and torch.equal(unet.state_dict()[key], weights[key])
    model.partially_load(device, 1e9)
    assert model.is_injected and sum(isinstance(part, MotionSlot) for part in unet.modules()) == 21
    model.eject_model()
    model.pre_run()         # a run injects even where the host finds everything loaded
    assert model.is_injected
    model.detach()
    assert not model.is_injected and shape(unet) == before
    assert all(torch.equal(value, weights[key]) for key, value in unet.state_dict().items())


def test_a_dropped_model_leaves_nothing(tiny_sd15):
    base = tiny_sd15()
    before, plain = shape(base.model.diffusion_model), sample(base, 4, size=(8, 8))
    model = apply_motion(base, hold_motion(TINY, random_motion().state_dict(), "random"))
    sample(model, 4, size=(8, 8))
    del model
    assert shape(base.model.diffusion_model) == before
    assert torch.equal(sample(base, 4, size=(8, 8)), plain)


def test_samplings_inside_a_sampling(tiny_sd15):
    """One with another motion module is refused and the outer one goes on; what takes its layers out stops it."""
    base = tiny_sd15()
    unet, before = base.model.diffusion_model, shape(base.model.diffusion_model)
    one, two = (apply_motion(base, hold_motion(TINY, random_motion(seed=seed).state_dict(), f"module {seed}"))
                for seed in (1, 2))
    size = {"frames": 4, "size": (8, 8)}
    exclusive_sampling, plain = sample(one, **size), sample(base, **size)

    def caught(*_):
        with pytest.raises(RuntimeError, match="module 2 was started while one with module 1 is going on.*second time"):
            sample(two, **size)

    assert torch.equal(sample(one, **size, callback=caught), exclusive_sampling)
    with pytest.raises(RuntimeError, match="module 1 are not in the U-Net any more.*Let one end before"):
        sample(one, **size, callback=lambda *_: comfy.model_management.load_models_gpu([base]))
    with pytest.raises(RuntimeError, match="module 2 was started"):
        sample(one, **size, callback=lambda *_: sample(two, **size))
    assert shape(unet) == before
    splice(unet, random_motion())       # left over from a run that could not clean up
    assert torch.equal(sample(one, **size), exclusive_sampling)
    assert torch.equal(sample(base, **size), plain)


def test_layers_of_another_module_are_told_apart(tiny_sd15):
    unet, bare = tiny_sd15().model.diffusion_model, MotionConfig("sd15", TINY.channels, mid=False)
    for module in (random_motion(), random_motion(bare)):
        assert not carries(unet, module)
        splice(unet, module)
        assert carries(unet, module) and not carries(unet, random_motion()) and not carries(unet, random_motion(bare))
        unsplice(unet)


@pytest.mark.parametrize("config", [TINY, replace(TINY, mapping_width=16, frame_tokens=4, text_channels=CONTEXT,
                                                  temporal_convolution=True)], ids=["plain", "harivo"])
def test_a_model_in_parts_samples_as_a_whole_one(tiny_sd15, config):
    """The host moves half of the weights away before the first step, as when memory is short; LoRA in both halves."""
    base = tiny_sd15()
    model = apply_motion(base, hold_motion(config, random_motion(config).state_dict(), "random"))
    weights, plain = base.model.diffusion_model.state_dict(), sample(model, 4, size=(8, 8))
    model.add_patches({f"diffusion_model.{key}": ("diff", (torch.full_like(weights[key], 0.05),))
                       for key in ("output_blocks.2.1.conv.weight", "input_blocks.1.1.proj_in.weight")})
    whole, seen = sample(model, 4, size=(8, 8)), []
    assert not torch.allclose(whole, plain, atol=1e-2)

    def unload_half(patcher):
        for part in (patcher, *patcher.get_additional_models()):
            freed = part.partially_unload(part.offload_device, part.model_size() / 2)
            seen.append(0 < freed < part.model_size())
        seen.append(patcher.model.model_lowvram and patcher.lowvram_patch_counter() == 1 and patcher.is_injected)

    model.add_callback(CallbacksMP.ON_PRE_RUN, unload_half)
    torch.testing.assert_close(sample(model, 4, size=(8, 8)), whole, rtol=1e-5, atol=1e-5)
    assert seen == [True, True, True]
