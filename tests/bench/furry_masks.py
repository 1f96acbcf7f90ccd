"""The masks of the shipped FurryGAN against a teacher that was trained on true alpha (furrygan.md 5 and 8.1).

Of FROZEN_BENCH_PROMPTS samples (1000), with psi 1 and 0.7: `miou`, `fg_iou`, `constant_mask` (the mean mask in the
place of each), `edge_recall` (of the subject within two pixels of its edge), `orientation` (share of samples whose mask
fits better than its opposite), `mask`, `unsure`. `daux_real`: the discriminator's masks of 500 real pictures that no
training saw, against their true alpha. The teacher is trained first (minutes); its own figure on the same pictures is
`teacher`. Wants the font fonts-noto-color-emoji. Name: furry-masks.
"""
from __future__ import annotations

from bench._furry import Networks, hint_miou, mask_figures, teacher
from bench._sprite_world import context, prompts

from frozen_diffusion.modules.furrygan.files import read_furry_file
from frozen_diffusion.modules.host.folders import WEIGHTS

PSI = {"": 1.0, "_psi_07": 0.7}


def run() -> dict:
    networks = Networks.of(read_furry_file(WEIGHTS / "sprite_furry.safetensors"))
    judge, own = teacher(networks.file.shape.size)
    figures, count = {"teacher": own, "daux_real": hint_miou(networks)}, prompts(1000)
    for ending, psi in PSI.items():
        figures |= {name + ending: value for name, value in mask_figures(networks, judge, count, psi)[0].items()}
    figures["over_constant"] = figures["miou"] - figures["constant_mask"]
    return {"figures": figures, "context": context(samples=count, steps=networks.file.metadata.get("steps"))}
