"""What the templates are put together from."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

OWN_MODEL = ("\n\n**With your own SD1.5 checkpoint:** replace *Load Sprite World* by *Load Checkpoint*, set the size "
             "to 512x512, write prompts as usual and choose a motion module for SD1.5 (AnimateDiff) in *Load Motion "
             "Module*: the one here fits sprite world only.")
OWN_CLIP = OWN_MODEL + " Sample with **steps** 25 and **cfg** 7.5."
BASELINE, HARIVO = (f"frozen-diffusion/{name}.safetensors" for name in ("sprite_motion", "sprite_harivo"))
CAPTIONS = ("\n\nSprite world knows captions such as `a large fox on the right of a yellow dotted background, "
            "bouncing`. Sprites: dog cat car apple sunflower ball fish balloon butterfly rocket turtle banana "
            "house moon star bee guitar mushroom octopus tree fox frog panda watermelon. Motions: standing still, "
            "moving left, right, up, down, growing, shrinking, spinning, bouncing, circling.")
STAND_IN = {"positive": "a large panda in the middle of a yellow plain background, moving right", "negative": ""}
STAND_IN_TILE = (("with your own checkpoint", "save 0", "save 5"), ("shown: sprite world", "save 10", "save 15"))
PROMPT_CHANGE = "the green *Prompt*. Then press **Run**."
RESULT_STAGE = {"4 Result": ["sheet", "video", "save"]}
HUB = "https://huggingface.co"
# Files that a person may have to fetch, as the host's own templates name them; the page offers .safetensors only.
SD15 = {"name": "v1-5-pruned-emaonly-fp16.safetensors", "directory": "checkpoints",
        "url": f"{HUB}/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors"}
SD15_MOTION = {"name": "mm_sd15_v3.safetensors", "directory": "animatediff_models",
               "url": f"{HUB}/conrevo/AnimateDiff-A1111/resolve/main/motion_module/mm_sd15_v3.safetensors"}


@dataclass(frozen=True)
class Template:
    """A graph in API form, whose keys are words, and what stands beside it.

    The first note begins with three lines: what it `does`, what to `change`, how long it `lasts` on a CPU. `stages` are rows of
    columns of groups, {title: keys}; `main` is the node that one changes, `result` the one that one looks at.
    """

    graph: Mapping[str, dict]
    does: str
    change: str
    lasts: str
    stages: Sequence[Sequence[Mapping[str, Sequence[str]]]]
    main: str
    result: str
    notes: tuple[str, ...] = ("",)
    titles: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, Sequence[Mapping[str, str]]] = field(default_factory=dict)
    thumbnail: Sequence[Sequence[str]] = (("", "save 0", "save 5"), ("", "save 10", "save 15"))
    sprite_prompts: Mapping[str, str] = field(default_factory=dict)


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def text_of(key: str, slot: int) -> dict:
    """A node that shows the report of node `key`, its output `slot`."""
    return {f"{key} report": node("PreviewAny", source=[key, slot])}


def image_graph(prompt: str, frames: int = 1, model: str = "world", seed: int = 7, steps: int = 20) -> dict:
    """Prompt to frames: the part that every template shares. `model` names the node whose MODEL is sampled."""
    return {
        "world": node("FrozenLoadSpriteWorld"),
        "positive": node("CLIPTextEncode", clip=["world", 1], text=prompt),
        "negative": node("CLIPTextEncode", clip=["world", 1], text=""),
        "latent": node("EmptyLatentImage", width=128, height=128, batch_size=frames),
        "sampler": node("KSampler", model=[model, 0], positive=["positive", 0], negative=["negative", 0],
                        latent_image=["latent", 0], seed=seed, steps=steps, cfg=5.0, sampler_name="euler",
                        scheduler="normal", denoise=1.0),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["world", 2]),
    }


def drawn(name: str, prompt: str, seed: int, negative: str) -> dict:
    """A picture from a prompt as a LATENT, `name`, and decoded; the other nodes are named after it."""
    part = image_graph(prompt, seed=seed)
    part["sampler"]["inputs"] |= {"positive": [f"{name} prompt", 0], "negative": [negative, 0],
                                  "latent_image": [f"{name} size", 0]}
    part["decode"]["inputs"] |= {"samples": [name, 0]}
    return {f"{name} prompt": part["positive"], f"{name} size": part["latent"], name: part["sampler"],
            f"{name} decode": part["decode"]}


def video_graph(prompt: str, name: str, frames: int = 16, motion_on: str = "world", model: str = "motion",
                seed: int = 7, motion_file: str = BASELINE) -> dict:
    """Prompt to a video file and a frame sheet. The motion module sits on the MODEL of node `motion_on`."""
    return image_graph(prompt, frames, model, seed) | {
        "module": node("FrozenLoadMotionModule", motion_file=motion_file),
        "motion": node("FrozenApplyMotionModule", model=[motion_on, 0], motion_module=["module", 0], strength=1.0,
                       frames_per_clip=0, start_percent=0.0, end_percent=1.0, beta_schedule="auto",
                       groupnorm="official"),
        "sheet": node("FrozenFrameSheet", frames=["decode", 0], columns=4, every=max(1, frames // 16),
                      show="moving", fps=8.0),
        "video": node("CreateVideo", images=["decode", 0], fps=8.0),
        "save": node("SaveVideo", video=["video", 0], filename_prefix=f"frozen_diffusion/{name}", format="auto",
                     codec="auto"),
    }


def own_video_graph(prompt: str, name: str, motion_file: str) -> dict:
    """`video_graph` for a user's own SD1.5 checkpoint and motion module, with the module's report."""
    graph = video_graph(prompt, name, motion_file=motion_file)
    graph["world"] = node("CheckpointLoaderSimple", ckpt_name=SD15["name"])
    graph["negative"]["inputs"]["text"] = "blurry, low quality, watermark"
    graph["latent"]["inputs"] |= {"width": 512, "height": 512}
    graph["sampler"]["inputs"] |= {"steps": 25, "cfg": 7.5}
    return graph | text_of("module", 1)


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
