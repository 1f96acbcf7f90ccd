"""The templates of Customize-A-Video, see the list in __init__.py."""
from __future__ import annotations

from .parts import CAPTIONS, Template, node, text_of, video_graph

ZIGZAG, SWAY = "zorbling", "fleppering"         # the motions' words, which mean nothing to the text encoder
OWN = ("\n\n**With your own SD1.5 checkpoint and AnimateDiff file:** exchange *Load Sprite World* for *Load Checkpoint*, load "
       "your motion file, and in *Clip Dataset* set **source** to *folder* with one clip of two seconds. "
       "**learning_rate** 5e-4, **steps** 150 to 500.")
STRENGTH = {"strength": 1.0, "fade_after": 0.5, "curve": "", "blocks": ""}


def clips(source: str) -> dict:
    """One clip to learn from."""
    return node("FrozenClipDataset", source=source, folder="", frames=16, fps=8.0, width=128, height=128, stride=0.0,
                max_clips=1, mirror=False, keep_still=False, seed=0)


def options() -> dict:
    return node("FrozenTrainingOptions", schedule="constant", warmup=0, optimizer="adamw", weight_decay=0.01,
                grad_clip=1.0, accumulate=1, ema=0.0, precision="fp32", gradient_checkpointing=False,
                checkpoint_every=50)


def trained(clips: str, caption: str, prompts: str, name: str, steps: int = 80, **more) -> dict:
    """Train Motion LoRA on the baseline module."""
    return node("FrozenTrainMotionLoRA", model=["world", 0], vae=["world", 2], clip=["world", 1],
                motion_module=["module", 0], clips=[clips, 0], caption=caption, prompts=prompts, recipe="fast",
                steps=steps, learning_rate=1e-2, rank=4, frames=8, sample_every=0, checkpoint=name, resume=True, seed=0,
                options=["options", 0], **more)


def motion_from_a_clip() -> Template:
    graph = video_graph(f"a large fox in the middle of a blue plain background, {SWAY}", "learned_motion") | {
        "clips": clips("sprite world: sway"), "options": options(),
        "train": trained("clips", f"a large panda in the middle of a yellow dotted background, {SWAY}",
                         f"a large star in the middle of a purple plain background, {SWAY}", "sprite_sway_example"),
        "apply": node("FrozenApplyMotionLoRA", motion_module=["module", 0], motion_lora=["train", 0], **STRENGTH),
        "doctor": node("FrozenClipDoctor", frames=["decode", 0], fps=8.0, seconds=2.0),
        "reference": node("PreviewImage", images=["clips", 2]),
        "keep": node("FrozenSaveMotionLoRA", motion_lora=["train", 0], filename_prefix="motion_loras/sway_example"),
    } | text_of("clips", 1) | text_of("train", 3) | text_of("keep", 0) | text_of("doctor", 1) | text_of("apply", 1)
    graph["motion"]["inputs"]["motion_module"] = ["apply", 0]
    return Template(
        graph, "learns a motion from one clip of two seconds and lets another sprite move like it. The reference sways; "
        "no motion module here knows that.", "the green *Prompt*: any other sprite, with the motion's word. Then press "
        "**Run**.", "five minutes",
        [[{}, {"1 Model": ["world", "module"], "2 Clip": ["clips", "clips report"]},
          {"5 Prompt": ["positive", "negative", "latent"]}, {"7 Result": ["sheet", "video", "save"]}],
         [{"3 The clip": ["reference"], "4 Learn": ["options", "train", "train report"]},
          {"6 Use it": ["apply", "apply report", "motion", "sampler", "decode"]},
          {"8 Keep and check": ["keep", "keep report", "doctor", "doctor report"]}]],
        "positive", "sheet",
        (f"*{SWAY}* is a word without a meaning: nothing else comes with it. *Clip Doctor* tells which part of a clip to "
         "learn from; here it looks at the result." + OWN, "### Captions" + CAPTIONS), thumbnail=[
            ("the clip", "reference"), ("another sprite", "sheet")])


def absorb_a_look() -> Template:
    graph = video_graph(f"a large star in the middle of a blue plain background, {ZIGZAG}", "absorbed") | {
        "clips": clips("sprite world: zigzag, odd look"), "options": options(),
        "absorber": node("FrozenTrainAbsorber", model=["world", 0], vae=["world", 2], clip=["world", 1],
                         clips=["clips", 0], caption="a large panda in the middle of a yellow dotted background",
                         kind="S-LoRA", steps=100, learning_rate=3e-3, embedding_rate=2e-2, rank=4, vectors=4,
                         batch_size=4, crops=64, native_scale=False, sample_every=0,
                         checkpoint="sprite_absorber_example", resume=True, seed=0, options=["options", 0]),
        "train": trained("clips", f"a large panda in the middle of a yellow dotted background, {ZIGZAG}",
                         f"a large fox in the middle of a purple plain background, {ZIGZAG}", "sprite_zigzag_example",
                         100, absorber=["absorber", 0]),
        "apply": node("FrozenApplyMotionLoRA", motion_module=["module", 0], motion_lora=["train", 0], **STRENGTH),
        "reference": node("PreviewImage", images=["clips", 2]),
        "seen": node("PreviewImage", images=["absorber", 2]),
        "keep": node("FrozenSaveAbsorber", absorber=["absorber", 0], filename_prefix="absorbers/odd_look_example"),
    } | text_of("clips", 1) | text_of("absorber", 3) | text_of("train", 3) | text_of("apply", 1)
    graph["motion"]["inputs"]["motion_module"] = ["apply", 0]
    return Template(
        graph, "learns a look away before the motion is learned: the clip shows a green panda on an orange chequer, which its "
        "caption does not tell, and none of it is to come along.", "**kind** in *Train Appearance Absorber*, the green "
        "*Prompt*. Then press **Run**.", "six minutes",
        [[{}, {"1 Model": ["world", "module"], "2 Clip": ["clips", "clips report"]},
          {"7 Prompt": ["positive", "negative", "latent"]}, {"9 Result": ["sheet", "video", "save"]}],
         [{"3 The clip": ["reference"], "4 Look": ["options", "absorber", "absorber report"]},
          {"5 Motion": ["train", "train report"], "6 What it sees": ["seen", "keep"]},
          {"8 Use it": ["apply", "apply report", "motion", "sampler", "decode"]}]],
        "positive", "sheet",
        ("The absorber is in while the motion is learned, and thrown away afterwards. The report says how much of the loss "
         "it takes away." + OWN, "### Captions" + CAPTIONS), thumbnail=[("the clip", "reference"), ("", "sheet")])


def loaded(key: str, motion: list, name: str, strength: float) -> dict:
    """A motion LoRA of the pack on a motion module, with its report."""
    return {key: node("FrozenLoadMotionLoRA", motion_module=motion, lora_file=f"frozen-diffusion/sprite_{name}.safetensors",
                      **{**STRENGTH, "strength": strength})} | text_of(key, 1)


def motion_loras() -> Template:
    graph = video_graph(f"a large rocket in the middle of a green plain background, {ZIGZAG}", "motion_lora") | loaded(
        "zigzag", ["module", 0], "zigzag", 1.0) | loaded("sway", ["zigzag", 0], "sway", 0.0) | {
        "convert": node("FrozenConvertLoRA", lora_file="frozen-diffusion/sprite_zigzag.safetensors", add="none", scale=1.0,
                        add_scale=1.0, rank=1, layout="diffusers", filename_prefix="motion_loras/zigzag_example"),
    } | text_of("convert", 0)
    graph["motion"]["inputs"]["motion_module"] = ["sway", 0]
    return Template(
        graph, "moves a sprite by a motion LoRA that comes with the pack, and has a place for a second one.",
        "**strength** of both *Load Motion LoRA* nodes, and the word in the green *Prompt*. Then press **Run**.",
        "half a minute",
        [[{}, {"1 Model": ["world", "module"]}, {"3 Prompt": ["positive", "negative", "latent"]},
          {"5 Result": ["sheet", "video", "save"]}],
         [{"2 Motion LoRAs": ["zigzag", "zigzag report", "sway", "sway report"]},
          {"4 Sampling": ["motion", "sampler", "decode"], "6 Another file": ["convert", "convert report"]}]],
        "positive", "sheet",
        (f"*{ZIGZAG}* goes with the first, *{SWAY}* with the second: the reports tell. Of two at once start at 0.8 each. "
         "*Convert LoRA* writes the first one for diffusers, at rank 1." + OWN, "### Captions" + CAPTIONS),
        thumbnail=[("zigzag", "sheet")])

