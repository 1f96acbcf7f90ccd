"""The templates of guide models, see the list in __init__.py."""
from __future__ import annotations

from .parts import CAPTIONS, Template, image_graph, node, text_of, video_graph

PROMPT = "a large fox in the middle of a blue dotted background"
GUIDED = {"guided": "Apply Guide Model"}        # its name with the words that a search finds is wider than a node
SHIPPED = "frozen-diffusion/sprite_guide.safetensors"
OWN = ("\n\n**With your own SD1.5 checkpoint:** there is no guide for it in the pack; train one with *Train Guide "
       "Model* (template *28_train_guide_model*), from your checkpoint and a list of prompts.")


def guided(model: str, key: str = "guided", guide: str = "guide") -> dict:
    """A guide on the MODEL of node `model`."""
    return {key: node("FrozenApplyGuideModel", model=[model, 0], guide_model=[guide, 0], guidance=0.0, strength=1.0,
                      start_percent=0.0, end_percent=1.0, schedule="constant", mode="one pass", scales="",
                      extrapolate=False, allow_distilled=False)}


def sampled(graph: dict, name: str, model: str, cfg: float) -> None:
    """Another sampling of the graph's prompt, and its pictures."""
    graph[f"{name} sampler"] = {**graph["sampler"], "inputs": graph["sampler"]["inputs"] | {"model": [model, 0],
                                                                                        "cfg": cfg}}
    graph[f"{name} decode"] = node("VAEDecode", samples=[f"{name} sampler", 0], vae=["world", 2])


def guidance_in_one_pass() -> Template:
    graph = image_graph(PROMPT, frames=4, model="web", steps=8) | {
        "web": node("LoraLoaderModelOnly", model=["world", 0], lora_name="sprite_web.safetensors", strength_model=0.5),
        "guide": node("FrozenLoadGuideModel", guide_file=SHIPPED)} | guided("web")
    graph["sampler"]["inputs"]["cfg"] = 1.0
    sampled(graph, "guided", "guided", 5.0)
    sampled(graph, "real", "web", 5.0)
    graph |= {
        "plain sheet": node("FrozenFrameSheet", frames=["decode", 0], columns=4, every=1),
        "guided sheet": node("FrozenFrameSheet", frames=["guided decode", 0], columns=4, every=1),
        "real sheet": node("FrozenFrameSheet", frames=["real decode", 0], columns=4, every=1),
        "two": node("ImageStitch", image1=["plain sheet", 0], image2=["guided sheet", 0], direction="down",
                    match_image_size=True, spacing_width=8, spacing_color="white"),
        "all": node("ImageStitch", image1=["two", 0], image2=["real sheet", 0], direction="down", match_image_size=True,
                    spacing_width=8, spacing_color="white"),
        "save": node("SaveImage", images=["all", 0], filename_prefix="frozen_diffusion/guide")}
    return Template(
        graph, "draws the same noise without guidance (top), with a guide model in one pass (middle) and with real CFG in "
        "two (bottom).", "the green *Prompt*, and **cfg** in both guided samplers. Then press **Run**.",
        "half a minute",
        [[{}, {"1 Model": ["world", "web"], "2 Guide": ["guide", "guided"]},
          {"3 Prompt": ["positive", "negative", "latent"]}, {"6 Result": ["save"]}],
         [{"4 Sampling": ["sampler", "guided sampler", "real sampler"]},
          {"5 Pictures": ["decode", "guided decode", "real decode", "plain sheet", "guided sheet", "real sheet", "two",
                          "all"]}]],
        "positive", "save",
        ("*sprite_web* makes sprite world follow prompts badly, as a model of badly captioned pictures does: there one "
         "sees what guidance is for. The guide was never trained on it." + OWN, "### Captions" + CAPTIONS),
        {"sampler": "KSampler: no guidance", "guided sampler": "KSampler: guide, 1 pass",
         "real sampler": "KSampler: real CFG, 2 passes", "web": "Load LoRA (badly captioned)"} | GUIDED,
        thumbnail=[("no guidance, one pass, real CFG", "save")])


def guide_report() -> Template:
    graph = image_graph(PROMPT, model="guided", steps=8)
    for key in ("sampler", "decode"):
        graph.pop(key)
    graph |= {"guide": node("FrozenLoadGuideModel", guide_file=SHIPPED)} | guided("lora") | {
        "lora": node("LoraLoaderModelOnly", model=["world", 0], lora_name="sprite_swapped.safetensors",
                     strength_model=1.0),
        "noise": node("RandomNoise", noise_seed=7), "euler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=["guided", 0], scheduler="normal", steps=8, denoise=1.0),
        "guider": node("CFGGuider", model=["guided", 0], positive=["positive", 0], negative=["negative", 0], cfg=5.0),
        "report": node("FrozenGuideReport", noise=["noise", 0], guider=["guider", 0], sampler=["euler", 0],
                       sigmas=["sigmas", 0], latent_image=["latent", 0]),
        "decode": node("VAEDecode", samples=["report", 0], vae=["world", 2]),
        "plot": node("PreviewImage", images=["report", 2]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="frozen_diffusion/guide_lora")}
    graph |= text_of("report", 1)
    return Template(
        graph, "uses the guide on a style LoRA that it was never trained on, and tells what it saves.",
        "the file in *Load LoRA*, the *Prompt*. Then press **Run**.", "a few seconds",
        [[{}, {"1 Model": ["world", "lora"], "2 Guide": ["guide", "guided"]},
          {"3 Prompt": ["positive", "negative", "latent"], "4 Sampling": ["noise", "euler", "sigmas", "guider", "report"]},
          {"5 Result": ["decode", "save", "plot", "report report"]}]],
        "lora", "save", ("The report compares the time of a step with that of real CFG, measured in the same "
                         "run." + OWN,),
        {"lora": "Load LoRA"} | GUIDED, thumbnail=[("on a style LoRA", "save"), ("what the guide adds", "plot")])


def eight_steps() -> Template:
    graph = image_graph("a large rocket in the middle of a purple plain background", frames=4, model="guided", steps=8)
    for key in ("sampler", "decode"):
        graph.pop(key)
    graph |= {"guide": node("FrozenLoadGuideModel", guide_file=SHIPPED.replace("guide.", "guide_8."))} | guided("world") | {
        "noise": node("RandomNoise", noise_seed=7), "euler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("FrozenStage2Sigmas", guide_model=["guide", 0]),
        "guider": node("CFGGuider", model=["guided", 0], positive=["positive", 0], negative=["negative", 0], cfg=5.0),
        "sampler": node("SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], sampler=["euler", 0],
                        sigmas=["sigmas", 0], latent_image=["latent", 0]),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["world", 2]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="frozen_diffusion/eight_steps")}
    return Template(
        graph, "samples in eight steps of one pass with a guide of stage 2, which learned to make one step where its "
        "teacher makes two.", "the green *Prompt*. Then press **Run**.", "a few seconds",
        [[{}, {"1 Model": ["world"], "2 Guide": ["guide", "guided"]},
          {"3 Prompt": ["positive", "negative", "latent"],
           "4 Sampling": ["noise", "euler", "sigmas", "guider", "sampler", "decode"]}, {"5 Result": ["save"]}]],
        "positive", "save",
        ("A guide of stage 2 is for its own noise levels: *Stage-2 Sigmas* and sampler euler. For other numbers of "
         "steps take one of stage 1." + OWN, "### Captions" + CAPTIONS), GUIDED,
        thumbnail=[("", "save 0", "save 1"), ("", "save 2", "save 3")])


def negative_in_one_pass() -> Template:
    graph = image_graph("a large fox in the middle", frames=4, model="guided", steps=8) | {
        "guide": node("FrozenLoadGuideModel", guide_file=SHIPPED.replace("guide.", "guide_negative."))} | guided("world")
    graph["sampler"]["inputs"]["cfg"] = 5.0
    graph["negative"]["inputs"]["text"] = "a striped background"
    graph["empty"] = node("CLIPTextEncode", clip=["world", 1], text="")
    sampled(graph, "empty", "guided", 5.0)
    graph["empty sampler"]["inputs"]["negative"] = ["empty", 0]
    graph |= {
        "sheet": node("FrozenFrameSheet", frames=["decode", 0], columns=4, every=1),
        "empty sheet": node("FrozenFrameSheet", frames=["empty decode", 0], columns=4, every=1),
        "all": node("ImageStitch", image1=["empty sheet", 0], image2=["sheet", 0], direction="down",
                    match_image_size=True, spacing_width=8, spacing_color="white"),
        "save": node("SaveImage", images=["all", 0], filename_prefix="frozen_diffusion/negative")}
    return Template(
        graph, "keeps away from a negative prompt in one pass a step, with a guide that reads it. Above: the same noise "
        "with an empty negative prompt.", "the red *Negative* prompt. Then press **Run**.", "a few seconds",
        [[{}, {"1 Model": ["world"], "2 Guide": ["guide", "guided"]},
          {"3 Prompt": ["positive", "negative", "empty", "latent"]}, {"6 Result": ["save"]}],
         [{"4 Sampling": ["sampler", "empty sampler"]},
          {"5 Pictures": ["decode", "empty decode", "sheet", "empty sheet", "all"]}]],
        "negative", "save",
        ("The prompt says nothing of the background, so the negative one can. Other guides do not read it, and "
         "say so in the log. To train one: *Train Guide Model* with some **negatives**." + OWN,
         "### Captions" + CAPTIONS),
        {"sampler": "KSampler: negative prompt", "empty sampler": "KSampler: none"} | GUIDED,
        thumbnail=[("no negative prompt, and one", "save")])


def guide_with_motion() -> Template:
    graph = video_graph("a large mushroom in the middle of a green plain background, bouncing", "guided_video",
                        model="guided") | {
        "guide": node("FrozenLoadGuideModel", guide_file=SHIPPED)} | guided("motion")
    return Template(
        graph, "makes a video at half the cost: a motion module and a guide model on one image model.",
        "the green *Prompt*. Then press **Run**.", "half a minute",
        [[{}, {"1 Model": ["world", "module", "motion"], "2 Guide": ["guide", "guided"]},
          {"3 Prompt": ["positive", "negative", "latent"], "4 Sampling": ["sampler", "decode"]},
          {"5 Result": ["sheet", "video", "save"]}]],
        "positive", "save", ("Every frame is guided by itself, which may add flicker; *Mitigating Gradient* lessens "
                             "it." + OWN,
                             "### Captions" + CAPTIONS), GUIDED)


def train_guide_model() -> Template:
    prompts = "\n".join(f"a {size} {sprite} in the middle of a {colour} {texture} background"
                        for sprite, size, colour, texture in zip(
                            ("dog", "cat", "car", "fox", "fish", "star", "house", "tree") * 5,
                            ("large", "small") * 20, ("blue", "red", "green", "yellow", "white") * 8,
                            ("plain", "dotted", "striped") * 14, strict=False))
    graph = {
        "world": node("FrozenLoadSpriteWorld"),
        "options": node("FrozenTrainingOptions", schedule="cosine", warmup=10, optimizer="adamw", weight_decay=0.01,
                        grad_clip=1.0, accumulate=1, ema=0.98, precision="fp32", gradient_checkpointing=False,
                        checkpoint_every=100),
        "train": node("FrozenTrainGuideModel", model=["world", 0], vae=["world", 2], clip=["world", 1], prompts=prompts,
                      negatives="", pictures="", kind="tiny", fed=True, steps=120, learning_rate=4e-3, batch_size=8,
                      g_min=1.0, g_max=9.0, trajectories=24, trajectory_steps=8, weighting="by scale", width=128,
                      height=128, student_steps=0, sample_every=60,
                      checkpoint="sprite_guide_example", resume=True, seed=0, options=["options", 0]),
        "losses": node("LossGraphNode", loss=["train", 1], filename_prefix="frozen_diffusion_loss"),
        "sheet": node("PreviewImage", images=["train", 2]), "plot": node("PreviewImage", images=["train", 3]),
        "save": node("FrozenSaveGuideModel", guide_model=["train", 0], filename_prefix="guide_models/sprite_example"),
    } | text_of("save", 0)
    return Template(
        graph, "trains a guide model for a checkpoint from prompts alone. Here 40 captions of sprite world and 120 "
        "steps, enough to see the guide move from the upper row to the lower.",
        "*Load Sprite World* for your own *Load Checkpoint*, the **prompts**, the size. Then press **Run**.",
        "five minutes",
        [[{}, {"1 Model": ["world", "options"]}, {"2 Training": ["train"]},
          {"3 Result": ["sheet", "plot", "losses", "save", "save report"]}]], "train", "sheet",
        ("Rows of the sheet: without guidance, with the guide, with real CFG. For SD1.5: some hundred prompts of what "
         "you draw, 512x512, **learning_rate** 1e-4, **steps** 5000 and more, **trajectories** 1000 and more, "
         "*Training Options* with **precision** bf16. **Cancel** whenever you like: queue again and it goes on where "
         "it was.",),
        {"sheet": "Preview Image: sample", "plot": "Preview Image: how close it is"},
        thumbnail=[("without, guide, real CFG", "sheet"), ("", "plot")])
