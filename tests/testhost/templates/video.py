"""The templates of text to image and video on motion modules, see the list in __init__.py."""
from __future__ import annotations

from .parts import CAPTIONS, OWN_CLIP, Template, controlled, drawn_edges, image_graph, node, video_graph


def text_to_image() -> Template:
    graph = image_graph("a large fox in the middle of a blue dotted background")
    graph["save"] = node("SaveImage", images=["decode", 0], filename_prefix="frozen_diffusion/image")
    return Template(graph, ("## Text to image on sprite world\nThe small trained model that comes with Frozen Diffusion. "
                            "Press **Run**." + CAPTIONS,))


def text_to_video() -> Template:
    graph = video_graph("a large dog in the middle of a blue striped background, moving left", "video")
    return Template(graph, ("## Text to video\nA motion module turns the frozen image model into a video model. The batch "
                            "of 16 latents is one clip of 16 frames. Press **Run**: a video file and a frame sheet "
                            "appear.\n\n- **cfg** 5 and 20 steps of euler are good values here.\n- "
                            "*Apply Motion Module*, **strength** 0, is the image model." + OWN_CLIP, "### Captions"
                            + CAPTIONS))


def text_to_video_style_lora() -> Template:
    graph = video_graph("a large cat in the middle of a green plain background, growing", "style", motion_on="lora")
    graph["lora"] = node("LoraLoaderModelOnly", model=["world", 0], lora_name="sprite_swapped.safetensors",
                         strength_model=1.0)
    return Template(graph, ("## Text to video with a style LoRA\nThe motion module was trained on the plain image model and "
                            "works on a fine-tuned one as well. *sprite_swapped* and *sprite_pencil* come with the pack; "
                            "your own LoRAs go in the same place." + OWN_CLIP,))


def animatediff_own_checkpoint() -> Template:
    graph = video_graph("a corgi running on the beach, golden hour, film still", "animatediff")
    graph["world"] = node("CheckpointLoaderSimple", ckpt_name="v1-5-pruned-emaonly-fp16.safetensors")
    graph["module"]["inputs"]["motion_file"] = "mm_sd_v15_v2.ckpt"
    graph["negative"]["inputs"]["text"] = "blurry, low quality, watermark"
    graph["latent"]["inputs"] |= {"width": 512, "height": 512}
    graph["sampler"]["inputs"] |= {"steps": 25, "cfg": 7.5}
    return Template(graph, ("## AnimateDiff on your own SD1.5\nChoose your checkpoint in *Load Checkpoint* and a motion file "
                            "in *Load Motion Module*: AnimateDiff v1, v2, v3, AnimateLCM, PIA's motion part or a "
                            "diffusers MotionAdapter, from `models/animatediff_models`. The noise schedule follows from "
                            "the file.\n\nSDXL checkpoints take AnimateDiff-SDXL and HotshotXL files; a wrong pair is "
                            "refused with a sentence. AnimateLCM wants sampler *lcm*, scheduler *sgm_uniform*, 8 steps, "
                            "cfg 1.5.",))


def controlnet_frames() -> Template:
    graph = video_graph("a large rocket in the middle of a purple plain background, moving up", "control")
    graph |= drawn_edges("picture", "a large rocket on the left of a black plain background")
    controlled(graph, "picture edges", "0, 1", "1.0, 0.6")
    return Template(graph, ("## ControlNet on chosen frames\nA picture is drawn first; its edges guide the listed frames of "
                            "the clip, the motion module does the others. **frames** lists the frames (0 is the first, -1 "
                            "the last), **strengths** one number for all or one for each. Connect several hint images, one "
                            "for each listed frame, to guide the end as well.\n\nThe ControlNet must belong to the image "
                            "model: *sprite_edges* is for sprite world, an SD1.5 one for your own checkpoint.",))


def long_clip_context_windows() -> Template:
    graph = video_graph("a large octopus in the middle of a white plain background, circling", "long", frames=40,
                        model="windows")
    graph["windows"] = node("ContextWindowsManual", model=["motion", 0], context_length=16, context_overlap=4,
                            context_schedule="standard_static", context_stride=1, closed_loop=False,
                            fuse_method="pyramid", dim=0)
    return Template(graph, ("## A long clip\nA motion module can do so many frames at once (this one 32, AnimateDiff v1 24). "
                            "*Context Windows (Manual)*, a node of ComfyUI itself, samples 40 frames in windows of 16 that "
                            "overlap by 4. **dim** must be 0: frames are the batch." + OWN_CLIP,))


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
    }
    return Template(graph, ("## Train a motion module\nThe image model stays frozen; only the temporal layers learn. Here: 256 "
                            "clips of sprite world, a few minutes on a CPU, enough to see the loss fall. **Cancel** whenever "
                            "you like: queue again and the training goes on where it was.\n\n### Your own clips\nSet "
                            "**source** to *folder*, **max_clips** to 0 (all) and the size to 256x256, and name a folder "
                            "with videos and captions (`clip.mp4` + `clip.txt`). Exchange *Load Sprite World* for *Load "
                            "Checkpoint* and start from an AnimateDiff file: connect *Load Motion Module* to "
                            "**motion_module**. In *Train Motion Module*: **beta_schedule** *auto*, **learning_rate** 1e-4 "
                            "(the file's layers learn at a tenth of it), **gradient_checkpointing** on, **steps** 500 or "
                            "more, a **checkpoint** name and a **sample_prompt** of your own.\n\nUse clips without watermarks: "
                            "temporal layers learn them, although the image model is frozen.",))
