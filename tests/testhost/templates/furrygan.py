"""The templates of FurryGAN, see the list in __init__.py."""
from __future__ import annotations

from .parts import Template, image_graph, node, text_of

SHIPPED = "frozen-diffusion/sprite_furry.safetensors"
SIDE, COUNT = 64, 8
SMALL = ("The FurryGAN of the pack draws emoji of 64x64, for it was trained on two processor cores. Put a larger one into "
         "`models/furrygan`, or train one on your own pictures.")
PAGES = "- Masks are **1 = foreground**: *Join Image with Alpha* wants *Invert Mask* before it.\n- "


def subjects(count: int = COUNT, seed: int = 38, **changed) -> dict:
    """The shipped FurryGAN, and cut-outs of a seed."""
    return {"furry": node("FrozenLoadFurryGAN", furrygan_file=SHIPPED),
            "subjects": node("FrozenGenerateForeground", furrygan=["furry", 0], **{
                "seed": seed, "batch_size": count, "psi_foreground": 0.7, "psi_background": 0.7, "background_seed": -1,
                "mix_rows": "none", "mix_seed": 1, "clean_mask": True} | changed)} | text_of("subjects", 6)


def rows_of(label: str, key: str, rows: int, columns: int) -> list[tuple[str, ...]]:
    """The first pictures of a batch, for a thumbnail."""
    return [(label if row == 0 else "", *(f"{key} {row * columns + column}" for column in range(columns)))
            for row in range(rows)]


def larger(key: str, slot: int = 0, times: float = 4.0) -> dict:
    """A node that enlarges pictures for the eye."""
    return node("ImageScaleBy", image=[key, slot], upscale_method="lanczos", scale_by=times)


def cut_outs() -> Template:
    graph = subjects() | {
        "clean": node("FrozenDecontaminateEdges", image=["subjects", 0], mask=["subjects", 3]),
        "plate": node("EmptyImage", width=SIDE, height=SIDE, batch_size=COUNT, color=0x1E3A5F),
        "paste": node("ImageCompositeMasked", destination=["plate", 0], source=["clean", 0], mask=["subjects", 3], x=0, y=0,
                      resize_source=False),
        "large": larger("paste"), "shown": node("PreviewImage", images=["large", 0]),
        "save": node("SaveImage", images=["clean", 1], filename_prefix="furrygan/cutout")}
    return Template(
        graph, "draws subjects that are already cut out, puts them before a colour, and saves them with transparency.",
        "**seed** of *Generate Foreground*. Then press **Run**.", "a few seconds",
        [[{}, {"1 Subjects": ["furry", "subjects"]}, {"4 Result": ["shown", "save"]}],
         [{"2 Edges": ["clean", "subjects report"]}, {"3 Your background": ["plate", "paste", "large"]}]],
        "subjects", "shown",
        (PAGES + "In the place of *Empty Image* put *Load Image* with a background of your own; it wants the subjects' size, or **x** "
         "and **y** for where they stand.\n- *Save Image* keeps the transparency.\n- " + SMALL,), thumbnail=rows_of("", "shown", 2, 2))


def walking_loop() -> Template:
    graph = subjects(4) | {
        "walk": node("FrozenForegroundWalk", furrygan=["furry", 0], styles=["subjects", 5], frames=32, hold_background=True,
                     clean_mask=True),
        "webp": node("SaveAnimatedWEBP", images=["walk", 4], filename_prefix="furrygan/walk", fps=12.0, lossless=True,
                     quality=90, method="default"),
        "large": larger("walk", 2, 2.0), "shown": node("PreviewImage", images=["large", 0])}
    return Template(
        graph, "walks from subject to subject in a closed loop, saved as an animated picture with transparency.",
        "**seed** of *Generate Foreground*, or **frames** of *Foreground Walk*. Then press **Run**.", "a few seconds",
        [[{}, {"1 Subjects": ["furry", "subjects"]}, {"2 Walk": ["walk"]}, {"3 Result": ["webp"]}],
         [{"4 Frames": ["large", "shown", "subjects report"]}]],
        "walk", "webp", ("The loop passes all subjects of the batch and closes without a jump. Colours and alpha move together. "
                         + SMALL,), thumbnail=[("", "shown 0", "shown 4"), ("", "shown 8", "shown 12")])


def image_to_alpha() -> Template:
    graph = subjects(1, 2, psi_foreground=1.0, psi_background=1.0) | {
        "found": node("FrozenForegroundFromImage", furrygan=["furry", 0], image=["subjects", 0], steps=300, guide=0.1, seed=5),
        "hint": node("FrozenMaskHint", furrygan=["furry", 0], image=["subjects", 0]),
        "hint picture": node("MaskToImage", mask=["hint", 0]), "mask picture": node("MaskToImage", mask=["found", 1]),
        "shown": node("PreviewImage", images=["subjects", 0]), "shown composite": node("PreviewImage", images=["found", 4]),
        "shown mask": node("PreviewImage", images=["mask picture", 0]),
        "shown hint": node("PreviewImage", images=["hint picture", 0]),
        "save": node("SaveImage", images=["found", 0], filename_prefix="furrygan/from_image")} | text_of("found", 6)
    return Template(
        graph, "cuts a picture out: the generator searches how it would have drawn it, and its mask comes with it.",
        "put *Load Image* in the place of *Generate Foreground*, which stands in for a picture of yours. Then press **Run**.", "a minute",
        [[{}, {"1 Picture": ["furry", "subjects"]}, {"2 Search": ["found"]}, {"3 Result": ["save"]}],
         [{"4 Look": ["shown", "shown composite", "mask picture", "shown mask", "hint", "hint picture", "shown hint"]},
          {"5 Reports": ["found report", "subjects report"]}]],
        "found", "save",
        ("The search sees the picture alone, and starts from other noise. The cut-out keeps the picture's own pixels. The report says when "
         "a mask is not to be trusted: for pictures of other things than emoji that fill 60 % of the frame, that is always. On new emoji "
         "masks are still rough (README). " + SMALL,),
        {"shown composite": "As the generator draws it", "shown hint": "Mask hint", "shown mask": "Mask", "shown": "Picture",
         "hint picture": "Hint as a picture", "mask picture": "Mask as a picture"},
        thumbnail=[("picture", "shown"), ("its mask", "shown mask")])


def foreground_over_picture() -> Template:
    def pasted(name: str, source: list) -> dict:
        return {name: node("ImageCompositeMasked", destination=["decode", 0], source=source, mask=["subjects", 3], x=60, y=58,
                           resize_source=False),
                f"{name} large": larger(name, 0, 2.0), f"{name} shown": node("PreviewImage", images=[f"{name} large", 0])}

    graph = image_graph("a large dog on the left of a blue plain background") | subjects(1, 1) | {
        "clean": node("FrozenDecontaminateEdges", image=["subjects", 0], mask=["subjects", 3]),
    } | pasted("raw", ["subjects", 0]) | pasted("cleaned", ["clean", 0])
    return Template(
        graph, "puts a subject into a picture from a prompt, with and without the old background in its edges.",
        "**seed** of *Generate Foreground*, or the *Prompt*. Then press **Run**.", "ten seconds",
        [[{}, {"1 Subject": ["furry", "subjects"]}, {"4 Result": ["cleaned shown", "raw shown"]}],
         [{"2 Picture": ["world", "positive", "negative", "latent", "sampler", "decode"]},
          {"3 Composites": ["clean", "raw", "raw large", "cleaned", "cleaned large", "subjects report"]}]],
        "subjects", "cleaned shown",
        ("Look at the subject's edge. The cleaned picture has no halo of the background that the generator invented. With a checkpoint "
         "of your own: sample over it once more with little denoise, so that light and grain fit. " + SMALL,),
        {"raw": "Composite: as drawn", "cleaned": "Composite: edges cleaned", "raw shown": "As drawn",
         "cleaned shown": "Edges cleaned", "raw large": "Larger: as drawn", "cleaned large": "Larger: cleaned"}, thumbnail=[("as drawn", "raw shown"), ("edges cleaned", "cleaned shown")])


def foreground_sliders() -> Template:
    def slider(name: str, amount: float) -> dict:
        return {name: node("FrozenForegroundSlider", furrygan=["furry", 0], styles=["subjects", 5], layer="foreground",
                           rows="all", direction=0, amount=amount, clean_mask=True),
                f"{name} large": larger(name, 2, 2.0), f"{name} shown": node("PreviewImage", images=[f"{name} large", 0])}

    graph = subjects(4) | slider("less", -2.0) | slider("more", 2.0) | {
        "large": larger("subjects", 2, 2.0), "shown": node("PreviewImage", images=["large", 0])}
    return Template(
        graph, "moves subjects along a direction that the generator's own layers change most; nothing is trained.",
        "**direction** and **amount** of both *Foreground Slider* nodes. Then press **Run**.", "a few seconds",
        [[{}, {"1 Subjects": ["furry", "subjects"]}, {"2 More": ["more"]}, {"4 Result": ["more shown"]}],
         [{"3 Less": ["less", "less large"]},
          {"5 Compare": ["less shown", "shown", "large", "more large", "subjects report"]}]],
        "more", "more shown", ("Try directions 0 to 9, and **layer** background: the subject and its mask then stay as they are. "
                               + SMALL,),
        {"less large": "Larger: less", "more large": "Larger: more", "large": "Larger: as they were", "less": "Slider: less", "more": "Slider: more", "less shown": "Less", "more shown": "More", "shown": "As they were"},
        thumbnail=[("less", "less shown"), ("as they were", "shown"), ("more", "more shown")])


def segmentation_pairs() -> Template:
    graph = subjects(COUNT, 0, psi_foreground=1.0, psi_background=1.0) | {
        "pairs": node("FrozenSegmentationPairs", furrygan=["furry", 0], count=100, seed=0, psi=1.0,
                      filename_prefix="furrygan/pairs"),
        "mask picture": node("MaskToImage", mask=["subjects", 3]),
        "large": larger("subjects", 2, 2.0), "large masks": larger("mask picture", 0, 2.0),
        "shown": node("PreviewImage", images=["large", 0]), "shown masks": node("PreviewImage", images=["large masks", 0]),
    } | text_of("pairs", 0)
    return Template(
        graph, "writes pictures and their masks as files, to train a segmenter on.",
        "**count** of *Segmentation Pairs*. Then press **Run**.", "ten seconds for each hundred",
        [[{}, {"1 Files": ["furry", "pairs", "pairs report"]}, {"3 Look": ["shown masks", "shown"]}],
         [{"2 The first ones": ["subjects", "subjects report", "mask picture", "large", "large masks"]}]],
        "pairs", "shown masks", ("Pair *k* of a seed is always the same. With **psi** 0.7 the masks are better and the pictures less "
                                 "varied. " + SMALL,),
        {"shown": "Pictures", "shown masks": "Masks", "mask picture": "Masks as pictures", "large": "Larger: pictures",
         "large masks": "Larger: masks"}, thumbnail=rows_of("pictures", "shown", 1, 4) + rows_of("masks", "shown masks", 1, 4))


def train_furrygan() -> Template:
    graph = {
        "train": node("FrozenTrainFurryGAN", source="sprite world", folder="", steps=2000, learning_rate=2e-3, batch_size=16,
                      size="32", channels=48, phi=0.0, flip=True, sample_every=200, checkpoint="sprites", resume=True, seed=0),
        "loss": node("LossGraphNode", loss=["train", 1], filename_prefix="loss_graph"),
        "shown": node("PreviewImage", images=["train", 2]),
        "save": node("FrozenSaveFurryGAN", furrygan=["train", 0], filename_prefix="furrygan/sprites", with_discriminator=True),
    } | text_of("train", 3) | text_of("save", 0)
    return Template(
        graph, "trains a FurryGAN on plain pictures, without a mask: close-ups of sprite world's two dozen sprites, at 32x32.",
        "**source** to *folder*, and **folder** to thousands of pictures of one kind of thing. Then press **Run**.",
        "a quarter of an hour",
        [[{}, {"1 Training": ["train"]}, {"2 Look": ["shown", "loss"]}],
         [{"3 Result": ["save", "save report", "train report"]}]],
        "train", "shown",
        ("Rows are composites, foregrounds, backgrounds and masks. After 2000 steps the masks have found the subject and the pictures are "
         "still coarse; 8000 are better, and 64 pixels want twice as many. A training that you stop goes on when you press **Run** "
         "again. **phi** 0 takes an estimate of how much the subject fills; crop your pictures until it is 60 % and more.",),
        thumbnail=[("", "shown")])
