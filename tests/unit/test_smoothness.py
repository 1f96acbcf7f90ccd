"""HARIVO's losses, harivo.md 8.5 and 8.6."""
from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch.nn import functional

from frozen_diffusion.modules.motion import total_loss
from frozen_diffusion.modules.motion.module import MotionConfig, fresh_motion_module
from frozen_diffusion.modules.motion.smoothness import (
    LEAST_NEGATIVES,
    Negatives,
    ProjectionHead,
    attention_distance,
    batch_contrast,
    check_videos,
    dc_loss,
    queue_contrast,
    trs_loss,
    unit_length,
)
from frozen_diffusion.modules.motion.temporal_lora import adapt_attentions, current_key, plain_state
from frozen_diffusion.modules.motion.total_loss import (
    CALIBRATE_FOR,
    Features,
    LossMemory,
    TotalLoss,
    fresh_head,
)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain_distance(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    maps = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    return (maps[:, 1:] - maps[:, :-1]).square().sum(-1).mean()


def test_trs_is_zero_for_equal_frames_and_two_for_disjoint_maps():
    still = randn(2, 1, 3, 16, 8).expand(-1, 4, -1, -1, -1)
    assert attention_distance(still, still).item() == 0
    k = 50 * torch.eye(8).expand(1, 2, 1, 8, 8)
    q = torch.stack([k[:, 0], k[:, 0].roll(1, dims=-2)], dim=1)         # row n looks at key n, then at key n - 1
    assert attention_distance(q, k).item() == pytest.approx(2, abs=1e-5)


@pytest.mark.parametrize("rows", [1, 5, 100])
def test_trs_in_chunks_equals_the_plain_formula_with_its_gradient(rows):
    q, k = randn(2, 3, 2, 12, 4).requires_grad_(), randn(2, 3, 2, 12, 4, seed=1).requires_grad_()
    plain = torch.autograd.grad(plain_distance(q, k), (q, k))
    loss = attention_distance(q, k, rows)
    torch.testing.assert_close(loss, plain_distance(q, k))
    for ours, theirs in zip(torch.autograd.grad(loss, (q, k)), plain, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_trs_weighs_each_layer_by_half():
    q, k = randn(1, 3, 2, 12, 4), randn(1, 3, 2, 12, 4, seed=1)
    torch.testing.assert_close(trs_loss([(q, k), (q, k)]), plain_distance(q, k))


def test_trs_of_nearly_equal_frames_is_exact_in_half_precision():
    q, k = (randn(1, 1, 2, 16, 8, seed=seed) + 1e-3 * randn(1, 4, 2, 16, 8, seed=seed + 5) for seed in (0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        loss = attention_distance(q, k)
    torch.testing.assert_close(loss, plain_distance(q, k), rtol=1e-3, atol=0)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return functional.normalize(randn(*shape, seed=seed), dim=-1)


def test_dc_is_decoupled_from_infonce_by_softplus():
    z1, z2, queue = unit(1, 6), unit(1, 6, seed=1), unit(20, 6, seed=2)
    loss = dc_loss(z1, z2, queue)
    logits = torch.cat([(z1 * z2).sum(1), (z1 @ queue.T)[0]]) / 0.1
    infonce = functional.cross_entropy(logits[None], torch.tensor([0]))
    torch.testing.assert_close(infonce, functional.softplus(loss))


def test_dc_lies_within_its_bounds_and_order_of_the_queue_does_not_count():
    for seed in range(20):
        z1, z2, queue = unit(3, 4, seed=seed), unit(3, 4, seed=seed + 50), unit(17, 4, seed=seed + 99)
        loss = dc_loss(z1, z2, queue).item()
        assert -2 / 0.1 + math.log(17) <= loss <= 2 / 0.1 + math.log(17)
        assert dc_loss(z1, z2, queue.flip(0)).item() == pytest.approx(loss, abs=1e-4)


def test_dc_pulls_the_two_frames_together():
    z1, z2, queue = unit(1, 6).requires_grad_(), unit(1, 6, seed=1), unit(20, 6, seed=2)
    dc_loss(z1, z2, queue).backward()
    moved = functional.normalize(z1.detach() - 0.01 * z1.grad, dim=1)
    assert dc_loss(moved, z2, queue) < dc_loss(z1.detach(), z2, queue)
    assert (moved * z2).sum() > (z1 * z2).sum()


def test_the_queue_forgets_what_is_oldest_and_holds_a_video_once_as_it_was_seen_last():
    queue, first, second = Negatives(5, length=3), randn(2, 5), randn(3, 5, seed=1)
    queue.push([1, 2], first)
    assert len(queue) == 2
    queue.push([1, 3, 4], second)
    assert queue.videos.tolist() == [1, 3, 4]
    torch.testing.assert_close(queue.without(3), second[[0, 2]], atol=2e-3, rtol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        queue.push([5, 4], first)
    assert queue.videos.tolist() == [3, 5, 4]
    torch.testing.assert_close(queue.without(3), first, atol=2e-3, rtol=1e-3)
    again = Negatives(5, length=3)
    again.load_state_dict(queue.state_dict())
    assert torch.equal(again.without(9), queue.without(9))


def test_contrast_waits_for_its_queue_and_never_meets_its_own_video():
    head, queue, seed = ProjectionHead(12), Negatives(12), torch.Generator().manual_seed(0)
    h = randn(2, 6, 12)
    for start in range(0, LEAST_NEGATIVES, 2):
        assert queue_contrast(h, [start, start + 1], head, queue, seed) is None
    loss = queue_contrast(h.requires_grad_(), [0, 999], head, queue, seed)
    loss.backward()
    assert h.grad.abs().sum() > 0 and len(queue) == LEAST_NEGATIVES + 1
    assert queue.without(0).shape[0] == LEAST_NEGATIVES
    both, others = h.detach()[:1, :2], queue.without(0)             # with two frames every draw has the same pair
    loss = queue_contrast(both, [0], head, queue, seed)
    z1, z2 = head(both[:, 0]), head(both[:, 1])
    torch.testing.assert_close(loss, (dc_loss(z1, z2, head(others)) + dc_loss(z2, z1, head(others))) / 2)
    assert head(h.detach()[:, 0]).norm(dim=1).tolist() == pytest.approx([1, 1])


def queue_step(h, videos, head, queue, generator):
    """DC against the queue, step by step as the first release did it."""
    pairs = torch.stack([torch.randperm(h.shape[1], generator=generator)[:2] for _ in videos])
    one, two = (torch.stack([h[row, pair[side]] for row, pair in enumerate(pairs)]) for side in (0, 1))
    z1, z2, terms = head(one), head(two), []
    for row, video in enumerate(videos):
        others = head(queue.h[(queue.videos != -1) & (queue.videos != video)].float())
        for a, b in ((z1[row:row + 1], z2[row:row + 1]), (z2[row:row + 1], z1[row:row + 1])):
            positive = (a * b).sum(1) / 0.1
            terms.append(((a @ others.T / 0.1).logsumexp(1) - positive).mean())
    queue.push(videos, one)
    return torch.stack(terms).mean()


def test_the_queue_is_bit_for_bit_what_it_was():
    head, results = fresh_head(12, 0), []
    for contrast in (queue_step, queue_contrast):
        queue, generator = Negatives(12, length=80), torch.Generator().manual_seed(1)
        h = randn(3, 6, 12).requires_grad_()
        queue.push(range(70), randn(70, 12, seed=2))
        loss = contrast(h, [3, 70, 71], head, queue, generator)
        results.append([loss, *torch.autograd.grad(loss, (h, *head.parameters())), queue.h, queue.videos,
                        torch.rand(1, generator=generator)])
    assert all(torch.equal(was, now) for was, now in zip(*results, strict=True))


def batch_by_hand(h, videos, pairs, project) -> torch.Tensor:
    """DC of a batch in float64, cosine by cosine. h [B, F, C]; pairs: the two frames of every clip."""
    def cosine(a, b):
        return (a @ b) / (a @ a).sqrt() / (b @ b).sqrt()

    z, terms = [[project(frame) for frame in clip] for clip in h], []
    for clip, (one, two) in enumerate(pairs):
        negatives = [frame for other, frames in enumerate(z) if videos[other] != videos[clip] for frame in frames]
        for a, b in ((one, two), (two, one)):
            scores = [(cosine(z[clip][a], negative) / 0.1).exp() for negative in negatives]
            terms.append(sum(scores).log() - cosine(z[clip][a], z[clip][b]) / 0.1)
    return sum(terms) / len(terms)


@pytest.mark.parametrize("videos", [(1, 2, 3), (1, 2, 1)])
@pytest.mark.parametrize("head", [fresh_head(12, 0), unit_length])
def test_batch_negatives_are_all_frames_of_the_other_videos_clips_with_their_gradient(head, videos):
    h = randn(3, 4, 12).requires_grad_()
    loss = batch_contrast(h, videos, head, torch.Generator().manual_seed(1))
    found = torch.autograd.grad(loss, h)[0]
    generator = torch.Generator().manual_seed(1)
    pairs = [torch.randperm(4, generator=generator)[:2].tolist() for _ in videos]
    exact = h.detach().double().requires_grad_()
    weights = [tensor.detach().double() for tensor in head.parameters()] if head is not unit_length else []

    def project(frame):
        if not weights:
            return frame                    # without a head: the feature itself
        first, bias, second, last = weights
        return second @ (first @ frame + bias).clamp(min=0) + last

    expected = batch_by_hand(exact, videos, pairs, project)
    gradient = torch.autograd.grad(expected, exact)[0]
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.double(), gradient, rtol=1e-4, atol=1e-4 * gradient.abs().max().item())
    negatives_only = [frame for frame in range(4) if frame not in pairs[0]]
    assert (found[0, negatives_only].norm(dim=1) > 1e-3 * found.norm()).all()   # the negatives are moved as well


def test_batch_contrast_of_one_video_is_left_out_and_half_precision_is_kept_away():
    h, generator = randn(2, 4, 12), torch.Generator().manual_seed(0)
    assert batch_contrast(h, (7, 7), unit_length, generator) is None
    near = 1 + 1e-3 * h                                                 # cosines of .999999
    plain = batch_contrast(near, (1, 2), fresh_head(12, 0), torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        half = batch_contrast(near, (1, 2), fresh_head(12, 0), torch.Generator().manual_seed(0))
    torch.testing.assert_close(half, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("videos, negatives, sentence", [
    (1, "batch", "from 1 different videos. It compares videos and needs at least 2"),
    (1, "queue", "from 1 different videos. It compares videos and needs at least 2"),
    (63, "queue", "from 63 different videos. It begins when it has seen 64 of them.*set dc_negatives to batch")])
def test_too_few_videos_are_told(videos, negatives, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_videos(videos, negatives)
    check_videos(64 if negatives == "queue" else 2, negatives)


class Toy:
    """Denoising, attention and bottleneck that all depend on one weight."""

    def __init__(self, frames: int = 3):
        self.weight = torch.nn.Parameter(torch.tensor([0.5, -0.3, 0.2]))
        self.frames = frames

    def denoise(self, batch, generator):
        return (self.weight * torch.randn(3, generator=generator)).square().sum()

    def features(self) -> Features:
        q = randn(2, self.frames, 1, 4, 3) * self.weight
        return Features(randn(2, self.frames, 3, seed=7) * self.weight, [(q, q)])


class Videos:
    def __init__(self, *videos: int):
        self.videos = videos


class EvenToy(Toy):
    """With the same denoising loss in every draw."""

    def denoise(self, batch, generator):
        return self.weight.square().sum()


@pytest.mark.parametrize("kind, negatives, begins", [
    (Toy, "queue", 32), (EvenToy, "queue", 32), (EvenToy, "batch", 0)])         # 64 entries after 32 draws of two
def test_auxiliaries_get_a_tenth_of_the_gradient_once_calibrated(kind, negatives, begins, monkeypatch):
    monkeypatch.setattr(total_loss, "REPORT_EVERY", 1)
    toy, memory = kind(), LossMemory(3)
    loss = TotalLoss(toy.denoise, toy.features, [toy.weight], memory, trs=5000.0, trs_from=100, dc=5000.0,
                     head=fresh_head(3, 0), negatives=negatives)
    reports = []
    for draw in range(251):
        total, report = loss(Videos(2 * draw, 2 * draw + 1), torch.Generator().manual_seed(draw))
        reports.append(report)
    assert "trs" not in reports[99] and "trs" in reports[100]
    assert ["dc" in report for report in reports] == [draw >= begins for draw in range(251)]
    assert len(memory.negatives) == (502 if negatives == "queue" else 0)
    assert int(memory.trs_count) == int(memory.dc_count) == CALIBRATE_FOR
    for term in ("trs", "dc"):
        norms = getattr(memory, f"{term}_norms")
        assert norms[1] > norms[0]                                      # without a factor it would lead
        shares = [report[f"{term} share"] for report in reports[200:]]
        assert shares[50] < 0.5 and min(shares[:10]) > 0
        if kind is EvenToy:
            assert reports[150][f"{term} share"] > 1
            assert statistics.fmean(shares[11:]) == pytest.approx(0.1, rel=1e-4 if term == "trs" else 0.3)
    expected = toy.denoise(None, torch.Generator().manual_seed(250)).item()
    assert reports[250]["denoising"] == pytest.approx(expected) and total.requires_grad


def test_losses_count_steps_however_many_draws_a_step_has(monkeypatch):
    monkeypatch.setattr(total_loss, "CALIBRATE_FROM", 3)
    toy, memory = Toy(), LossMemory(3)
    loss = TotalLoss(toy.denoise, toy.features, [toy.weight], memory, trs=1.0, trs_from=2, dc=0.0, head=None,
                     accumulate=4)
    counts = []
    for draw in range(14):
        report = loss(Videos(0, 1), torch.Generator().manual_seed(draw))[1]
        assert ("trs" in report) == (draw >= 8)
        counts.append(int(memory.trs_count))
    assert counts[11:] == [0, 1, 2]


def test_without_weights_the_total_is_the_denoising_loss():
    toy, memory = Toy(), LossMemory(3)
    loss = TotalLoss(toy.denoise, toy.features, [toy.weight], memory, trs=0.0, trs_from=0, dc=0.0, head=None)
    total, _ = loss(Videos(0, 1), torch.Generator().manual_seed(3))
    assert torch.equal(total, toy.denoise(None, torch.Generator().manual_seed(3)))


def test_temporal_lora_changes_attentions_only_and_merges():
    config = MotionConfig("sd15", (32, 32, 32, 32), max_frames=8, temporal_convolution=True, mapping_width=16)
    module, plain = (fresh_motion_module(config, 1) for _ in range(2))
    names = list(module.state_dict())
    loras = adapt_attentions(module, 2)
    assert list(module.state_dict()) == names
    assert all(name.startswith("harivo.") for name, weight in module.named_parameters() if weight.requires_grad)
    assert any(weight.requires_grad for weight in module.parameters()) and len(loras.by_name) == 21 * 8
    before = plain_state(module, loras)
    assert all(torch.equal(before[name], value) for name, value in plain.state_dict().items())
    for number, lora in enumerate(loras.by_name.values()):
        lora.up.data = 0.3 * randn(*lora.up.shape, seed=number)
    x = randn(8, 32, 2, 2)
    layer = module.layers("down")[0].transformer
    torch.nn.init.eye_(layer.proj_out.weight)
    merged = fresh_motion_module(config, 2)
    merged.load_state_dict(plain_state(module, loras))
    out = layer(x, 4)
    torch.testing.assert_close(merged.layers("down")[0].transformer(x, 4), out, rtol=1e-3, atol=1e-4)
    with loras.off():
        assert (layer(x, 4) - out).abs().max() > 0.1


def test_temporal_lora_starts_from_the_values_of_its_seed_in_the_order_of_the_layers():
    """So that a training of today is that of earlier releases."""
    module = fresh_motion_module(MotionConfig("sd15", (32, 64, 64, 96), max_frames=8))
    loras = adapt_attentions(module, 3, seed=5)
    generator = torch.Generator().manual_seed(5)
    widths = [32] * 2 + [64] * 4 + [96] * 3 + [96] * 3 + [64] * 6 + [32] * 3
    downs = [torch.randn(3, width, generator=generator) / 3 for width in widths for _ in range(8)]
    assert all(torch.equal(lora.down, down) for lora, down in zip(loras.by_name.values(), downs, strict=True))


def test_checkpoints_of_parametrized_weights_get_todays_names():
    module = fresh_motion_module(MotionConfig("sd15", (32, 32, 32, 32), max_frames=8, mapping_width=16))
    trained = torch.nn.ModuleDict({"motion": module, "lora": adapt_attentions(module, 2)})
    path = "mid_block.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.1.to_out.0"
    for factor in ("down", "up"):
        key = current_key(f"weight/motion.{path}.parametrizations.weight.0.{factor}")
        assert key.removeprefix("weight/") in dict(trained.named_parameters())
        assert current_key(key) == key
        for before, after in (("average/", ""), ("optimizer/", "/exp_avg"), ("optimizer/", "/step")):
            old = f"{before}motion.{path}.parametrizations.weight.0.{factor}{after}"
            assert current_key(old) == key.replace("weight/", before) + after
    for key in ("losses", "weight/motion.harivo.map.first.conv.weight", "memory/draws"):
        assert current_key(key) == key
