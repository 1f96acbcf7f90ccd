"""What a motion LoRA is not, and what an absorber takes: controls of Customize-A-Video on sprite world.

With FROZEN_BENCH_SEEDS seeds (3): `shuffled_fid`, cosine of velocities after a training on shuffled frames, which is to
be none; `s_gain`, `ti_gain`, `whole_gain`: the share of the denoising loss of an odd look that an S-LoRA, a textual
inversion, and an S-LoRA without crops take away, the least of t = 100, 500 and 900. With the shipped files:
`two_motions`, correlation of each axis with its own path where sway and bob are on at .8 each (the worse axis), and of
each alone; `diversity` between seeds with a motion LoRA, `diversity_base` without, `diversity_inverted` from a clip's
inverted noise mixed half and half. FROZEN_BENCH_PROMPTS sets the prompts (8). About 8 minutes a seed, 6 for the rest.
Name: customize-controls.
"""
from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import comfy.sample
import comfy.samplers
import torch
from bench._customize import (
    CFG,
    STEPS,
    clips_of,
    clips_with,
    finished,
    learned,
    marks,
    module,
    scenes,
    seeds,
)
from bench._sprite_world import JUDGE, SAMPLER, SCHEDULER, condition, context, load_world, prompts
from torch import Tensor

from frozen_diffusion.modules.customize.meters import diversity
from frozen_diffusion.modules.customize.recipe import S_LORA, TEXT_INVERSION, AbsorberRecipe, MotionLoRARecipe
from frozen_diffusion.modules.demo.motion_oracle import read_clips
from frozen_diffusion.modules.demo.paths import WORDS, moving, odd_look, path_of, plain_look
from frozen_diffusion.modules.demo.renderer import FRAMES
from frozen_diffusion.modules.demo.world import caption
from frozen_diffusion.modules.host.customize.absorb import AbsorberSubject
from frozen_diffusion.modules.host.customize.files import find_lora, load_lora, motion_lora_of, with_motion_lora
from frozen_diffusion.modules.host.customize.reference_noise import reference_noise
from frozen_diffusion.modules.host.folders import SHIPPED
from frozen_diffusion.modules.host.hspace.inversion import invert
from frozen_diffusion.modules.host.motion.apply import apply_motion
from frozen_diffusion.modules.seeding import stream

AXES, TOGETHER, NOISE, ALIKE = {"sway": 0, "bob": 1}, 0.8, 80, 4        # the axis of each motion; seeds of `diversity`
LOOK_KINDS = {"s": {"kind": S_LORA}, "ti": {"kind": TEXT_INVERSION}, "whole": {"kind": S_LORA, "crops": 0}}


def with_loras(model, strengths: dict[str, float]):
    """The MODEL that moves, with motion LoRAs of the pack."""
    loaded = module()
    for name, strength in strengths.items():
        lora = motion_lora_of(load_lora(find_lora(f"{SHIPPED}sprite_{name}.safetensors")))
        loaded = with_motion_lora(loaded, lora, strength, 0.5)[0]
    return apply_motion(model, loaded)


def axis_correlation(clips: Tensor, motion: str) -> float:
    """Mean correlation of the clips' paths with the motion's, on its axis."""
    axis = AXES[motion]
    wanted = path_of(motion)[:, axis]
    paths = read_clips(clips).centre[..., axis]
    return statistics.mean(float(torch.corrcoef(torch.stack([path, wanted]))[0, 1].nan_to_num()) for path in paths)


def absorbed_shares(world, seed: int, cache: Path) -> dict[str, dict[str, float]]:
    """Of each kind of absorber, the share of the loss that it takes away by timestep."""
    source, found = odd_look("zigzag"), {}
    look = source.text.removesuffix(f", {WORDS['zigzag']}")
    for name, change in LOOK_KINDS.items():
        subject = AbsorberSubject(world.model, world.vae, world.clip, source, AbsorberRecipe(seed=seed, **change), look,
                                  cache)
        driver = finished(subject)
        with torch.inference_mode():
            driver.sample()
        found[name] = dict(subject.measured)
    return found


@torch.inference_mode()
def from_inverted(world, model, text: str, clip: Tensor, numbers: Sequence[int]) -> Tensor:
    """Clips [N, F, H, W, 3] of a prompt from a clip's inverted noise, half of it fresh."""
    plain = apply_motion(world.model, module())
    latents = world.vae.encode(clip.movedim(1, -1))
    noise = invert(plain, condition(world.clip, [""], 1), latents, 20, way_back=False).noise
    made = []
    for number in numbers:
        empty = torch.zeros_like(latents)
        start = reference_noise(model, noise, 0.5, number).generate_noise({"samples": empty})
        samples = comfy.sample.sample(model, start, STEPS, CFG, SAMPLER, SCHEDULER,
                                      condition(world.clip, [text], FRAMES), condition(world.clip, [""]), empty,
                                      disable_pbar=True, seed=number)
        made.append(world.vae.decode(samples).cpu())
    return torch.stack(made)


def run() -> dict:
    world, asked, rows = load_world(), scenes(prompts(8)), {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds():
            source = plain_look("zigzag")
            order = torch.randperm(FRAMES, generator=stream("shuffled", seed))
            shuffled = replace(source, frames=source.frames[order], name=f"shuffled {seed}")
            lora = learned(world, shuffled, MotionLoRARecipe(sample_every=0, seed=seed), Path(folder))
            rows[f"shuffled {seed}"] = asdict(marks(clips_of(world, world.model, lora, asked, "zigzag", NOISE), asked,
                                                    "zigzag"))
            rows[f"absorbed {seed}"] = absorbed_shares(world, seed, Path(folder))
            print({name: row for name, row in rows.items() if name.endswith(str(seed))}, file=sys.stderr, flush=True)
    figures = {"shuffled_fid": statistics.mean(row["fid"] for name, row in rows.items() if "shuffled" in name)}
    absorbed = [row for name, row in rows.items() if "absorbed" in name]
    for kind in LOOK_KINDS:
        figures[f"{kind}_gain"] = min(statistics.mean(row[kind][time] for row in absorbed)
                                      for time in ("absorbed at 100", "absorbed at 500", "absorbed at 900"))
    both = with_loras(world.model, dict.fromkeys(AXES, TOGETHER))
    clips = clips_with(world, both, [f"{caption(scene)}, {WORDS['sway']}, {WORDS['bob']}" for scene in asked], NOISE)
    for motion in AXES:
        alone = clips_of(world, world.model, motion_lora_of(load_lora(find_lora(
            f"{SHIPPED}sprite_{motion}.safetensors"))), asked, motion, NOISE)
        figures |= {f"{motion}_alone": axis_correlation(alone, motion),
                    f"{motion}_both": axis_correlation(clips, motion)}
        print(motion, figures, file=sys.stderr, flush=True)
    figures["two_motions"] = min(figures[f"{motion}_both"] for motion in AXES)
    text, numbers = moving(asked[0], "sway"), range(NOISE, NOISE + ALIKE)
    moved = with_loras(world.model, {"sway": 1.0})
    figures["diversity"] = diversity(torch.cat([clips_with(world, moved, [text], number).movedim(2, -1)
                                                for number in numbers]))
    still = apply_motion(world.model, module())
    figures["diversity_base"] = diversity(torch.cat([clips_with(world, still, [text], number).movedim(2, -1)
                                                     for number in numbers]))
    figures["diversity_inverted"] = diversity(from_inverted(world, moved, text, plain_look("sway").frames, numbers))
    return {"figures": figures, "context": context(judge=JUDGE, prompts=len(asked), seeds=list(seeds()), rows=rows)}
