"""h-Space Grid: every content of a trace in every picture of a batch, as one by one."""
from __future__ import annotations

import pytest
import torch
from comfy_extras import nodes_custom_sampler as custom
from h_space_examples import PLAIN, QUICK, SIZE, comfy_sampler, guider, injected, levels, record
from training_examples import preview_vae

from frozen_diffusion.modules.hspace.trace import TraceError, beside, masked
from frozen_diffusion.modules.seeding import stream

pytestmark = [pytest.mark.usefixtures("unloaded"), pytest.mark.fault("G5")]


@pytest.fixture(scope="module")
def quick(tiny_sd15):
    return tiny_sd15(**QUICK)


@pytest.fixture(scope="module")
def contents(comfy, quick):
    """Two contents, recorded each by itself."""
    return [record(comfy, quick, steps=3, start=name)[1] for name in ("one", "two")]


def styles():
    return torch.randn(3, 4, SIZE, SIZE, generator=stream("h-space grid", "styles"))


def grid(comfy, model, sampler, **more):
    return comfy.run("FrozenHSpaceGrid", noise=custom.Noise_RandomNoise(4), guider=guider(model), sampler=sampler,
                     sigmas=levels(model, 3), latent_image={"samples": styles()}, vae=preview_vae(), **more)


def test_a_grid_is_its_cells(comfy, quick, contents):
    """Rows of contents, columns of styles, each as a run of its own."""
    both = comfy.run("FrozenMergeHSpace", trace_a=contents[0], trace_b=contents[1], mode="batch", weight=0.5)[0]
    output, images, sheet = grid(comfy, quick, injected(both))
    noise = custom.Noise_RandomNoise(4).generate_noise({"samples": styles()})
    cells = [guider(quick).sample(noise[[style]], styles()[[style]], injected(content), levels(quick, 3),
                                  disable_pbar=True, seed=4) for content in contents for style in range(3)]
    torch.testing.assert_close(output["samples"], torch.cat(cells), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(cells[0], cells[3], atol=1e-2)
    height, width = images.shape[1:3]
    assert len(images) == 6 and sheet.shape[1:3] == (2 * height + 2, 3 * width + 4)
    torch.testing.assert_close(sheet[0, height + 2:, :width], images[3])


def test_the_inputs_stand_beside_their_rows_and_columns(comfy, quick, contents):
    shown = {"content_images": torch.full((1, 10, 10, 3), 0.25), "style_images": torch.full((3, 40, 40, 3), 0.75)}
    _, images, sheet = grid(comfy, quick, injected(contents[0], PLAIN), **shown)
    height, width = images.shape[1:3]
    assert sheet.shape[1:3] == (2 * height + 2, 4 * width + 6)
    assert (sheet[0, :height, width + 2:2 * width + 2] == 0.75).all() and (sheet[0, height + 2:, :width] == 0.25).all()
    torch.testing.assert_close(sheet[0, height + 2:, -width:], images[2])
    with pytest.raises(ValueError, match="style_images holds 2 pictures; the grid has 3"):
        grid(comfy, quick, injected(contents[0]), style_images=torch.zeros(2, 8, 8, 3))


def test_traces_beside_a_content_go_with_it(comfy, quick, contents):
    """One picture's into every row, as many pictures' by number; masks too; other numbers are refused."""
    one, two = contents
    both = comfy.run("FrozenMergeHSpace", trace_a=one, trace_b=two, mode="batch", weight=0.5)[0]
    masks = torch.stack([torch.zeros(8, 8), torch.ones(8, 8)])
    first, second = beside(masked(both, masks), one).contents()
    assert torch.equal(second.features["h"], two.features["h"]) and second.others[0].batch == 1
    assert first.mask.max() == 0 and second.mask.min() == 1
    assert torch.equal(beside(one, both.contents()[1]).contents()[0].others[0].features["h"], two.features["h"])
    three = comfy.run("FrozenMergeHSpace", trace_a=both, trace_b=one, mode="batch", weight=0.5)[0]
    with pytest.raises(TraceError, match="holds 2 pictures and one beside it 3"):
        grid(comfy, quick, injected(beside(both, three)))


def test_other_samplers_have_no_contents(comfy, quick):
    with pytest.raises(ValueError, match="takes the SAMPLER of h-Space Injection Sampler"):
        grid(comfy, quick, comfy_sampler("euler"))
