"""The templates of HARIVO and of smoother clips, see the list in __init__.py."""
from __future__ import annotations

from .parts import CAPTIONS, HARIVO, OWN_CLIP, Template, controlled, drawn_edges, node, video_graph
from .video import animatediff_own_checkpoint, train_motion_module


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
                            "*15_train_harivo*.\n- Steadier still: first noise of which the frames share a part. Exchange "
                            "*KSampler* for *SamplerCustomAdvanced* with *Clip Noise*, as template *12_animatediff_smooth* "
                            "does; for sprite world its kind *pyoco mixed* with **alpha** 2, if nothing has to circle."
                            + OWN_CLIP + " An AnimateDiff file has none of HARIVO's parts; *Mitigating Gradient* works "
                            "on it all the same, with **alpha** 20 at 512 px.", "### Captions" + CAPTIONS))


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
