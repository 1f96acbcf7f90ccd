"""The templates of workflows/, written as compact Python; the JSON files are made from here.

    PYTHONPATH=tests python -m testhost.templates        writes them all through a running ComfyUI's node list
"""
from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from frozen_diffusion.modules.host.boot import PACK

from .edit_templates import EDIT_TEMPLATES
from .layout import ui_workflow, write_workflow
from .server import LINK, Server, free_port
from .template_parts import CAPTIONS, HARIVO, OWN_CLIP, Template, drawn, image_graph, node, video_graph


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


def drawn_edges(name: str, caption: str) -> dict:
    """A picture of the caption and its edges, for a ControlNet; the nodes are named after `name`."""
    return drawn(name, caption, 11, "negative") | {
        f"{name} edges": node("Canny", image=[f"{name} decode", 0], low_threshold=0.1, high_threshold=0.3)}


def controlled(graph: dict, hints: str, frames: str, strengths: str) -> None:
    """Let the pictures of node `hints` guide the listed frames of a video graph."""
    graph |= {
        "show edges": node("PreviewImage", images=[hints, 0]),
        "controlnet": node("ControlNetLoader", control_net_name="sprite_edges.safetensors"),
        "control": node("FrozenControlFrames", positive=["positive", 0], negative=["negative", 0],
                        control_net=["controlnet", 0], image=[hints, 0], latent=["latent", 0], frames=frames,
                        strengths=strengths, start_percent=0.0, end_percent=1.0)}
    graph["sampler"]["inputs"] |= {"positive": ["control", 0], "negative": ["control", 1]}


def mitigating(model: str, alpha: float) -> dict:
    return node("FrozenMitigatingGradient", model=[model, 0], alpha=alpha, mode="fast", order=1, start_percent=0.0,
                end_percent=1.0, frames_per_clip=0, locked_frames="")


def harivo_text_to_video() -> Template:
    graph = video_graph("a large dog in the middle of a blue striped background, moving left", "harivo", model="mitigating",
                        motion_file=HARIVO)
    graph["mitigating"] = mitigating("motion", 40.0)
    return Template(graph, ("## Text to video by HARIVO\nThe motion module of this file has HARIVO's parts: a mapping network "
                            "for the noise, words of its own for every frame, and a convolution along time. *Apply Motion "
                            "Module* shows a switch for the first two. *Mitigating Gradient* smooths the clip while it is "
                            "sampled; 40 is the paper's value.\n\n- The weights are a reconstruction, trained "
                            "by this pack; the paper's own were never released.\n- For your own: template "
                            "*train_harivo*.\n- Steadier still: first noise of which the frames share a part. Exchange "
                            "*KSampler* for *SamplerCustomAdvanced* with *Clip Noise*, as template *animatediff_smooth* "
                            "does; for sprite world its kind *pyoco mixed* with **alpha** 2, if nothing has to circle."
                            + OWN_CLIP + " An AnimateDiff file has none of HARIVO's parts; *Mitigating Gradient* works "
                            "on it all the same, with **alpha** 20 at 512 px.", "### Captions" + CAPTIONS))


def harivo_controlnet() -> Template:
    graph = video_graph("a large rocket in the middle of a purple plain background, moving right", "harivo_control",
                        motion_file=HARIVO)
    graph |= drawn_edges("first", "a large rocket on the left of a black plain background")
    graph |= drawn_edges("last", "a large rocket on the right of a black plain background")
    graph["hints"] = node("ImageBatch", image1=["first edges", 0], image2=["last edges", 0])
    controlled(graph, "hints", "0, -1", "1.0")
    return Template(graph, ("## HARIVO with a ControlNet on the first and the last frame\nTwo pictures are drawn; their edges "
                            "say where the clip begins and ends, the motion module does the way between. The ControlNet "
                            "sees the latents as they are and the plain prompt: HARIVO's mapping network and frame tokens "
                            "are for the U-Net alone.",))


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


def mitigating_gradient() -> Template:
    graph = video_graph("a large cat on the left of a green dotted background, bouncing", "alpha", model="mitigating")
    graph["mitigating"] = mitigating("motion", 0.0)
    graph["sheet"] = node("FrozenClipReport", frames=["decode", 0], fps=8.0, columns=16)
    graph["video"]["inputs"]["images"] = ["alpha 40 decode", 0]
    for alpha in (40.0, 150.0):
        name = f"alpha {alpha:.0f}"
        graph |= {
            f"{name} guidance": mitigating("motion", alpha),
            f"{name} sampler": {**graph["sampler"], "inputs": graph["sampler"]["inputs"] | {
                "model": [f"{name} guidance", 0]}},
            f"{name} decode": node("VAEDecode", samples=[f"{name} sampler", 0], vae=["world", 2]),
            f"{name} report": node("FrozenClipReport", frames=[f"{name} decode", 0], fps=8.0, columns=16)}

    def below(above: str, report: str) -> dict:
        return node("ImageStitch", image1=[above, 0], image2=[report, 0], direction="down", match_image_size=True,
                    spacing_width=16, spacing_color="white")

    graph |= {"two": below("sheet", "alpha 40 report"), "three": below("two", "alpha 150 report"),
              "comparison": node("PreviewImage", images=["three", 0])}
    return Template(graph, ("## One seed, three strengths of smoothing\nThe same prompt and noise with alpha 0, 40 and 150 of "
                            "*Mitigating Gradient*; *Clip Report* shows what each does to flicker and motion, and the sheet "
                            "at the end all three: 0, 40 and 150 from top to bottom. The saved video is that of alpha 40, "
                            "the paper's value; its clips at 150 have lost texture." + OWN_CLIP + " At 512 px, 20 is a good "
                            "first value.",))


def animatediff_smooth() -> Template:
    graph = animatediff_own_checkpoint().graph
    del graph["sampler"]
    graph |= {
        "mitigating": mitigating("motion", 20.0),
        "noise": node("FrozenClipNoise", noise_seed=7, kind="pyoco mixed", alpha=0.5, window=16, frames_per_clip=0),
        "guider": node("CFGGuider", model=["mitigating", 0], positive=["positive", 0], negative=["negative", 0], cfg=7.5),
        "choice": node("KSamplerSelect", sampler_name="euler"),
        "freeinit": node("FrozenFreeInit", sampler=["choice", 0], iterations=1, filter="butterworth", spatial_cutoff=0.25,
                         temporal_cutoff=0.25, frames_per_clip=0),
        "sigmas": node("BasicScheduler", model=["mitigating", 0], scheduler="normal", steps=25, denoise=1.0),
        "sampler": node("SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], sampler=["freeinit", 0],
                        sigmas=["sigmas", 0], latent_image=["latent", 0])}
    return Template(graph, ("## Steadier clips from an AnimateDiff file you own\nNo HARIVO weights are needed for these: "
                            "*Mitigating Gradient* (alpha 20 suits 512 px), *Clip Noise* whose frames share a part (PYoCo; "
                            "**alpha** 0.5 is careful), and *FreeInit Sampler* (set **iterations** to 3; it takes three "
                            "times as long).",))


def train_harivo() -> Template:
    graph = train_motion_module().graph
    graph["clips"]["inputs"] |= {"max_clips": 128}
    graph["train"]["inputs"] |= {"steps": 150, "temporal_convolution": True, "mapping_width": 32, "frame_tokens": 4,
                                 "trs": 30.0, "trs_from": 100, "dc": 0.01, "checkpoint": "harivo_example"}
    graph["save"]["inputs"]["filename_prefix"] = "motion_modules/harivo_example"
    return Template(graph, ("## Train HARIVO\nEverything of the motion training, plus the mapping network, frame tokens and the "
                            "two smoothness losses; each is a switch of *Train Motion Module*. How much a loss is felt the line "
                            "under that node shows: **trs** of this small model needs 30.\n\n### Your own clips\nSet **source** to "
                            "*folder*, **max_clips** to 0 (all), **frames** to 24 and the size to 256x256, exchange *Load "
                            "Sprite World* for *Load Checkpoint*, and start from an AnimateDiff file: connect *Load Motion "
                            "Module* to **motion_module**. In *Train Motion Module*: **steps** 5000 or more, "
                            "**learning_rate** 1e-4 (the file's layers learn at a tenth of it), **batch_size** 2 with "
                            "**accumulate** 4, **gradient_checkpointing** on, **mapping_width** 128, **trs** 0.05, "
                            "**trs_from** 500, **beta_schedule** *auto*, a **checkpoint** name and a **sample_prompt** of your "
                            "own. **dc** compares the clips of a batch, so **batch_size** must be 2 or more. We have not "
                            "trained at that size.\n\nUse clips without watermarks. If yours have one: train a spatial LoRA on single frames first, so that it "
                            "carries the watermark, merge it while training, and leave it out when you sample.",))


TEMPLATES = {template.__name__: template for template in (
    text_to_image, text_to_video, harivo_text_to_video, text_to_video_style_lora, controlnet_frames, harivo_controlnet,
    long_clip_context_windows, animatediff_own_checkpoint, train_motion_module,
    mitigating_gradient, animatediff_smooth, train_harivo,
    *EDIT_TEMPLATES)}


def write_all(folder: Path, object_info: Mapping) -> list[Path]:
    """Write every template into `folder`; returns the paths."""
    paths = []
    for name, make in TEMPLATES.items():
        template = make()
        workflow = ui_workflow(template.graph, object_info, notes=template.notes, titles=template.titles)
        write_workflow(folder / f"{name}.json", workflow)
        paths.append(folder / f"{name}.json")
    return paths


def main() -> None:
    with tempfile.TemporaryDirectory() as output, Server(LINK, Path(output), free_port()) as server:
        for path in write_all(PACK / "workflows", server.object_info()):
            print(path.relative_to(PACK))


if __name__ == "__main__":
    main()
