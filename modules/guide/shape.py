"""What a guide has to match of its base, and the widths it has itself (guide_model.md 2.3, 2.4)."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SHARE = {"sd15": 0.15, "sdxl": 0.2}         # of the base's widths
GROUP = 16                                  # channels that widths are a multiple of, at SD1.5's size
EMBEDDING = 256                             # at SD1.5's size


@dataclass(frozen=True)
class GuideShape:
    """Of a tiny guide.

    Attributes:
        skips: channels of the base's skip tensors, in the encoder's order.
        middle: channels of its middle block.
        downsamples: which of the skips come from a Downsample.
        text_levels: levels of the guide that see the text; the middle always does.
        widths: channels of the guide, a level each.
        embedding: width of the embedding of timestep and g.
        time_channels: of the timestep's sinusoids.
        context_dim: width of a text token.
        vector_dim: of the pooled text and size vector (SDXL), 0 = none.
    """
    skips: tuple[int, ...]
    middle: int
    downsamples: tuple[int, ...]
    text_levels: tuple[int, ...]
    widths: tuple[int, ...]
    embedding: int
    time_channels: int
    context_dim: int
    vector_dim: int = 0

    def level(self, skip: int) -> int:
        """The level on which skip number `skip` is made; a Downsample belongs to the level that it leaves."""
        return sum(down < skip for down in self.downsamples)


def shape_of(config: Mapping[str, Any], widths: Sequence[int] | None = None,
             embedding: int | None = None) -> GuideShape:
    """The shape of a tiny guide for a base, by the host's names of its U-Net's settings.

    The default widths are a fixed share of the base's. Raises ValueError for a U-Net without text or without
    downsampling.
    """
    channels, multiples, blocks = config["model_channels"], config["channel_mult"], config["num_res_blocks"]
    if config.get("context_dim") is None or len(multiples) < 2:
        raise ValueError("A guide model needs a text-to-image U-Net with several levels, such as SD1.5's or SDXL's; "
                         f"this one has context_dim {config.get('context_dim')} and {len(multiples)} levels.")
    depths = iter(config["transformer_depth"])
    skips, downsamples, text_levels = [channels], [], []
    for level, (multiple, count) in enumerate(zip(multiples, blocks, strict=True)):
        depth = max(next(depths) for _ in range(count))
        if level and depth:
            text_levels.append(level)
        skips += [multiple * channels] * count
        if level + 1 < len(multiples):
            downsamples.append(len(skips))
            skips.append(multiple * channels)
    share = SHARE["sdxl" if config.get("adm_in_channels") else "sd15"]
    if widths is None:
        step = GROUP if channels >= 256 else 4
        widths = [max(step, step * round(share * multiple * channels / step)) for multiple in multiples]
    return GuideShape(
        tuple(skips), multiples[-1] * channels, tuple(downsamples), tuple(text_levels), tuple(widths),
        embedding or (EMBEDDING if channels >= 256 else channels // 2), channels, config["context_dim"],
        config.get("adm_in_channels") or 0)
