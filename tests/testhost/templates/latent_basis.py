"""The templates of the latent basis, see the list in __init__.py."""
from __future__ import annotations

from .h_space import OWN_PICTURES, inverted, picture, sampled, stage_of, world
from .parts import Template, node, text_of

OWN_STRENGTH = ("\n\n**strength** is sprite world's here; 16 suits 512 pixels without a prompt, 64 with one.")


def noisy(name: str) -> dict:
    """Picture `name` inverted and sampled back down to t 0.7: the latent in which directions are looked for."""
    return inverted(name, text="empty") | {
        f"{name} split": node("SplitSigmas", sigmas=[f"{name} inverted", 2], step=15),
        f"{name} noisy": sampled([f"{name} inverted", 0], [f"{name} split", 0], ["euler", 0])}


def basis(name: str, rank: int, label: str = "basis") -> dict:
    return {label: node("FrozenComputeLatentBasis", model=["world", 0], positive=["empty", 0],
                        latent=[f"{name} noisy", 0], sigmas=[f"{name} split", 1], rank=rank,
                        solver="lanczos", tolerance=0.001, seed=0, mask_space="h")} | text_of(label, 2)


def edited(name: str, of: str, **changes) -> dict:
    """The noisy latent of `name` moved along basis `of`, sampled to the end and laid out as a sheet."""
    settings = {"direction": 0, "strength": 12.0, "count": 5, "method": "x-space guidance", "steps": 16, "eta": 1.0,
                "keep_norm": False, "by_noise": True} | changes
    return {"edit": node("FrozenEditAlongBasis", model=["world", 0], positive=["empty", 0], latent=[f"{name} noisy", 0],
                         sigmas=[f"{name} split", 1], basis=[of, 0], **settings), **text_of("edit", 1),
            "finish": sampled(["edit", 0], [f"{name} split", 1], ["euler", 0]),
            "decode": node("VAEDecode", samples=["finish", 0], vae=["world", 2]),
            "sheet": node("FrozenFrameSheet", frames=["decode", 0], columns=settings["count"], every=1),
            "save": node("SaveImage", images=["sheet", 0], filename_prefix="frozen_diffusion/directions")}


def basis_world(*pictures: tuple[str, str, int]) -> dict:
    graph = world() | {"euler": node("KSamplerSelect", sampler_name="euler")}
    for name, prompt, seed in pictures:
        graph |= picture(name, prompt, seed) | noisy(name)
    return graph


def latent_basis_directions() -> Template:
    graph = basis_world(("picture", "a large fox in the middle of a blue plain background", 6)) | basis("picture", 4)
    graph |= edited("picture", "basis", direction=-1)
    graph |= {"report": node("FrozenBasisReport", basis=["basis", 0], edits=["decode", 0]),
              "plot": node("PreviewImage", images=["report", 0]), "report text": node("PreviewAny", source=["report", 1])}
    return Template(
        graph, "discovers edit sliders for a picture, without training and without text. Each row of the sheet is a "
        "direction, from -strength to +strength.",
        "the green *Prompt*; **strength** of *Edit along Basis*. Then press **Run**.", "about a minute",
        [[{"1 Model": ["world"]}, {"2 Picture": stage_of("picture", "empty")}, {"6 Result": ["save"]}],
         [{"3 Noisy picture": ["euler", "picture split", "picture noisy"]},
          {"4 Directions": ["basis", "basis report"]},
          {"5 Edit": ["edit", "edit report", "finish", "decode", "sheet", "report", "plot", "report text"]}]],
        "picture prompt", "save",
        ("The picture is inverted and denoised down to t = 0.7. There the directions are computed that change the "
         "bottleneck most.\n\n- Earlier splits (smaller **step** of *Split Sigmas*) change more, later ones details.\n- "
         "**strength** is the way in the latent; 16 suits 512 pixels.\n- A prompt instead of the empty one draws the "
         "directions towards it.\n- *Basis Report* puts the spectrum and the contact sheet on one page." + OWN_PICTURES,),
        {"decode": "VAE Decode: result", "finish": "SamplerCustom: finish", "plot": "Preview: spectrum",
         "report text": "Report: spectrum"}, thumbnail=[("", "save")])


def latent_basis_transport() -> Template:
    graph = basis_world(("picture", "a large apple in the middle of a blue plain background", 6),
                        ("other", "a large moon on the left of a purple plain background", 8))
    graph |= basis("picture", 4) | basis("other", 12, "target") | {
        "mean": node("FrozenGlobalBasis", basis=["basis", 0], basis_2=["target", 0]),
        "report": node("FrozenBasisReport", basis=["basis", 0], basis_2=["target", 0], basis_3=["mean", 0]),
        "plot": node("PreviewImage", images=["report", 0]),
        "report text": node("PreviewAny", source=["report", 1]), **text_of("keep", 0), **text_of("carried", 2),
        "keep": node("FrozenSaveBasis", basis=["basis", 0], filename_prefix="latent_bases/apple"),
        "loaded": node("FrozenLoadBasis", file=["keep", 0]),
        "carried": node("FrozenTransportBasis", basis=["loaded", 0], direction=0, target=["target", 0])}
    graph |= edited("other", "carried")
    return Template(
        graph, "carries an edit slider from one picture to another.",
        "the two green prompts; **direction** of *Transport Basis*. Then press **Run**.", "about half a minute",
        [[{"1 Model": ["world"]}, {"2 Picture": stage_of("picture", "empty")}, {"7 Result": ["save"]}],
         [{"3 Other picture": stage_of("other")},
          {"4 Noisy pictures": ["euler", "picture split", "picture noisy", "other split", "other noisy"]}],
         [{"5 Directions of both": ["basis", "basis report", "target", "target report", "mean", "report", "plot",
                                    "report text", "keep", "keep report", "loaded"]},
          {"6 Carry and edit": ["carried", "carried report", "edit", "edit report", "finish", "decode", "sheet"]}]],
        "picture prompt", "save",
        ("A direction found in one picture goes through h-space to another one. **coverage** tells how much of it exists "
         "there: green above 0.6, red below 0.3.\n\n*Basis Report* shows how far the tangent spaces are apart, beside "
         "random ones. *Global Basis* is the mean of several pictures' directions; carry its directions in the same way."
         + OWN_PICTURES + OWN_STRENGTH,),
        {"decode": "VAE Decode: result", "finish": "SamplerCustom: finish", "plot": "Preview: distances",
         "basis": "Latent Basis: picture", "target": "Latent Basis: other",
         "basis report": "Report: directions of picture", "target report": "Report: directions of other",
         "report text": "Report: distances", "keep report": "Report: saved file", "carried report": "Report: coverage"},
        thumbnail=[("from one picture to another", "picture shown", "other shown"), ("", "save")])


def latent_basis_prompt_slider() -> Template:
    graph = basis_world(("picture", "a large moon on the left of a purple plain background", 6)) | basis("picture", 12)
    graph |= {
        "from": node("CLIPTextEncode", clip=["world", 1], text="a large moon on the left of a purple plain background"),
        "to": node("CLIPTextEncode", clip=["world", 1], text="a large moon on the left of a purple striped background"),
        "slider": node("FrozenPromptDirection", model=["world", 0], positive_a=["from", 0], positive_b=["to", 0],
                       latent=["picture noisy", 0], sigmas=["picture split", 1], basis=["basis", 0]),
        **text_of("slider", 1)}
    graph |= edited("picture", "slider", strength=10.0)
    return Template(
        graph, "makes a named slider out of two prompts: from a plain background to a striped one.",
        "the green prompts *from* and *to*; **strength** of *Edit along Basis*. Then press **Run**.",
        "about half a minute",
        [[{"1 Model": ["world"]}, {"2 Slider from two prompts": ["from", "to", "slider", "slider report"]},
          {"7 Result": ["save"]}],
         [{"3 Picture": stage_of("picture", "empty")}],
         [{"4 Noisy picture": ["euler", "picture split", "picture noisy"]}, {"5 Directions": ["basis", "basis report"]},
          {"6 Edit": ["edit", "edit report", "finish", "decode", "sheet"]}]],
        "from", "save",
        ("*Prompt Direction* finds how the latent must move for the bottleneck to look as with the other prompt; within the "
         "basis, so that the edit stays natural. Unplug **basis** for the steepest way." + OWN_PICTURES + OWN_STRENGTH,),
        {"decode": "VAE Decode: result", "finish": "SamplerCustom: finish"},
        thumbnail=[("a slider from two prompts", "picture shown"), ("", "save")])
