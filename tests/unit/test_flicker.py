"""Figures of clips whose values are known."""
from __future__ import annotations

import math

import pytest
import torch

from frozen_diffusion.modules.clips.flicker import clip_figures


def test_noise_flickers_by_the_square_root_of_three():
    clip = 0.5 + 0.05 * torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    figures = clip_figures(clip)
    assert figures.r == pytest.approx(math.sqrt(3), rel=0.01)          # |x - 2y + z| against |x - y|
    assert figures.d1 == pytest.approx(255 * 0.05 * math.sqrt(2) * math.sqrt(2 / math.pi), rel=0.02)


def test_even_change_does_not_flicker():
    clip = (torch.arange(8) / 10).view(8, 1, 1, 1).expand(8, 3, 16, 16)
    figures = clip_figures(clip)
    assert figures.r == pytest.approx(0, abs=1e-4) and figures.d1 == pytest.approx(25.5, rel=1e-4)
    assert figures.span == pytest.approx(7 * 25.5, rel=1e-4) and figures.texture == pytest.approx(0, abs=1e-3)


def test_the_worst_pair_is_found():
    clip = torch.zeros(6, 3, 8, 8)
    clip[4:] = 1
    figures = clip_figures(clip)
    assert figures.worst_pair == (3, 4) and figures.curve.tolist() == [0, 0, 0, 255, 0]


def test_a_still_clip_and_two_frames_are_defined():
    assert clip_figures(torch.zeros(4, 3, 8, 8)).r == 0
    assert math.isnan(clip_figures(torch.rand(2, 3, 8, 8)).d2)


def test_one_frame_is_refused():
    with pytest.raises(ValueError, match="at least two"):
        clip_figures(torch.zeros(1, 3, 8, 8))
