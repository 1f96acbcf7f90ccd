"""Motion LoRAs of sprite world: motions that its motion module has never seen, each learned from one clip."""
from __future__ import annotations

from pathlib import Path

import torch

from ..customize.files import ANIMATEDIFF, state_of
from ..customize.names import TEMPORAL
from ..customize.recipe import MotionLoRARecipe
from ..customize.rerank import reranked
from ..demo.paths import moving, plain_look
from ..demo.world import Scene
from ..training.driver import Driver
from .parts import follow, publish

MOTIONS, RANK = ("zigzag", "sway", "bob"), 2           # shipped at a smaller rank than they are trained at: small files
RECIPE = MotionLoRARecipe(sample_every=0)
OTHERS = (Scene("fox", "large", "middle", "blue", "plain"), Scene("car", "small", "middle", "green", "stripes"),
          Scene("star", "large", "middle", "purple", "plain"))


def train_motion_loras(runs: Path) -> Path:
    """One after the other, on the shipped baseline module; looks at other sprites choose the snapshot."""
    from ..host.customize.train import MotionLoRASubject
    from ..host.demo import load_sprite_world
    from ..host.folders import SHIPPED
    from ..host.motion.files import find_motion_file, load_motion_file
    model, clip, vae = load_sprite_world()[:3]
    module, _ = load_motion_file(find_motion_file(f"{SHIPPED}sprite_motion.safetensors"))
    for motion in MOTIONS:
        source = plain_look(motion)
        subject = MotionLoRASubject(model, vae, clip, module, source, RECIPE, prompts=[moving(scene, motion)
                                                                                       for scene in OTHERS],
                                    cache=runs / "customize_clips")
        driver = Driver(subject, runs / f"motion_lora_{motion}.safetensors")
        with torch.inference_mode():
            for _ in driver.encode():
                pass
            hours = follow(driver.records(), driver.steps, every=20)
            driver.sample()
        made = driver.result()
        factors, kept = reranked(made.factors, RANK)
        path = publish(f"motion_loras/sprite_{motion}", state_of({TEMPORAL: factors}, ANIMATEDIFF),
                       f"Motion LoRA of sprite world: {motion}, learned from one clip by Customize-A-Video. A "
                       "reconstruction; see the README.", "python -m frozen_diffusion.cli demo-train motion-loras",
                       RECIPE.settings(), hours, {**subject.measured, f"energy kept at rank {RANK}": kept},
                       {**made.metadata, "rank": str(RANK)})
        print(path, subject.measured, flush=True)
    return path
