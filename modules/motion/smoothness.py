"""HARIVO's losses besides denoising: TRS on self-attention maps (sec. 3.3), DC on the bottleneck (sec. 3.4).

The formula of DC is the paper's, and so is its queue of negatives from earlier steps, here a switch. By default the
negatives come from the current batch: a queue's entries come from earlier weights, and a step of all clips away from
them lowers the loss without making clips differ (harivo.md 11). TRS is a reconstruction: that neighbouring frames'
self-attention maps of the upper decoder are made alike is sourced, norm, layers and weight are ours.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

TEMPERATURE = 0.1               # tau of DC, the paper's
LAYER_WEIGHT = 0.5              # gamma of TRS for each of its layers (Li et al., DPIDM, CVPR 2025)
ROWS = 256                      # rows of an attention map in memory at once
QUEUE, LEAST_NEGATIVES = 1024, 64
EMBEDDING = 128
EMPTY = -1                      # number of no video

Head = Callable[[Tensor], Tensor]       # g: h [..., C] -> unit vectors [..., D]


def map_distance(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Sum over rows of mean over heads of || A^f - A^(f+1) ||^2 for all neighbours, a scalar.

    q [B, F, heads, R, d], k [B, F, heads, N, d]; A = softmax(scale q k^T) [B, F, heads, R, N].
    """
    with torch.autocast(q.device.type, enabled=False):      # in half precision, noise exceeds what like maps differ by
        maps = (scale * q.float() @ k.float().transpose(-1, -2)).softmax(-1)
        return torch.diff(maps, dim=1).square().sum(-1).mean(2).sum()


def attention_distance(q: Tensor, k: Tensor, rows: int = ROWS) -> Tensor:
    """The inner term of TRS for one layer, 0..2: mean over clips, neighbours, heads and rows of the squared distance
    of two maps' rows. q, k [B, F, heads, N, d].

    Computed `rows` rows at a time and again in the backward pass, so memory does not grow with N^2.
    """
    scale, total = q.shape[-1] ** -0.5, q.new_zeros((), dtype=torch.float32)
    for part in q.split(rows, dim=3):
        total = total + checkpoint(map_distance, part, k, scale, use_reentrant=False)
    batch, frames, _, length, _ = q.shape
    return total / (batch * (frames - 1) * length)


def trs_loss(layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """L_TRS = sum over layers of gamma times `attention_distance`. layers: (q, k) of each, [B, F, heads, N, d].

    The gradient reaches both frames of a pair, through queries and keys: neither side is detached.
    """
    return LAYER_WEIGHT * torch.stack([attention_distance(q, k) for q, k in layers]).sum()


def dc_loss(first: Tensor, second: Tensor, others: Tensor, tau: float = TEMPERATURE) -> Tensor:
    """L_DC = - <z1, z2> / tau + log sum_q exp(<z1, z_q> / tau), mean over the batch.

    first, second [B, D]: two frames of the same clip; others [Q, D]: frames of other clips; all of unit length. The
    positive is not in the sum ("decoupled": Yeh et al., ECCV 2022).
    """
    positive = (first * second).sum(1) / tau
    return ((first @ others.T / tau).logsumexp(1) - positive).mean()


def unit_length(h: Tensor) -> Tensor:
    """h-space vectors [..., C] at length 1: g without a projection head."""
    return functional.normalize(h, dim=-1)


class ProjectionHead(nn.Module):
    """g: h-space vectors [..., C] -> unit vectors [..., EMBEDDING]. Used in training only."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, EMBEDDING))

    def forward(self, h: Tensor) -> Tensor:
        return unit_length(self.layers(h))


class Negatives(nn.Module):
    """The queue of DC: pooled h of the last clips, before the head, so that they never grow stale with it.

    A clip is known by a number made from its video's name. Two of one video are never in the queue at once: the later
    one takes the earlier one's place, so that a set of few videos does not keep what the module showed at first. A clip
    meets no entry of its own video as a negative. The queue is two buffers, so that a checkpoint holds it.
    """

    def __init__(self, channels: int, length: int = QUEUE):
        super().__init__()
        self.register_buffer("h", torch.zeros(length, channels, dtype=torch.float16))       # oldest first
        self.register_buffer("videos", torch.full((length,), EMPTY))

    def __len__(self) -> int:
        return int((self.videos != EMPTY).sum())

    def push(self, videos: Sequence[int], h: Tensor) -> None:
        """Remember h [B, C] of the videos with these numbers; what is oldest leaves, or what a video had before."""
        for video, vector in zip(videos, h.detach().to(self.h), strict=True):
            leaves = int((self.videos == video).int().argmax())     # 0, the oldest, if there is none
            for queue, newest in ((self.h, vector), (self.videos, video)):
                queue[leaves:-1] = queue[leaves + 1:].clone()   # no torch.cat: autocast on a CPU has none for float16
                queue[-1] = newest

    def without(self, video: int) -> Tensor:
        """h [Q, C] of all videos but that one, fp32."""
        return self.h[(self.videos != EMPTY) & (self.videos != video)].float()


def check_videos(videos: int, negatives: str) -> None:
    """Raises ValueError if DC can never act with clips from so many different videos. negatives: "batch" or "queue"."""
    if videos < 2:
        raise ValueError(f"The DC loss was asked for, but the clips come from {videos} different videos. It compares "
                         "videos and needs at least 2. Add videos, or set dc to 0.")
    if negatives == "queue" and videos < LEAST_NEGATIVES:
        raise ValueError(f"The DC loss with a queue of negatives was asked for, but the clips come from {videos} "
                         f"different videos. It begins when it has seen {LEAST_NEGATIVES} of them. Add videos, set "
                         "dc_negatives to batch, or set dc to 0.")


def batch_contrast(h: Tensor, videos: Sequence[int], head: Head, generator: torch.Generator) -> Tensor | None:
    """DC of a batch: two random frames of every clip against all frames of the batch's clips of other videos.

    h [B, F, C] pooled bottleneck features, `videos` the numbers of their videos. The gradient reaches the negatives
    too. Returns None if all clips are of one video.
    """
    first, second = random_pairs(h, len(videos), generator)
    if len(set(videos)) < 2:
        return None
    rows = torch.arange(len(videos), device=h.device)
    with torch.autocast(h.device.type, enabled=False):      # bfloat16 has steps of 1/256 where cosines are near 1
        z = head(h.float())                                                             # [B, F, D]
        others = (torch.cat([clip for clip, of in zip(z, videos, strict=True) if of != video]) for video in videos)
        return symmetric_contrast(z[rows, first], z[rows, second], others)


def queue_contrast(h: Tensor, videos: Sequence[int], head: Head, queue: Negatives,
                   generator: torch.Generator) -> Tensor | None:
    """DC of a batch: two random frames of every clip against the queue; then one of them joins the queue.

    h [B, F, C] pooled bottleneck features, `videos` the numbers of their videos. Returns None while the queue has
    fewer than LEAST_NEGATIVES entries.
    """
    first, second = random_pairs(h, len(videos), generator)
    rows = torch.arange(len(videos), device=h.device)
    one, two = h[rows, first].float(), h[rows, second].float()                          # [B, C]
    loss = None
    if len(queue) >= LEAST_NEGATIVES:
        loss = symmetric_contrast(head(one), head(two), (head(queue.without(video)) for video in videos))
    queue.push(videos, one)
    return loss


def random_pairs(h: Tensor, clips: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of two different frames of every clip, each [B]. h [B, F, C]"""
    pairs = torch.stack([torch.randperm(h.shape[1], generator=generator)[:2] for _ in range(clips)]).to(h.device)
    return pairs[:, 0], pairs[:, 1]


def symmetric_contrast(z1: Tensor, z2: Tensor, others: Iterable[Tensor]) -> Tensor:
    """`dc_loss` both ways, mean over the clips. z1, z2 [B, D]; others: the negatives of each clip, [Q, D]."""
    terms = []
    for row, negatives in enumerate(others):
        a, b = z1[row:row + 1], z2[row:row + 1]
        terms += [dc_loss(a, b, negatives), dc_loss(b, a, negatives)]
    return torch.stack(terms).mean()
