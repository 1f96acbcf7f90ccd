"""The templates of h-space content injection, see the list in __init__.py."""
from __future__ import annotations

from .parts import OWN_MODEL, Template, drawn, node, text_of, video_graph

CONTENT, CONTENT_SEED = "a large fox in the middle of a white plain background", 5
STYLE, STYLE_SEED = "a small balloon in the middle of a purple striped background", 16
KEPT = "a purple striped background"       # of the style
OWN_PICTURES = ("\n\n**With your own pictures:** replace the *KSampler* that draws each by *Load Image* and *VAE "
                "Encode*, all of one size, and *Load Sprite World* by *Load Checkpoint*. A prompt that goes into "
                "*Invert (DDIM)* describes the picture there.")
OWN_VALUES = ("\n\nThe values here are sprite world's, whose middle block has 2x2 cells. On SD1.5 begin with the "
              "presets and gamma_skips 0, then raise **gamma** towards 0.6 or **gamma_skips** from 0.3; *Calibrate "
              "t_edit* finds **t_edit** for your checkpoint.")
EDIT_STEPS, DEEP = 50, 9


def picture(name: str, prompt: str, seed: int) -> dict:
    """A picture from a prompt as a LATENT, `name`, and shown."""
    return drawn(name, prompt, seed, "empty") | {
        f"{name} shown": node("PreviewImage", images=[f"{name} decode", 0])}


def inverted(name: str, deep_skips: int = 0, text: str = "") -> dict:
    """The inversion of picture `name` with the prompt of the node `text`, else its own."""
    return {f"{name} inverted": node("FrozenInvertDDIM", model=["world", 0], positive=[text or f"{name} prompt", 0],
                                     latent=[name, 0], steps=EDIT_STEPS, refinements=0, deep_skips=deep_skips,
                                     check=True, vae=["world", 2])} | text_of(f"{name} inverted", 4)


def stage_of(name: str, *more: str) -> list[str]:
    """The nodes that draw picture `name`, show it and invert it with a report."""
    return [f"{name} prompt", f"{name} size", name, f"{name} decode", f"{name} shown", f"{name} inverted",
            f"{name} inverted report", *more]


def world() -> dict:
    return {"world": node("FrozenLoadSpriteWorld"), "empty": node("CLIPTextEncode", clip=["world", 1], text="")}


def injection(trace: str, **changes) -> dict:
    settings = {"preset": "custom", "gamma": "1.0", "t_edit": 200.0, "t_boost": 200.0, "omega": 0.0,
                "mode": "asymmetric", "apply_to": "both", "norm_mode": "masked", "check": "model", "gamma_skips": 1.0,
                "dt_lambda": 1.0, "replace_steps": 50, "auto_gamma": False, "shared_encoder": True, "lead": 200.0}
    place = 0 if trace.startswith(("loaded", "both", "contents")) else 1
    return node("FrozenHSpaceInjectionSampler", trace=[trace, place], **(settings | changes))


def sampled(latent: list, sigmas: list, sampler: list, text: str = "empty") -> dict:
    return node("SamplerCustom", model=["world", 0], add_noise=False, noise_seed=0, cfg=1.0, positive=[text, 0],
                negative=["empty", 0], sampler=sampler, sigmas=sigmas, latent_image=latent)


def saved(samples: list, name: str) -> dict:
    return {"decode": node("VAEDecode", samples=samples, vae=["world", 2]),
            "save": node("SaveImage", images=["decode", 0], filename_prefix=f"frozen_diffusion/{name}")}


def h_space_content_and_style() -> Template:
    graph = world() | picture("content", CONTENT, CONTENT_SEED) | picture("style", STYLE, STYLE_SEED)
    graph |= {"kept": node("CLIPTextEncode", clip=["world", 1], text=KEPT)}
    graph |= inverted("content", DEEP) | inverted("style")
    graph |= {
        "injection": injection("content inverted"),
        "noise": node("DisableNoise"),
        "guider": node("BasicGuider", model=["world", 0], conditioning=["kept", 0]),
        "result": node("FrozenRecordHSpace", noise=["noise", 0], guider=["guider", 0], sampler=["injection", 0],
                       sigmas=["style inverted", 2], latent_image=["style inverted", 0], deep_skips=0),
        "what it did": node("PreviewImage", images=["result", 2])}
    graph |= saved(["result", 0], "content_and_style")
    return Template(
        graph, "draws what one picture shows in the style of another. Shape, size and place come from *content*; "
        "background and colours from *style*. No training.",
        "the green prompts; **gamma** and **gamma_skips** of the sampler: how much content. Then press **Run**.",
        "about half a minute",
        [[{"1 Model": ["world"]}, {"2 Content": stage_of("content", "empty")}, {"5 Result": ["save"]}],
         [{"3 Style": stage_of("style")},
          {"4 Content into style": ["kept", "injection", "noise", "guider", "result", "what it did", "decode"]}]],
        "content prompt", "save",
        ("Both pictures are inverted to noise. Sampling from the noise of *style*, the bottleneck features of *content* are "
         "blended in.\n\n- The paper blends the bottleneck alone (gamma_skips 0, gamma 0.3), which is enough for pixel "
         "models; latent models keep much content in the deep skips.\n- **lead**: the content's features from further on "
         "in the sampling, where less noise is in them.\n- The prompts: each picture is inverted with words for all of "
         "it; sampling gets what is to stay (here the background) and nothing that the content replaces. With empty "
         "prompts less of both comes through.\n- Watch the reports of *Invert (DDIM)*: below 30 dB the inversion is the "
         "problem, not the injection.\n- Keep cfg at 1." + OWN_PICTURES + OWN_VALUES,),
        {"kept": "Prompt: what stays", "result": "Record h-Space: sampling", "decode": "VAE Decode: result",
         "what it did": "Preview: what it did"},
        thumbnail=[("content and style", "content shown", "style shown"), ("", "save")])


def h_space_masked() -> Template:
    graph = world() | picture("content", "a small fox on the right of a white plain background", CONTENT_SEED)
    graph |= picture("style", "a small moon in the middle of a purple striped background", STYLE_SEED)
    graph |= picture("second", "a small watermelon on the left of a white plain background", CONTENT_SEED)
    graph |= inverted("content", DEEP) | inverted("second", DEEP) | inverted("style")
    graph |= {
        "kept": node("CLIPTextEncode", clip=["world", 1], text=KEPT),
        "size": node("SolidMask", value=0.0, width=128, height=128),
        "half": node("SolidMask", value=1.0, width=64, height=128),
        "right side": node("MaskComposite", destination=["size", 0], source=["half", 0], x=64, y=0, operation="add"),
        "left side": node("InvertMask", mask=["right side", 0]),
        "masked": node("FrozenMaskHSpace", trace=["content inverted", 1], mask=["right side", 0], threshold=0.5,
                       strength=1.0),
        "masked second": node("FrozenMaskHSpace", trace=["second inverted", 1], mask=["left side", 0], threshold=0.5,
                              strength=1.0),
        "both": node("FrozenMergeHSpace", trace_a=["masked", 0], trace_b=["masked second", 0], mode="beside",
                     weight=0.5),
        "keep": node("FrozenSaveHTrace", trace=["both", 0], filename_prefix="h_traces/two_contents"),
        "loaded": node("FrozenLoadHTrace", file=["keep", 0]),
        "calibrated": node("FrozenCalibrateTimesteps", model=["world", 0], positive=["empty", 0], vae=["world", 2],
                           latent=["style", 0], steps=20, distance="ssim"),
        "calibration": node("PreviewImage", images=["calibrated", 2]),
        **text_of("calibrated", 3), **text_of("keep", 0),
        "injection": injection("loaded"),
        "result": sampled(["style inverted", 0], ["style inverted", 2], ["injection", 0], "kept")}
    graph |= saved(["result", 0], "masked_injection")
    return Template(
        graph, "puts two contents into one picture: the fox acts on the right half, the watermelon on the left.",
        "the green prompts; the masks; **gamma** of the sampler. Then press **Run**.", "about half a minute",
        [[{"1 Model": ["world"]}, {"2 Content": stage_of("content", "empty")}, {"8 Result": ["save"]}],
         [{"3 Second content": stage_of("second"), "4 Style": stage_of("style")},
         {"5 Regions": ["size", "half", "right side", "left side", "masked", "masked second", "both", "keep", "loaded",
                        "keep report"],
          "6 When content is decided": ["calibrated", "calibration", "calibrated report"],
          "7 Contents into style": ["kept", "injection", "result", "decode"]}]],
        "content prompt", "save",
        ("Each trace gets its own mask. *Save h-Trace* keeps both in a file, with the identity of the model; *Load "
         "h-Trace* refuses it on another one.\n\n*Calibrate t_edit* shows down to which timestep this model still decides "
         "content, from pictures of yours; connect it to **t_edit** to use what it finds." + OWN_PICTURES + OWN_VALUES
         + " The masks get the pictures' size.",),
        {"kept": "Prompt: what stays", "size": "SolidMask: black", "half": "SolidMask: white half",
         "right side": "Mask: right side", "left side": "Mask: left side", "decode": "VAE Decode: result",
         "masked": "Mask h-Trace: content", "masked second": "Mask h-Trace: second", "calibration": "Preview: t_edit",
         "calibrated report": "Report: t_edit", "keep report": "Report: saved file"},
        thumbnail=[("two contents and a style", "second shown", "content shown", "style shown"), ("", "save")])


def h_space_clip() -> Template:
    graph = video_graph("a blue striped background, moving left", "content_in_clip")
    del graph["sampler"]
    graph |= {
        "content prompt": node("CLIPTextEncode", clip=["world", 1],
                               text="a large moon in the middle of a red plain background, moving left"),
        "euler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=["motion", 0], scheduler="normal", steps=20, denoise=1.0),
        "content noise": node("RandomNoise", noise_seed=21),
        "content guider": node("CFGGuider", model=["motion", 0], positive=["content prompt", 0],
                               negative=["negative", 0], cfg=5.0),
        "content": node("FrozenRecordHSpace", noise=["content noise", 0], guider=["content guider", 0],
                        sampler=["euler", 0], sigmas=["sigmas", 0], latent_image=["latent", 0], deep_skips=DEEP),
        "content decode": node("VAEDecode", samples=["content", 0], vae=["world", 2]),
        "content sheet": node("FrozenFrameSheet", frames=["content decode", 0], columns=4, every=1,
                              show="moving", fps=8.0),
        "content shown": node("PreviewImage", images=["content sheet", 0]),
        "injection": injection("content", gamma="0.8", gamma_skips=0.8, t_edit=600.0, t_boost=0.0),
        "noise": node("RandomNoise", noise_seed=7),
        "guider": node("CFGGuider", model=["motion", 0], positive=["positive", 0], negative=["negative", 0], cfg=3.0),
        "sampler": node("SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], sampler=["injection", 0],
                        sigmas=["sigmas", 0], latent_image=["latent", 0])}
    return Template(
        graph, "gives one video the shape, place and motion of another: the moon's clip goes into the striped background's.",
        "the two green prompts; **gamma** of the sampler: how much content. Then press **Run**.",
        "about a minute",
        [[{}, {"1 Model": ["world", "module", "motion"]}, {"2 Prompts": ["content prompt", "positive", "negative"]},
          {"5 Result": ["sheet", "video", "save"]}],
         [{"3 Content": ["latent", "sigmas", "euler", "content noise", "content guider", "content", "content decode",
                         "content sheet", "content shown"]},
          {"4 Content into another clip": ["noise", "injection", "guider", "sampler", "decode"]}]],
        "content prompt", "save",
        ("*Record h-Space* samples a clip and keeps the bottleneck features of its frames; another clip, whose prompt names "
         "its background only, is sampled with them. A single picture works too (an empty latent of one, and *Load Sprite "
         "World* in place of the motion module): its features go into every frame. With the host's context windows each "
         "window gets the features of its own frames." + OWN_MODEL + OWN_VALUES,),
        {"positive": "Prompt: the other clip", "decode": "VAE Decode: result", "sheet": "Frame Sheet: result",
         "noise": "RandomNoise: result", "guider": "CFGGuider: result"},
        thumbnail=[("shape and motion into another clip", "content shown", "sheet"), ("", "save 0", "save 15")])


def h_space_grid() -> Template:
    graph = world() | picture("content", CONTENT, CONTENT_SEED) | picture("style", STYLE, STYLE_SEED)
    graph |= picture("second content", "a large watermelon in the middle of a white plain background", CONTENT_SEED)
    graph |= picture("second style", "a small moon in the middle of a blue striped background", STYLE_SEED)
    graph |= inverted("content", DEEP) | inverted("second content", DEEP)
    graph |= {
        "contents": node("FrozenMergeHSpace", trace_a=["content inverted", 1], trace_b=["second content inverted", 1],
                         mode="batch", weight=0.5),
        "content images": node("ImageBatch", image1=["content decode", 0], image2=["second content decode", 0]),
        "styles": node("LatentBatch", samples1=["style", 0], samples2=["second style", 0]),
        "style images": node("ImageBatch", image1=["style decode", 0], image2=["second style decode", 0]),
        "kept": node("CLIPTextEncode", clip=["world", 1], text="a striped background")}
    graph |= inverted("styles", text="kept")
    graph |= {
        "injection": injection("contents"),
        "noise": node("DisableNoise"),
        "guider": node("BasicGuider", model=["world", 0], conditioning=["kept", 0]),
        "grid": node("FrozenHSpaceGrid", noise=["noise", 0], guider=["guider", 0], sampler=["injection", 0],
                     sigmas=["styles inverted", 2], latent_image=["styles inverted", 0], vae=["world", 2],
                     content_images=["content images", 0], style_images=["style images", 0]),
        "save": node("SaveImage", images=["grid", 2], filename_prefix="frozen_diffusion/content_and_style_grid")}
    return Template(
        graph, "draws every content in every style: a row for each content, a column for each style.",
        "the green prompts; **gamma** of the sampler. Then press **Run**.", "about half a minute",
        [[{"1 Model": ["world"]},
          {"2 Contents": [*stage_of("content", "empty"), *stage_of("second content"), "contents", "content images"]},
          {"5 Result": ["save"]}],
         [{"3 Styles": [*(key for name in ("style", "second style")
                         for key in (f"{name} prompt", f"{name} size", name, f"{name} decode", f"{name} shown")),
                       "styles", "style images", "styles inverted", "styles inverted report"]},
          {"4 Every content into every style": ["kept", "noise", "injection", "guider", "grid"]}]],
        "content prompt", "save",
        ("*h-Space Grid* injects each content of a trace into each picture of a batch of latents. *Merge h-Traces* (batch) "
         "puts contents together that were inverted with prompts of their own, *Latent Batch* the styles; chain both nodes "
         "for more. The sampler's settings count for all of them." + OWN_PICTURES + OWN_VALUES,),
        {"kept": "Prompt: what stays", "content images": "Batch Images: contents", "style images": "Batch Images: styles",
         "second content inverted": "Invert (DDIM): second"},
        thumbnail=[("", "save")])


def h_space_any_sampler() -> Template:
    graph = world() | picture("content", "a large fox on the right of a white plain background", CONTENT_SEED)
    graph |= inverted("content", DEEP) | {
        "positive": node("CLIPTextEncode", clip=["world", 1],
                         text="a small mushroom in the middle of a purple striped background"),
        "latent": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "light": node("FrozenInjectHSpace", model=["world", 0], trace=["content inverted", 1], gamma="0.8",
                      t_edit=400.0, apply_to="both", norm_mode="masked", check="model", gamma_skips=0.8),
        "light sampler": node("KSampler", model=["light", 0], positive=["positive", 0], negative=["empty", 0],
                              latent_image=["latent", 0], seed=4, steps=20, cfg=5.0, sampler_name="dpmpp_2m",
                              scheduler="normal", denoise=1.0),
        "light decode": node("VAEDecode", samples=["light sampler", 0], vae=["world", 2]),
        "light shown": node("PreviewImage", images=["light decode", 0]),
        "calibration": node("FrozenLatentCalibration", edited_model=["light", 0], omega=0.3, start=1000.0, end=400.0),
        "noise": node("RandomNoise", noise_seed=4),
        "guider": node("CFGGuider", model=["world", 0], positive=["positive", 0], negative=["empty", 0], cfg=5.0),
        "sigmas": node("BasicScheduler", model=["world", 0], scheduler="normal", steps=20, denoise=1.0),
        "result": node("SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], sampler=["calibration", 0],
                       sigmas=["sigmas", 0], latent_image=["latent", 0])}
    graph |= saved(["result", 0], "any_sampler")
    return Template(
        graph, "takes content into a picture under any sampler, in two ways: as a patch of the MODEL, and by latent "
        "calibration, which keeps more of the original.",
        "the two green prompts; **gamma** of *Inject h-Space*; **omega**. Then press **Run**.",
        "about a quarter of a minute",
        [[{"1 Model": ["world"]}, {"2 Content": stage_of("content", "empty")}, {"5 Result": ["save"]}],
         [{"3 Any sampler": ["positive", "latent", "light", "light sampler", "light decode", "light shown"]},
          {"4 Latent calibration": ["noise", "guider", "sigmas", "calibration", "result", "decode"]}]],
        "content prompt", "save",
        ("*Inject h-Space* is a patch on the MODEL: it works with every sampler and with cfg, and is several times weaker "
         "than the *h-Space Injection Sampler*.\n\n*Latent Calibration Sampler* lets such a patch (or FreeU, or an "
         "attention edit) act by moving the latent instead: **omega** 0 is the full edit, 1 almost none."
         + OWN_PICTURES + " *Size: the picture* gets the same size." + OWN_VALUES,),
        {"positive": "Prompt: the picture", "latent": "Size: the picture", "light sampler": "KSampler: any sampler",
         "light decode": "VAE Decode: any sampler", "light shown": "Preview: any sampler",
         "decode": "VAE Decode: result"},
        thumbnail=[("content under any sampler", "content shown", "light shown"), ("", "save")])
