"""The templates of HARIVO and of smoother clips, see the list in __init__.py."""
from __future__ import annotations

from .parts import (
    CAPTIONS,
    HARIVO,
    OWN_CLIP,
    PROMPT_CHANGE,
    Template,
    controlled,
    drawn_edges,
    node,
    video_graph,
)
from .video import animatediff_own_checkpoint, train_motion_module


def mitigating(model: str, alpha: float) -> dict:
    return node("FrozenMitigatingGradient", model=[model, 0], alpha=alpha, mode="fast", order=1, start_percent=0.0,
                end_percent=1.0, frames_per_clip=0, locked_frames="")


def harivo_text_to_video() -> Template:
    graph = video_graph("a large rocket in the middle of a black plain background, moving up", "harivo", model="mitigating",
                        motion_file=HARIVO)
    graph["mitigating"] = mitigating("motion", 40.0)
    return Template(
        graph, "makes a video by HARIVO: a motion module with a mapping network for the noise, frame tokens and a "
        "convolution along time, smoothed while it is sampled by *Mitigating Gradient*.",
        PROMPT_CHANGE + " **alpha** of *Mitigating Gradient* smooths; 40 is the paper's value.", "about half a minute",
        [[{}, {"1 Model": ["world", "module", "motion"], "2 Smoothing": ["mitigating"]},
          {"3 Prompt": ["positive", "negative", "latent"], "4 Sampling": ["sampler", "decode"]},
          {"5 Result": ["sheet", "video", "save"]}]],
        "positive", "save",
        ("*Apply Motion Module* shows a switch for the mapping network and one for the frame tokens.\n\n- The weights are a "
         "reconstruction, trained by this pack; the paper's own were never released.\n- For your own: template "
         "*15_train_harivo*.\n- Steadier still: first noise of which the frames share a part. Exchange *KSampler* for "
         "*SamplerCustomAdvanced* with *Clip Noise*, as template *12_animatediff_smooth* does; for sprite world its kind "
         "*pyoco mixed* with **alpha** 2, if nothing has to circle." + OWN_CLIP + " An AnimateDiff file has none of "
         "HARIVO's parts; *Mitigating Gradient* works on it all the same, with **alpha** 20 at 512 px.",
         "### Captions" + CAPTIONS))


def mitigating_gradient() -> Template:
    graph = video_graph("a large panda in the middle of a red dotted background, bouncing", "alpha", model="mitigating")
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
              "comparison": node("PreviewImage", images=["three", 0]),
              **{f"{report} figures": node("PreviewAny", source=[report, 1])
                 for report in ("sheet", "alpha 40 report", "alpha 150 report")}}
    rows = {"3 Without smoothing": ["mitigating", "sampler", "decode", "sheet", "sheet figures"]} | {
        f"{number} Alpha {title}": [f"alpha {alpha} {part}" for part in ("guidance", "sampler", "decode", "report",
                                                                         "report figures")]
        for number, alpha, title in ((4, 40, "40, the paper's"), (5, 150, "150, too much"))}
    return Template(
        graph, "makes one clip three times, with *Mitigating Gradient* at alpha 0, 40 and 150, and measures flicker and "
        "motion of each.", "the green *Prompt*; **alpha** of the three *Mitigating Gradient*. Then press **Run**.",
        "about a minute",
        [[{}, {"2 Prompt": ["positive", "negative", "latent"]},
          {"6 Result: 0, 40 and 150 from top to bottom": ["two", "three", "comparison", "video", "save"]}],
         [{"1 Model": ["world", "module", "motion"]}, rows]],
        "positive", "comparison",
        ("*Clip Report* shows what each alpha does. The saved video is that of alpha 40; the clip at 150 has lost texture."
         + OWN_CLIP + " At 512 px, 20 is a good first value.",),
        {"mitigating": "Mitigating Gradient: 0", "alpha 40 guidance": "Mitigating Gradient: 40",
         "alpha 150 guidance": "Mitigating Gradient: 150", "sampler": "KSampler: alpha 0", "decode": "VAE Decode: alpha 0",
         "sheet": "Clip Report: alpha 0", "two": "Image Stitch: 0 and 40", "three": "Image Stitch: all three",
         "sheet figures": "Report: alpha 0", "save": "Save Video: alpha 40"},
        thumbnail=[("smoothed, alpha 40", "save 0", "save 4"), ("", "alpha 40 report")])


def animatediff_smooth() -> Template:
    own = animatediff_own_checkpoint()
    graph = own.graph
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
    return Template(
        graph, "makes a steadier video with your own SD1.5 checkpoint and AnimateDiff file, in three ways at once: "
        "*Mitigating Gradient*, *Clip Noise*, *FreeInit Sampler*.",
        "the files, the green *Prompt*, **alpha** and **iterations**. Then press **Run**.", own.lasts,
        [[{}, {"1 Model": ["world", "module", "module report", "motion"], "2 Smoothing": ["mitigating"]},
          {"3 Prompt": ["positive", "negative", "latent"]}, {"5 Result": ["sheet", "video", "save"]}],
         [{"4 Sampling": ["noise", "choice", "freeinit", "guider", "sigmas", "sampler", "decode"]}]],
        "positive", "save",
        ("No HARIVO weights are needed. *Mitigating Gradient*: **alpha** 20 suits 512 px. *Clip Noise*: the frames share a "
         "part (PYoCo); **alpha** 0.5 is careful. *FreeInit Sampler*: set **iterations** to 3; it takes three times as "
         "long.\n\n" + own.notes[0],), models=own.models, sprite_prompts=own.sprite_prompts,
        thumbnail=[("steadier, with your own files", *own.thumbnail[0][1:]), own.thumbnail[1]])


def harivo_controlnet() -> Template:
    graph = video_graph("a large rocket in the middle of a purple plain background, moving right", "harivo_control",
                        motion_file=HARIVO)
    graph |= drawn_edges("first", "a large rocket on the left of a black plain background")
    graph |= drawn_edges("last", "a large rocket on the right of a black plain background")
    graph["hints"] = node("ImageBatch", image1=["first edges", 0], image2=["last edges", 0])
    controlled(graph, "hints", "0, -1", "1.0")
    return Template(
        graph, "makes a video between two pictures: their edges say where the clip begins and ends, HARIVO's motion module "
        "does the way between.", "the green prompts. Then press **Run**.", "about a minute",
        [[{}, {"4 Prompt": ["positive", "negative", "latent"]},
          {"5 Control": ["controlnet", "control"], "6 Sampling": ["sampler", "decode"]},
          {"7 Result": ["sheet", "video", "save"]}],
         [{"1 Model": ["world", "module", "motion"]},
          {"2 First picture": ["first prompt", "first size", "first", "first decode", "first edges"],
           "3 Last picture": ["last prompt", "last size", "last", "last decode", "last edges", "hints", "show edges"]}]],
        "positive", "save",
        ("The ControlNet sees the latents as they are and the plain prompt: HARIVO's mapping network and frame tokens are "
         "for the U-Net alone.",),
        thumbnail=[("edges of the first and last frame", "show edges 0", "show edges 1"), ("", "save 0", "save 15")])


def train_harivo() -> Template:
    plain = train_motion_module()
    graph = plain.graph
    graph["clips"]["inputs"] |= {"max_clips": 128}
    graph["train"]["inputs"] |= {"steps": 150, "temporal_convolution": True, "mapping_width": 32, "frame_tokens": 4,
                                 "trs": 30.0, "trs_from": 100, "dc": 0.01, "checkpoint": "harivo_example"}
    graph["save"]["inputs"]["filename_prefix"] = "motion_modules/harivo_example"
    return Template(
        graph, "trains HARIVO: everything of the motion training, plus the mapping network, frame tokens and the two "
        "smoothness losses.", plain.change, "about ten minutes", plain.stages, plain.main, plain.result,
        ("Each part is a switch of *Train Motion Module*. How much a loss is felt the line under that node shows: **trs** "
         "of this small model needs 30.\n\n### Your own clips\nSet **source** to *folder*, **max_clips** to 0 (all), "
         "**frames** to 24 and the size to 256x256, exchange *Load Sprite World* for *Load Checkpoint*, and start from an "
         "AnimateDiff file: connect *Load Motion Module* to **motion_module**. In *Train Motion Module*: **steps** 5000 "
         "or more, **learning_rate** 1e-4 (the file's layers learn at a tenth of it), **batch_size** 2 with "
         "**accumulate** 4, **gradient_checkpointing** on, **mapping_width** 128, **trs** 0.05, **trs_from** 500, "
         "**beta_schedule** *auto*, a **checkpoint** name and a **sample_prompt** of your own. **dc** compares the clips "
         "of a batch, so **batch_size** must be 2 or more. We have not trained at that size.\n\nUse clips without "
         "watermarks. If yours have one: train a spatial LoRA on single frames first, so that it carries the watermark, "
         "merge it while training, and leave it out when you sample.",), thumbnail=plain.thumbnail)
