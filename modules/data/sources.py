"""Clips and pictures from wherever they are: a folder, or WebDataset shards."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .clip_folder import ClipFolder, ClipFolderError, find_clips
from .clips import ClipSettings
from .cutting import Footage, Note, cut_clips
from .folder_files import find_files, first_reasons, listed, spread
from .frames import CONVERSIONS
from .image_folder import STILLS, ImageFolder, ImageFolderError, Picture, find_images, usable
from .image_sequences import PICTURES, is_animated
from .images import ImageSettings
from .shards import Sample, ShardError, Shards, names_shards, read_shards, shard_files
from .tar_files import TarMember
from .video import VIDEOS

REPORT_LINES = 100              # about single samples
Tick = Callable[[], None]


def clips_at(path: Path | str, settings: ClipSettings, tick: Tick = lambda: None) -> ClipFolder:
    """The clips of a folder, or of shards: a .tar, a pattern like clips/{000..010}.tar, or a folder that holds .tar
    files and nothing else that is trained on.

    `tick` is called often and may raise to stop. Raises ClipFolderError if there is no clip: it says what was found.
    """
    path = Path(path).expanduser()
    if names_shards(path) or path.is_dir() and shard_files(path) and not find_files(path, tick).sources:
        return find_shard_clips(path, settings, tick)
    return find_clips(path, settings, tick)


def images_at(path: Path | str, settings: ImageSettings, tick: Tick = lambda: None) -> ImageFolder:
    """The pictures of a folder, or of shards: a .tar, a pattern, or a folder that holds .tar files and no picture.

    `tick` is called often and may raise to stop. Raises ImageFolderError if there is no picture.
    """
    path = Path(path).expanduser()
    if names_shards(path) or path.is_dir() and shard_files(path) and not any(
            file.suffix.lower() in STILLS for file in path.rglob("*")):
        return find_shard_images(path, settings, tick)
    return find_images(path, settings, tick)


def find_shard_clips(path: Path, settings: ClipSettings, tick: Tick = lambda: None) -> ClipFolder:
    """Cut the videos of shards into clips as `find_clips` does those of a folder; they are read where they lie.

    A sample's video is its file with the ending of a video, or an animated WebP, PNG or GIF; its caption is that of the
    .txt, else of the .json. Samples that are broken or have no video are counted in the report. Raises ClipFolderError.
    """
    shards = _read(path, ClipFolderError, tick)
    videos, notes = _chosen(shards, _is_video, "video", tick)
    clips, cut_notes = cut_clips([Footage(sample.name, video, (), sample.caption) for sample, video in videos],
                                 settings, tick)
    notes += _grouped(cut_notes)
    if not clips:
        raise ClipFolderError(_nothing("clip", path, notes))
    return ClipFolder(path, settings, tuple(spread(clips, settings.max_clips, "clips", notes)), tuple(notes))


def find_shard_images(path: Path, settings: ImageSettings, tick: Tick = lambda: None) -> ImageFolder:
    """The pictures of shards as `find_images` gives those of a folder; they are read where they lie.

    A sample's caption is that of the .txt, else of the .json. Raises ImageFolderError.
    """
    shards = _read(path, ImageFolderError, tick)
    chosen, notes = _chosen(shards, lambda member: member.suffix.lower() in STILLS, "picture", tick)
    pictures, told = usable([Picture(member, sample.name, sample.caption or "") for sample, member in chosen],
                            settings, tick)
    notes += told
    if not pictures:
        raise ImageFolderError(_nothing("picture", path, notes))
    return ImageFolder(path, settings, tuple(spread(pictures, settings.max_images, "pictures", notes)), tuple(notes))


def _read(path: Path, error: type[ValueError], tick: Tick) -> Shards:
    try:
        return read_shards(path, tick)
    except ShardError as problem:
        raise error(str(problem)) from problem


def _chosen(shards: Shards, wanted: Callable[[TarMember], bool], kind: str, tick: Tick
            ) -> tuple[list[tuple[Sample, TarMember]], list[str]]:
    """[(sample, its file that is wanted)], and notes about the shards and the samples without one or with several."""
    chosen, without, several = [], [], []
    for number, sample in enumerate(shards.samples):
        if number % 100 == 0:
            tick()
        member, count = sample.first(wanted)
        if member is None:
            without.append(sample.name)
            continue
        chosen.append((sample, member))
        if count > 1:
            several.append(sample.name)
    notes = [f"shards: {len(shards.files)}, samples: {len(shards.samples)}, with a {kind}: {len(chosen)}"]
    if without:
        notes.append(f"{listed(without)}: samples without a {kind}")
    if several:
        notes.append(f"{listed(several)}: samples with several {kind}s, the first is used")
    return chosen, notes + shards.notes


def _is_video(member: TarMember) -> bool:
    ending = member.suffix.lower()
    return ending in VIDEOS or ending in PICTURES and is_animated(member)


def _grouped(notes: list[Note]) -> list[str]:
    """A line for each thing that is said of samples, the frequent first; not all if they are too many to read."""
    names: dict[str, list[str]] = {}
    for name, text in notes:
        names.setdefault(text, []).append(name)
    texts = sorted(names, key=lambda text: (text not in CONVERSIONS.values(), -len(names[text])))
    lines = [f"{listed(names[text])}: {text}" for text in texts]
    left_out = len(lines) - REPORT_LINES
    return lines[:REPORT_LINES] + ([f"lines about other samples left out: {left_out}"] if left_out > 0 else [])


def _nothing(kind: str, path: Path, notes: list[str]) -> str:
    return f"No usable {kind} in {path}: {first_reasons(notes)}."
