"""The templates of text to image and video on motion modules, see the list in __init__.py."""
from __future__ import annotations

from .parts import (
    CAPTIONS,
    OWN_CLIP,
    PROMPT_CHANGE,
    RESULT_STAGE,
    SD15,
    SD15_MOTION,
    STAND_IN,
    STAND_IN_TILE,
    Template,
    controlled,
    drawn_edges,
    image_graph,
    node,
    own_video_graph,
    text_of,
    video_graph,
)

MODEL_STAGE = {"1 Model": ["world", "module", "motion"]}
OWN_STAGE = {"1 Model": ["world", "module", "motion", "module report"]}
PROMPT_AND_SAMPLING = {"2 Prompt": ["positive", "negative", "latent"], "3 Sampling": ["sampler", "decode"]}


def text_to_image() -> Template:
    graph = image_graph("a large fox in the middle of a blue dotted background")
    graph["save"] = node("SaveImage", images=["decode", 0], filename_prefix="frozen_diffusion/image")
    return Template(
        graph, "draws a picture from a caption, with sprite world, the small trained model that comes with the pack.",
        PROMPT_CHANGE, "a few seconds",
        [[{}, {"1 Model": ["world"]}, PROMPT_AND_SAMPLING, {"4 Result": ["save"]}]],
        "positive", "save", (CAPTIONS,), thumbnail=[("", "save")])


def text_to_video() -> Template:
    graph = video_graph("a large fox in the middle of a blue plain background, bouncing", "video")
    return Template(
        graph, "makes a video of 16 frames from a caption: a motion module turns the frozen image model into a video "
        "model.", PROMPT_CHANGE + " *Empty Latent Image*, **batch_size**, is the number of frames.", "about half a minute",
        [[{}, MODEL_STAGE, PROMPT_AND_SAMPLING, RESULT_STAGE]], "positive", "save",
        ("- **cfg** 5 and 20 steps of euler are good values here.\n- *Apply Motion Module*, **strength** 0, is the image "
         "model." + OWN_CLIP, "### Captions" + CAPTIONS))


def text_to_video_style_lora() -> Template:
    graph = video_graph("a large panda in the middle of a yellow plain background, growing", "style", motion_on="lora")
    graph["lora"] = node("LoraLoaderModelOnly", model=["world", 0], lora_name="sprite_pencil.safetensors",
                         strength_model=1.0)
    return Template(
        graph, "makes a video in the style of a LoRA. The motion module was trained on the plain image model and works on "
        "a fine-tuned one as well.", "the file in *Load LoRA*, the *Prompt*. Then press **Run**.", "about half a minute",
        [[{}, {"1 Style": ["world", "lora"], "2 Motion": ["module", "motion"]},
          {"3 Prompt": ["positive", "negative", "latent"], "4 Sampling": ["sampler", "decode"]},
          {"5 Result": ["sheet", "video", "save"]}]],
        "lora", "save", ("*sprite_pencil* and *sprite_swapped* come with the pack; your own LoRAs go in `models/loras`."
                         + OWN_CLIP,), {"lora": "Load LoRA"})


def animatediff_own_checkpoint() -> Template:
    graph = own_video_graph("a corgi running on the beach, golden hour, film still", "animatediff", SD15_MOTION["name"])
    return Template(
        graph, "makes a video with your own SD1.5 checkpoint and an AnimateDiff motion module.",
        "the files in *Load Checkpoint* and *Load Motion Module*, the green *Prompt*. Then press **Run**.",
        "minutes on a GPU, hours",
        [[{}, OWN_STAGE, PROMPT_AND_SAMPLING, RESULT_STAGE]], "positive", "save",
        (f"**Files.** The page offers what is missing; or fetch it by hand:\n\n- [{SD15['name']}]({SD15['url']}), or any "
         f"SD1.5 checkpoint, into `models/checkpoints`\n- [{SD15_MOTION['name']}]({SD15_MOTION['url']}), or another "
         "motion module, into `models/animatediff_models`\n\nThen press **R**, which reads the folders again.\n\n*Load "
         "Motion Module* takes AnimateDiff v1, v2, v3, AnimateLCM, PIA's motion part and diffusers MotionAdapters, and "
         "reports what it found. The noise schedule follows from the file.\n\nSDXL checkpoints take AnimateDiff-SDXL and "
         "HotshotXL files; a wrong pair is refused; the message says why. AnimateLCM wants sampler *lcm*, scheduler "
         "*sgm_uniform*, 8 steps, cfg 1.5.",),
        models={"world": [SD15], "module": [SD15_MOTION]}, thumbnail=STAND_IN_TILE, sprite_prompts=STAND_IN)


def controlnet_frames() -> Template:
    graph = video_graph("a large rocket in the middle of a purple plain background, moving up", "control")
    graph |= drawn_edges("picture", "a large rocket on the left of a black plain background")
    controlled(graph, "picture edges", "0, 1", "1.0, 0.6")
    return Template(
        graph, "makes a video whose first frames follow the edges of a picture: a ControlNet acts on the frames you list, "
        "the motion module does the others.",
        "the two green prompts; **frames** and **strengths** of *Apply ControlNet to Frames*. Then press **Run**.",
        "about a minute",
        [[{}, {"3 Prompt": ["positive", "negative", "latent"]},
          {"4 Control": ["controlnet", "control"], "5 Sampling": ["sampler", "decode"]},
          {"6 Result": ["sheet", "video", "save"]}],
         [{"1 Model": ["world", "module", "motion"]},
          {"2 Guiding picture": ["picture prompt", "picture size", "picture", "picture decode", "picture edges",
                                 "show edges"]}]], "positive", "save",
        ("**frames** lists the frames (0 is the first, -1 the last), **strengths** one number for all or one for each. "
         "Connect several hint images, one for each listed frame, to guide the end as well.\n\nThe ControlNet must belong "
         "to the image model: *sprite_edges* is for sprite world, an SD1.5 one (`models/controlnet`) for your own "
         "checkpoint.",), thumbnail=[("edges guide the first frames", "show edges", "save 0"), ("", "save 8", "save 15")])


def long_clip_context_windows() -> Template:
    graph = video_graph("a large panda in the middle of a green plain background, circling", "long", frames=40,
                        model="windows")
    graph["windows"] = node("ContextWindowsManual", model=["motion", 0], context_length=16, context_overlap=4,
                            context_schedule="standard_static", context_stride=1, closed_loop=False,
                            fuse_method="pyramid", dim=0)
    return Template(
        graph, "makes a long video: 40 frames in windows of 16 that overlap by 4.",
        "the green *Prompt*; *Empty Latent Image*, **batch_size**, is the number of frames. Then press **Run**.",
        "one to two minutes",
        [[{}, {"1 Model": ["world", "module", "motion"], "2 Windows": ["windows"]},
          {"3 Prompt": ["positive", "negative", "latent"], "4 Sampling": ["sampler", "decode"]},
          {"5 Result": ["sheet", "video", "save"]}]],
        "positive", "save",
        ("A motion module handles a limited number of frames at once (32 here, AnimateDiff v1 24). *Context Windows "
         "(Manual)*, a node of ComfyUI itself, goes beyond. **dim** must be 0: frames are the batch." + OWN_CLIP,),
        thumbnail=[("", *(f"save {frame}" for frame in frames)) for frames in ((0, 5, 10), (15, 20, 25), (30, 35, 39))])


def train_motion_module() -> Template:
    graph = {
        "world": node("FrozenLoadSpriteWorld"),
        "clips": node("FrozenClipDataset", source="sprite world", folder="", frames=16, fps=8.0, width=128, height=128,
                      stride=0.0, max_clips=256, mirror=False, keep_still=False, seed=0),
        "train": node("FrozenTrainMotionModule", model=["world", 0], vae=["world", 2], clip=["world", 1],
                      clips=["clips", 0], steps=200, learning_rate=5e-4, batch_size=2, accumulate=1, beta_schedule="keep",
                      gradient_checkpointing=False, sample_every=50, checkpoint="sprite_example",
                      sample_prompt="a large dog in the middle of a blue plain background, moving left"),
        "losses": node("LossGraphNode", loss=["train", 1], filename_prefix="frozen_diffusion_loss"),
        "sheet": node("FrozenFrameSheet", frames=["train", 2], columns=8, every=1),
        "save": node("FrozenSaveMotionModule", motion_module=["train", 0],
                     filename_prefix="motion_modules/sprite_example", licence="", train_data=""),
    } | text_of("clips", 1) | text_of("save", 0)
    return Template(
        graph, "trains a motion module on clips: the image model stays frozen, only the temporal layers learn. Here 256 "
        "clips of sprite world, enough to see the loss fall.",
        "*Clip Dataset*: your own **folder** of videos. Then press **Run**.", "about ten minutes",
        [[{}, {"1 Clips and model": ["clips", "clips report", "world"]}, {"2 Training": ["train"]},
          {"3 Result": ["sheet", "losses", "save", "save report"]}]], "clips", "sheet",
        ("**Cancel** whenever you like: queue again and the training goes on where it was. The line under *Train Motion "
         "Module* tells loss and time left.\n\n### Your own clips\nSet "
         "**source** to *folder*, **max_clips** to 0 (all) and the size to 256x256, and name a folder with videos and "
         "captions (`clip.mp4` + `clip.txt`). Exchange *Load Sprite World* for *Load Checkpoint* and start from an "
         "AnimateDiff file: connect *Load Motion Module* to **motion_module**. In *Train Motion Module*: "
         "**beta_schedule** *auto*, **learning_rate** 1e-4 (the file's layers learn at a tenth of it), "
         "**gradient_checkpointing** on, **steps** 500 or more, a **checkpoint** name and a **sample_prompt** of your "
         "own.\n\nUse clips without watermarks: temporal layers learn them, although the image model is frozen.",),
        thumbnail=[("loss", "losses"), ("sample", "sheet")])
