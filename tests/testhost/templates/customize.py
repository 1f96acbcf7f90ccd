"""The templates of Customize-A-Video, see the list in __init__.py."""
from __future__ import annotations

from .parts import CAPTIONS, HUB, SD15, STAND_IN, STAND_IN_TILE, Template, node, own_video_graph, text_of, video_graph

ZIGZAG, SWAY, BOB = "zorbling", "fleppering", "drobbing"        # words that mean nothing to the text encoder
SD15_V2 = {"name": "mm_sd15_v2.safetensors", "directory": "animatediff_models",
           "url": f"{HUB}/conrevo/AnimateDiff-A1111/resolve/main/motion_module/mm_sd15_v2.safetensors"}
ZOOM_IN = {"name": "mm_sd15_v2_lora_ZoomIn.safetensors", "directory": "animatediff_motion_lora",
           "url": f"{HUB}/conrevo/AnimateDiff-A1111/resolve/main/lora/mm_sd15_v2_lora_ZoomIn.safetensors"}
OWN = ("\n\n**With your own SD1.5 checkpoint and AnimateDiff file:** exchange *Load Sprite World* for *Load Checkpoint*, load "
       "your motion file, and in *Clip Dataset* set **source** to *folder* with one clip of two seconds. "
       "**learning_rate** 5e-4, **steps** 150 to 500.")
STRENGTH = {"strength": 1.0, "fade_after": 0.5, "curve": "", "blocks": ""}


def clips(source: str) -> dict:
    """One clip to learn from."""
    return node("FrozenClipDataset", source=source, folder="", frames=16, fps=8.0, width=128, height=128, stride=0.0,
                max_clips=0, mirror=False, keep_still=False, seed=0)


def options() -> dict:
    return node("FrozenTrainingOptions", schedule="cosine", warmup=0, optimizer="adamw", weight_decay=0.01,
                grad_clip=1.0, accumulate=1, ema=0.0, precision="fp32", gradient_checkpointing=False,
                checkpoint_every=50)


def trained(clips: str, caption: str, prompts: str, name: str, steps: int = 150, **more) -> dict:
    """Train Motion LoRA on the baseline module."""
    return node("FrozenTrainMotionLoRA", model=["world", 0], vae=["world", 2], clip=["world", 1],
                motion_module=["module", 0], clips=[clips, 0], caption=caption, prompts=prompts, recipe="fast",
                steps=steps, learning_rate=1e-2, rank=4, frames=0, sample_every=0, checkpoint=name, resume=True, seed=0,
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
                         absorber=["absorber", 0]),
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


def two_looks() -> Template:
    """Several clips of one motion, an absorber for each."""
    first, second = (f"a large {sprite} in the middle of a {behind} background" for sprite, behind in (
        ("panda", "yellow dotted"), ("star", "blue plain")))

    def absorber(number: int, caption: str) -> dict:
        return node("FrozenTrainAbsorber", model=["world", 0], vae=["world", 2], clip=["world", 1], clips=["clips", 0],
                    caption=caption, kind="S-LoRA", steps=60, learning_rate=3e-3, embedding_rate=2e-2, rank=4, vectors=4,
                    batch_size=4, crops=64, native_scale=False, sample_every=0,
                    checkpoint=f"sprite_absorber_{number}_example", resume=True, seed=0, options=["options", 0],
                    clip_number=number)

    graph = video_graph(f"a large fox in the middle of a green plain background, {SWAY}", "two_looks") | {
        "clips": clips("sprite world: sway, two looks"), "options": options(),
        "first": absorber(1, first), "second": absorber(2, second),
        "join": node("FrozenJoinAbsorbers", first=["first", 0], second=["second", 0]),
        "train": trained("clips", "", f"a large rocket in the middle of a purple plain background, {SWAY}",
                         "sprite_two_looks_example", absorber=["join", 0]),
        "apply": node("FrozenApplyMotionLoRA", motion_module=["module", 0], motion_lora=["train", 0], **STRENGTH),
        "reference": node("PreviewImage", images=["clips", 2]),
    } | text_of("clips", 1) | text_of("first", 3) | text_of("second", 3) | text_of("train", 3) | text_of("apply", 1)
    graph["motion"]["inputs"]["motion_module"] = ["apply", 0]
    return Template(
        graph, "learns one motion from two clips of different looks. Each clip has an absorber of its own, which is in only "
        "while that clip is learned from.", "the green *Prompt*. Then press **Run**.", "eight minutes",
        [[{}, {"1 Model": ["world", "module"], "2 Clips": ["clips", "clips report"]},
          {"6 Prompt": ["positive", "negative", "latent"]}, {"8 Result": ["sheet", "video", "save"]}],
         [{"3 The clips": ["reference", "options"]}, {"4 Looks": ["first", "first report", "second", "second report",
                                                                 "join"]},
          {"5 Motion": ["train", "train report"]},
          {"7 Use it": ["apply", "apply report", "motion", "sampler", "decode"]}]],
        "positive", "sheet",
        ("**caption** of *Train Motion LoRA* is empty, so that each clip keeps its own. For more clips chain *Join "
         "Absorbers*, in the order of the clips." + OWN, "### Captions" + CAPTIONS),
        {"first": "Absorber: first clip", "second": "Absorber: second clip"},
        thumbnail=[("two clips", "reference"), ("one motion", "sheet")])


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
    for key in ("motion", "sampler", "decode", "sheet"):
        graph[f"{key} without"] = {**graph[key], "inputs": dict(graph[key]["inputs"])}
    graph["sampler without"]["inputs"]["model"] = ["motion without", 0]
    graph["decode without"]["inputs"]["samples"] = ["sampler without", 0]
    graph["sheet without"]["inputs"]["frames"] = ["decode without", 0]
    graph["shown without"] = node("PreviewImage", images=["sheet without", 0])
    graph["motion"]["inputs"]["motion_module"] = ["sway", 0]
    return Template(
        graph, "moves a sprite by a motion LoRA that comes with the pack, beside the same seed without it.",
        "**strength** of both *Load Motion LoRA* nodes, and the word in the green *Prompt*. Then press **Run**.",
        "a minute",
        [[{}, {"1 Model": ["world", "module"]}, {"3 Prompt": ["positive", "negative", "latent"]},
          {"6 Result": ["sheet", "video", "save"]}],
         [{"2 Motion LoRAs": ["zigzag", "zigzag report", "sway", "sway report"]},
          {"4 Without": ["motion without", "sampler without", "decode without", "sheet without", "shown without"]},
          {"5 With": ["motion", "sampler", "decode"], "7 Another file": ["convert", "convert report"]}]],
        "positive", "sheet",
        (f"*{ZIGZAG}* goes with the first, *{SWAY}* with the second: the reports tell, and how many layers of the module each "
         "changes. Of two at once start at 0.8 each. *Convert LoRA* writes the first one for diffusers, at rank 1." + OWN,
         "### Captions" + CAPTIONS),
        {"motion without": "Motion: without", "sampler without": "KSampler: without",
         "decode without": "VAE Decode: without", "sheet without": "Frame Sheet: without", "sheet": "Frame Sheet: with"},
        thumbnail=[("without", "shown without"), ("with", "sheet")])


def two_motions() -> Template:
    graph = video_graph(f"a large watermelon in the middle of a purple plain background, {SWAY}, {BOB}",
                        "two_motions") | loaded("sway", ["module", 0], "sway", 0.8) | loaded("bob", ["sway", 0], "bob", 0.8)
    graph["motion"]["inputs"]["motion_module"] = ["bob", 0]
    return Template(
        graph, "moves a sprite by two motion LoRAs at once: one sways it, the other bobs it up and down.",
        "**strength** of both *Load Motion LoRA* nodes, and the words in the green *Prompt*. Then press **Run**.",
        "half a minute",
        [[{}, {"1 Model": ["world", "module"]}, {"3 Prompt": ["positive", "negative", "latent"]},
          {"5 Result": ["sheet", "video", "save"]}],
         [{"2 Motion LoRAs": ["sway", "sway report", "bob", "bob report"]},
          {"4 Sampling": ["motion", "sampler", "decode"]}]],
        "positive", "sheet",
        (f"Each has a word of its own: *{SWAY}* sways, *{BOB}* bobs. Two LoRAs that share a word disturb each other. Start at "
         "0.8 each; above 1.5 in sum clips break as a rule, and the report says so. Both change the same layers, so that they "
         "disturb each other: of eight prompts the sideways path correlates by .49 with its own (.89 alone), the one up and down by "
         ".06 (.79 alone)." + OWN, "### Captions" + CAPTIONS),
        thumbnail=[("two at once", "save 0", "save 2"), ("", "save 4", "save 6")])


def camera_lora() -> Template:
    graph = own_video_graph("a castle on a hill above the sea, golden hour, film still", "camera", SD15_V2["name"])
    graph["camera"] = node("FrozenLoadMotionLoRA", motion_module=["module", 0], lora_file=ZOOM_IN["name"],
                           **{**STRENGTH, "fade_after": 1.0})
    graph |= text_of("camera", 1)
    graph["motion"]["inputs"]["motion_module"] = ["camera", 0]
    return Template(
        graph, "moves the camera of your own AnimateDiff video with one of AnimateDiff's camera LoRAs.",
        "the files in *Load Checkpoint*, *Load Motion Module* and *Load Motion LoRA*, the green *Prompt*. Then press **Run**.",
        "minutes on a GPU, hours",
        [[{}, {"1 Model": ["world", "module", "module report"]}, {"3 Prompt": ["positive", "negative", "latent"]},
          {"5 Result": ["sheet", "video", "save"]}],
         [{"2 Camera": ["camera", "camera report"]}, {"4 Sampling": ["motion", "sampler", "decode"]}]],
        "positive", "save",
        (f"**Files.** The page offers what is missing; or fetch it by hand:\n\n- [{SD15['name']}]({SD15['url']}), or any "
         f"SD1.5 checkpoint, into `models/checkpoints`\n- [{SD15_V2['name']}]({SD15_V2['url']}) into "
         f"`models/animatediff_models`\n- [{ZOOM_IN['name']}]({ZOOM_IN['url']}) into `models/animatediff_motion_lora`\n\nThen "
         "press **R**, which reads the folders again.\n\nThe camera LoRAs are for AnimateDiff **v2**: on v1 and v3 modules "
         "their middle layers are missing and they do little; the report counts. They want **fade_after** 1, to move the "
         "camera to the end. A negative **strength** zooms out.",),
        models={"world": [SD15], "module": [SD15_V2], "camera": [ZOOM_IN]}, thumbnail=STAND_IN_TILE,
        sprite_prompts={**STAND_IN, "positive": f"a large panda in the middle of a yellow plain background, {ZIGZAG}"})


def edit_from_the_clip() -> Template:
    graph = video_graph(f"a large ball in the middle of a blue plain background, {SWAY}", "edited_clip") | loaded(
        "sway", ["module", 0], "sway", 1.0)
    del graph["sampler"]
    graph["motion lora"] = {**graph["motion"], "inputs": {**graph["motion"]["inputs"], "motion_module": ["sway", 0]}}
    graph |= {
        "clip prompt": node("CLIPTextEncode", clip=["world", 1],
                            text=f"a large apple in the middle of a yellow dotted background, {SWAY}"),
        "clip": node("KSampler", model=["motion lora", 0], positive=["clip prompt", 0], negative=["negative", 0],
                     latent_image=["latent", 0], seed=7, steps=20, cfg=5.0, sampler_name="euler", scheduler="normal",
                     denoise=1.0),
        "clip decode": node("VAEDecode", samples=["clip", 0], vae=["world", 2]),
        "clip sheet": node("FrozenFrameSheet", frames=["clip decode", 0], columns=4, every=1, show="moving",
                           fps=8.0),
        "clip shown": node("PreviewImage", images=["clip sheet", 0]),
        "invert": node("FrozenInvertDDIM", model=["motion", 0], positive=["negative", 0], latent=["clip", 0], steps=20,
                       refinements=0, deep_skips=0, check=True),
        "noise": node("FrozenReferenceNoise", model=["motion", 0], noise_latent=["invert", 0], share=1.0, noise_seed=7),
        "euler": node("KSamplerSelect", sampler_name="euler"),
        "guider": node("CFGGuider", model=["motion lora", 0], positive=["positive", 0], negative=["negative", 0], cfg=5.0),
        "sampler": node("SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], sampler=["euler", 0],
                        sigmas=["invert", 2], latent_image=["latent", 0]),
    } | text_of("invert", 4)
    return Template(
        graph, "edits a clip precisely: it is inverted to its own noise, and another prompt is sampled from that noise, with "
        "the clip's motion LoRA.", "the two green prompts; **share** of *Reference Noise*: 1 keeps the clip's layout, 0 is a "
        "new clip. Then press **Run**.", "a minute",
        [[{}, {"1 Model": ["world", "module", "motion"], "2 Motion": ["sway", "sway report", "motion lora"]},
          {"3 Prompts": ["clip prompt", "positive", "negative"]}, {"7 Result": ["sheet", "video", "save"]}],
         [{"4 The clip": ["latent", "clip", "clip decode", "clip sheet", "clip shown"]},
          {"5 Its noise": ["invert", "invert report", "noise"]},
          {"6 Another prompt": ["euler", "guider", "sampler", "decode"]}]],
        "positive", "sheet",
        ("The inversion has the motion module on it and no motion LoRA, with an empty prompt. For a video of your own put "
         "*Load Video*, *Get Video Components* and *VAE Encode* in place of the clip's sampler. **share** 0.1 to 0.5 keeps "
         "the motion and lets the layout go its own way." + OWN, "### Captions" + CAPTIONS),
        {"positive": "Prompt: the other clip", "motion": "Motion without LoRA",
         "motion lora": "Motion with LoRA"},
        thumbnail=[("the clip", "clip shown"), ("edited", "sheet")])
