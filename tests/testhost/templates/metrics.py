"""The templates of attribute metrics, see the list in __init__.py."""
from __future__ import annotations

from .parts import HUB, Template, node, text_of, video_graph

COUNT = 64                  # pictures of a set: a minute or two on a CPU
BELIEFS = ("Scores are what the encoder believes, not truth: SaD tells drift as CLIP sees it. Guidance, which makes pictures "
           "*fit* their prompts better, can raise it, and on broken pictures the encoder judges poorly.")
B32 = {"name": "model.safetensors", "directory": "clip_vision",
       "url": f"{HUB}/openai/clip-vit-base-patch32/resolve/main/model.safetensors"}
REPORT = {"preset": "general", "method": "auto", "chance": True, "seed": 0}


def scenes(count: int = COUNT) -> dict:
    """Sprite world, its CLIP pair, some scenes of it."""
    return {"world": node("FrozenLoadSpriteWorld"),
            "pair": node("FrozenCLIPPair", clip=["world", 1], clip_vision=["world", 3]),
            "scenes": node("FrozenSpriteScenes", clip=["world", 1], count=count, seed=0),
            "attributes": node("FrozenAttributes", source="sprite world", text="", template="a photo of {}", count=20),
            "negative": node("CLIPTextEncode", clip=["world", 1], text="")} | text_of("attributes", 1)


def drawn(name: str, model: str, steps: int, cfg: float) -> dict:
    """The scenes as a sampler draws them, and their set."""
    return {f"{name} sampler": node("KSampler", model=[model, 0], positive=["scenes", 1], negative=["negative", 0],
                                    latent_image=["scenes", 2], seed=7, steps=steps, cfg=cfg, sampler_name="euler",
                                    scheduler="normal", denoise=1.0),
            f"{name} decode": node("VAEDecode", samples=[f"{name} sampler", 0], vae=["world", 2]),
            f"{name} set": image_set([f"{name} decode", 0])}


def image_set(images: list | None = None, folder: str = "") -> dict:
    inputs = {"images": images} if images else {}
    return node("FrozenImageSet", clip_pair=["pair", 0], folder=folder, subfolders=True, reading="general", append_to="",
                **inputs)


def attribute_report() -> Template:
    graph = scenes() | {"true set": image_set(["scenes", 0])} | drawn("few", "world", 4, 5.0) | drawn("more", "world", 12, 2.0) | {
        "report": node("FrozenAttributeReport", reference=["true set", 0], generated=["few set", 0],
                       attributes=["attributes", 0], generated_b=["more set", 0], **REPORT),
        "shown": node("PreviewImage", images=["report", 0]),
        "ruler": node("FrozenSaveRuler", ruler=["report", 4], filename_prefix="rulers/sprites"),
    } | text_of("report", 1) | text_of("true set", 1) | text_of("ruler", 0)
    return Template(
        graph, "says which attributes a sampler gets wrong: the same scenes truly drawn, at 4 steps with much guidance, and at 12 "
        "steps.", "**steps** and **cfg** of both *KSampler* nodes. Then press **Run**.", "three minutes",
        [[{}, {"1 Encoders": ["world", "pair"]}, {"2 Scenes": ["scenes", "negative"]},
          {"6 Result": ["shown"]}],
         [{"3 Attributes": ["attributes", "attributes report"]},
          {"4 Pictures": ["few sampler", "few decode", "more sampler", "more decode"]},
          {"5 Sets": ["true set", "true set report", "few set", "more set"]},
          {"7 Report": ["report", "report report", "ruler", "ruler report"]}]],
        "few sampler", "shown",
        (f"Bars are how far an attribute is off, red for too much of it and blue for too little; grey is no more than chance. "
         f"{BELIEFS} With {COUNT} pictures only large differences show; a thousand tell more.",),
        {"true set": "Image Set: true", "few set": "Image Set: 4 steps", "more set": "Image Set: 12 steps",
         "few sampler": "KSampler: 4 steps", "more sampler": "KSampler: 12 steps", "few decode": "Decode: 4 steps",
         "more decode": "Decode: 12 steps"}, thumbnail=[("", "shown")])


def lora_drift() -> Template:
    graph = scenes() | {
        "lora": node("LoraLoaderModelOnly", model=["world", 0], lora_name="sprite_swapped.safetensors", strength_model=1.0),
    } | drawn("base", "world", 10, 3.0) | drawn("lora", "lora", 10, 3.0) | {
        "report": node("FrozenAttributeReport", reference=["base set", 0], generated=["lora set", 0],
                       attributes=["attributes", 0], **REPORT),
        "shown": node("PreviewImage", images=["report", 0]),
        "before": node("PreviewImage", images=["base decode", 0]), "after": node("PreviewImage", images=["lora decode", 0]),
        "purity": node("FrozenEditPurity", before=["base decode", 0], after=["lora decode", 0], clip_pair=["pair", 0],
                       ruler=["report", 4], target=""),
    } | text_of("report", 1) | text_of("lora set", 1) | text_of("purity", 1)
    return Template(
        graph, "says what a LoRA changes besides what it should: the same prompts and seeds with and without it.",
        "**strength_model** of the LoRA, or another LoRA. Then press **Run**.", "three minutes",
        [[{}, {"1 Encoders": ["world", "pair"]}, {"2 Scenes": ["scenes", "negative"]}, {"7 Result": ["shown"]}],
         [{"3 Attributes": ["attributes", "attributes report"]}, {"4 LoRA": ["lora"]},
          {"5 Pictures": ["base sampler", "base decode", "lora sampler", "lora decode", "before", "after"]},
          {"6 Report": ["base set", "lora set", "lora set report", "report", "report report", "purity", "purity report"]}]],
        "lora", "shown",
        ("This LoRA swaps the colours of everything. The encoder knows sprites by their colours too, so that to it nearly all of them change: what a LoRA does to a subject is seen here, and *Edit Purity* says so in a number. " + BELIEFS,),
        {"base sampler": "KSampler: without", "lora sampler": "KSampler: with", "base decode": "Decode: without",
         "lora decode": "Decode: with", "base set": "Image Set: without", "lora set": "Image Set: with",
         "before": "Preview: without", "after": "Preview: with"}, thumbnail=[("", "shown")])


def clip_attributes() -> Template:
    graph = video_graph("a large fox on the left of a yellow plain background, moving right", "clip_attributes") | {
        "pair": node("FrozenCLIPPair", clip=["world", 1], clip_vision=["world", 3]),
        "ruler": node("FrozenLoadRuler", ruler_file="frozen-diffusion/sprite_world"),
        "score": node("FrozenScoreImages", images=["decode", 0], clip_pair=["pair", 0], as_clip=True, ruler=["ruler", 0]),
        "shown": node("PreviewImage", images=["score", 0]),
    } | text_of("score", 1) | text_of("ruler", 1)
    return Template(
        graph, "follows the attributes of a clip over its frames: what drifts, what flickers.",
        "the green *Prompt*. Then press **Run**.", "half a minute",
        [[{}, {"1 Model": ["world", "module", "motion"]}, {"2 Prompt": ["positive", "negative", "latent"]},
          {"5 Result": ["shown"]}],
         [{"3 Clip": ["sampler", "decode", "sheet", "video", "save"]},
          {"4 Scores": ["pair", "ruler", "ruler report", "score", "score report"]}]],
        "positive", "shown",
        ("A ruler holds what is measured with: the mean of a reference, the attributes, which encoder. *Attribute Report* makes one of "
         "your own, *Save Ruler* keeps it. " + BELIEFS,),
        thumbnail=[("the clip", "sheet"), ("its attributes", "shown")])


def two_folders() -> Template:
    graph = {
        "pair": node("FrozenLoadCLIPPair", clip_file=B32["name"], activation="auto"),
        "attributes": node("FrozenAttributes", source="text below", template="a photo of {}", count=20,
                           text="a dog\na cat\na car\na tree\na house\na fish\na fox\na bee\nred\nblue\ngreen\nblack"),
        "photos": image_set(folder="photos"), "made": image_set(folder="made"),
        "report": node("FrozenAttributeReport", reference=["photos", 0], generated=["made", 0], attributes=["attributes", 0],
                       **REPORT),
        "shown": node("PreviewImage", images=["report", 0]),
    } | text_of("attributes", 1) | text_of("photos", 1) | text_of("made", 1) | text_of("report", 1)
    return Template(
        graph, "compares two folders of your own pictures with the paper's CLIP.",
        "**folder** of both *Image Set* nodes: folders inside *input* or *output*. Write your attributes, then press **Run**.",
        "a minute for each thousand pictures",
        [[{}, {"1 Encoder": ["pair"], "2 Attributes": ["attributes", "attributes report"]}, {"5 Result": ["shown"]}],
         [{"3 Pictures": ["photos", "photos report", "made", "made report"]}, {"4 Report": ["report", "report report"]}]],
        "photos", "shown",
        (f"*Load CLIP Pair* takes one file of a whole CLIP; the paper's is [ViT-B/32 of OpenAI]({B32['url']}), for "
         "`models/clip_vision`. Features are kept on disk: a second run reads no picture again. " + BELIEFS,),
        {"photos": "Image Set: reference", "made": "Image Set: generated"}, models={"pair": [B32]},
        thumbnail=[("", "shown")])
