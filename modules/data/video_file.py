"""Frames of a video file as a player shows them: the right stream, upright, in its proportions, opaque, in SDR."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from .frames import ALPHA, ALPHA_LOST, HLG, LATE, PQ, BrokenVideoError, Frame, over_black
from .hdr import HLG_TRANSFER, PQ_TRANSFER, to_sdr
from .tar_files import TarMember

ATTACHED_PICTURE = 0x400        # FFmpeg's AV_DISPOSITION_ATTACHED_PIC: a cover
WEBM_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}     # decoders that know it; FFmpeg's own leave it out
HDR = {PQ_TRANSFER: PQ, HLG_TRANSFER: HLG}
WIDEST_PIXEL = 16               # of players: a pixel's sides differ no more
MANY_PACKETS = 500              # to look through for the stream that moves


def video_frames(path: Path | TarMember, start: float, conversions: set[str]) -> Iterator[Frame]:
    """Frames from the one on screen at `start` seconds, or a little before it, to the end. Raises BrokenVideoError."""
    with _opened(path) as (container, stream):
        if start > 2:
            container.seek(int(start / stream.time_base), stream=stream)
        first = next(container.decode(stream), None)
        reached = first is not None and first.time is not None and first.time <= start + LATE
    with _opened(path) as (container, stream):
        if start > 2 and reached:
            container.seek(int(start / stream.time_base), stream=stream)
        aspect = _pixel_aspect(stream)
        if stream.index != container.streams.video[0].index:
            conversions.add(f"stream {stream.index}")
        gap, time = 1 / float(stream.average_rate or 25), None
        for frame in _decoded(container, stream, conversions):
            time = frame.time if frame.time is not None else (0.0 if time is None else time + gap)
            turns = round((getattr(frame, "rotation", 0) or 0) / 90)
            upright = 1 / aspect if turns % 2 else aspect
            if upright != 1:
                conversions.add(f"pixel aspect {upright:.6g}")
            yield Frame(time, partial(_pixels, frame, turns, conversions), upright)


def _pixels(frame, turns: int, conversions: set[str], width: int | None = None,
            height: int | None = None) -> np.ndarray:
    def scaled(kind: str) -> np.ndarray:
        return frame.reformat(width, height, kind, interpolation="AREA" if width else None).to_ndarray()

    if (transfer := getattr(frame, "color_trc", None)) in HDR:
        conversions.add(HDR[transfer])
        pixels = to_sdr(scaled("rgb48le"), transfer, frame.color_primaries)
    elif _may_be_transparent(frame.format):
        pixels = frame.reformat(format="rgba").to_ndarray()
        if pixels[..., 3].min() < 255:
            conversions.add(ALPHA)
            pixels = over_black(pixels)
            if width:
                pixels = np.asarray(Image.fromarray(pixels).resize((width, height), Image.BOX))
        else:
            pixels = scaled("rgb24")
    else:
        pixels = scaled("rgb24")
    return np.rot90(pixels, k=turns)


def _may_be_transparent(form) -> bool:
    return form.name == "pal8" or any(component.is_alpha for component in form.components)


def _pixel_aspect(stream) -> float:
    """Width over height of a stored pixel. Raises BrokenVideoError if it cannot be."""
    ratio = Fraction(stream.sample_aspect_ratio or 1) or Fraction(1)
    if not 1 / WIDEST_PIXEL <= ratio <= WIDEST_PIXEL:
        raise BrokenVideoError(f"its pixels are said to be {ratio.numerator}:{ratio.denominator} wide, which no player "
                               "shows. Correct its sample aspect ratio")
    return float(ratio)


def _decoded(container, stream, conversions: set[str]) -> Iterator:
    """The frames of a stream, with the alpha that WebM keeps beside the pictures."""
    import av
    transparent = any(key.lower() == "alpha_mode" and value == "1" for key, value in stream.metadata.items())
    name = WEBM_ALPHA.get(stream.codec_context.name) if transparent else None
    if name is None:
        yield from container.decode(stream)
        return
    try:
        decoder = av.CodecContext.create(name, "r")
    except ValueError:          # PyAV's UnknownCodecError: built without libvpx
        conversions.add(ALPHA_LOST)
        yield from container.decode(stream)
        return
    decoder.extradata = stream.codec_context.extradata
    for packet in container.demux(stream):
        yield from decoder.decode(packet)


def _shown_stream(container, path: Path | TarMember):
    """The video stream that a player shows: the first that is no cover and moves. Raises BrokenVideoError."""
    streams = [stream for stream in container.streams.video
               if not int(getattr(stream, "disposition", 0)) & ATTACHED_PICTURE]
    if not streams:
        only = ", only a cover picture" if container.streams.video else ""
        raise BrokenVideoError(f"it has no video stream{only}")
    return streams[0] if len(streams) == 1 else container.streams[_moving_stream(path, [s.index for s in streams])]


def _moving_stream(path: Path | TarMember, indices: list[int]) -> int:
    """The first of these streams with more than one frame. Some containers do not tell a cover from a video."""
    packets = dict.fromkeys(indices, 0)
    with _container(path) as container:
        for count, packet in enumerate(container.demux([container.streams[index] for index in indices])):
            packets[packet.stream.index] += bool(packet.size)
            if count > MANY_PACKETS or min(packets.values()) > 1:
                break
    return next((index for index in indices if packets[index] > 1), indices[0])


@contextmanager
def _container(path: Path | TarMember):
    import av
    if isinstance(path, Path):
        with av.open(str(path)) as container:
            yield container
    else:
        with path.open() as file, av.open(file) as container:
            yield container


@contextmanager
def _opened(path: Path | TarMember):
    """The container and the stream that is shown, every failure of the decoder as BrokenVideoError."""
    import av
    try:
        with _container(path) as container:
            stream = _shown_stream(container, path)
            stream.thread_type = "AUTO"
            yield container, stream
    except (av.FFmpegError, OSError, EOFError) as error:
        raise BrokenVideoError(f"it cannot be decoded: {error}") from error
