"""A store of any folder of videos; and how all readers of videos make frames of them.

    python collect/video.py --source my_videos --out runs/mine/data.zarr --size 64 --labels

Geometry. The shorter side is scaled to `size`, then the centre is cut out. Both are one step: the central square of
the source is resampled by Pillow's antialiased bilinear filter, so that no side is rounded on the way. Pixels that are
not square, and videos that are to be turned, are shown as a player shows them.

Time. Without `fps` each frame is taken once, whatever its rate, and the store's clock is that of the first video that
can be read: right for a folder of one rate. With `fps` each video is resampled: frame k is the one on screen in the
middle of the k-th period of 1 / fps seconds, so that a video of that rate stays as it is, and neither rounded time
stamps nor the frames of a GIF, each of which lasts as long as it says, move the clock.

Decoding. Videos are read by `film`, GIFs by `gif`; what is transparent becomes white, as on a page. A torn file is
skipped. A video is held in memory whole, at its small size; `max_frames` bounds it.

Split. Whole videos are split 8:1:1 by the store. Pieces of one video stay in one split, unless there are so few
videos that a split would be empty: then the pieces are drawn one by one, and near pieces are in different splits.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

if not __package__:  # run as a file: the folder above is where `collect` is found
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import av
import numpy as np
from PIL import Image

from collect.files import BrokenFile, Files, Filled, fill, fingerprint, labelled, reason
from collect.film import film_frames, picture, upright, video_stream
from collect.gif import gif_pages
from collect.pictures import on_white, square
from configs import command
from worldmodel.errors import UserError
from worldmodel.layout import SPLITS, split_of
from worldmodel.settings import Count, NotNegative, Pixels, Positive
from worldmodel.world import World
from worldmodel.writer import Episode

SUFFIXES = (".avi", ".mp4", ".mkv", ".webm", ".mov", ".gif")
LONGEST = 10 * 3600.0
"""Seconds of a video. The time stamps of a longer one are damaged, and resampling would fill the memory with it."""
Moment = tuple[float, float, Callable[[int], np.ndarray]]
"""When a frame comes, when it goes, and what makes its (size, size, 3) of it."""


@dataclass(frozen=True, kw_only=True)
class Videos(Files):
    """What all readers of videos are asked."""

    source: Path = Path()
    """Folder of the data as published."""
    size: Pixels = 64
    """Height and width of a frame."""
    fps: NotNegative = 0.0
    """Frames a second to resample to; 0 takes each frame once."""
    every: Positive = 1
    """Keep each so manieth frame of those."""
    max_frames: Count = 0
    """Keep at most so many frames of a video, its first; 0 keeps all."""
    min_frames: Positive = 16
    """Skip videos of fewer frames; 16 is what the paper trains on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.max_frames < self.min_frames:
            raise UserError(f"max_frames {self.max_frames} is below min_frames {self.min_frames}; lower min_frames")


@dataclass(frozen=True, kw_only=True)
class Args(Videos):
    """Make a store of a folder of videos."""

    source: Path = Path()
    """Folder of videos (avi, mp4, mkv, webm, mov, gif), with any folders inside."""
    out: Path = Path("runs/videos/data.zarr")
    """The store; one that is not complete goes on."""
    labels: bool = False
    """The folder that a video lies in is its class."""
    length: Count = 0
    """Cut into pieces of so many frames, what is left over dropped; 0 keeps videos whole."""


@dataclass(frozen=True)
class Clip:
    """A video file, its name for people, and what is known of it."""

    path: Path
    name: str
    values: dict[str, int] = field(default_factory=dict)
    """`label` and `split`, if known."""

    def __str__(self) -> str:
        return self.name


def gif_moments(path: Path) -> Iterator[Moment]:
    """The frames of a GIF; each must be made before the next is asked for."""
    start = 0
    for thousandths, page in gif_pages(path):
        end = start + thousandths
        yield start / 1000, end / 1000, partial(page_frame, page)
        start = end


def page_frame(page: Image.Image, size: int) -> np.ndarray:
    return square(on_white(page), size)


def video_moments(path: Path) -> Iterator[Moment]:
    """The frames of a video; each is on screen until the next, the last one for a period."""
    with av.open(str(path)) as container:
        stream, rate = video_stream(container)
        aspect = float(stream.sample_aspect_ratio or 1)
        held: av.VideoFrame | None = None
        start = zero = 0.0
        for frame in film_frames(container):
            if held is None:
                zero = frame.time or 0.0
            else:
                now = start + 1 / rate if frame.time is None else frame.time - zero
                yield start, now, partial(film_frame, held, aspect)
                start = now
            held = frame
        if held is not None:
            yield start, start + 1 / rate, partial(film_frame, held, aspect)


def film_frame(frame: av.VideoFrame, aspect: float, size: int) -> np.ndarray:
    return upright(square(picture(frame), size, aspect), frame)


def moments(path: Path) -> Iterator[Moment]:
    return gif_moments(path) if path.suffix.lower() == ".gif" else video_moments(path)


def resampled(shown: Iterator[Moment], fps: float) -> Iterator[Callable[[int], np.ndarray]]:
    """What is on screen in the middle of each period of 1 / fps seconds; each frame once at fps 0."""
    k = 0
    for _, end, make in shown:
        if not fps:
            yield make
        elif end > LONGEST:
            raise ValueError(f"its frames would last for {end / 3600:,.0f} hours")
        while fps and (k + 0.5) / fps < end:
            yield make
            k += 1


def decode(path: Path, name: str, args: Videos) -> np.ndarray:
    """The frames (t, size, size, 3) of a file."""
    try:
        with contextlib.closing(moments(path)) as shown:  # type: ignore[type-var]
            chosen = itertools.islice(resampled(shown, args.fps), 0, args.max_frames * args.every or None, args.every)
            frames = [make(args.size) for make in chosen]
    except Exception as error:  # each decoder has errors of its own
        raise BrokenFile(f"{name}: {reason(error)}") from None
    if len(frames) < args.min_frames:
        raise BrokenFile(f"{name}: it has {len(frames)} frames, and {args.min_frames} are asked for")
    return np.stack(frames)


def read(args: Videos, length: int, clip: Clip) -> list[Episode]:
    """The episodes of a video: one, or its pieces."""
    frames = decode(clip.path, clip.name, args)
    if len(frames) < length:
        raise BrokenFile(f"{clip.name}: it has {len(frames)} frames, and a piece has {length}")
    starts = range(0, len(frames) - length + 1, length) if length else [0]
    return [labelled({"frames": frames[s : s + length] if length else frames}, **clip.values) for s in starts]


def rate_of(clips: Sequence[Clip]) -> float:
    """Frames a second of the first video that can be read."""
    for clip in clips:
        with contextlib.suppress(Exception):  # `fill` will say what is wrong with it
            if clip.path.suffix.lower() == ".gif":
                times = [end for _, end, _ in gif_moments(clip.path)]
                return round(len(times) / times[-1], 3)
            with av.open(str(clip.path)) as container:
                return video_stream(container)[1]
    return World(name="").fps


def fill_with_videos(
    args: Videos,
    name: str,
    fps: float,
    clips: Sequence[Clip],
    classes: tuple[str, ...] = (),
    length: int = 0,
    noted: bool = False,
) -> Filled[Clip]:
    """A store of clips; `fps` are the frames a second before `every`."""
    shape = (args.size, args.size, 3)
    return fill(
        args,
        World(name=name, frame_shape=shape, classes=classes, fps=fps / args.every),
        clips,
        partial(read, args, length),
        noted=noted,
        **{key: getattr(args, key) for key in ("fps", "every", "max_frames", "min_frames")},
        length=length,
        files=fingerprint(f"{c.name} {c.values}" for c in clips),
    )


def find(args: Args) -> tuple[list[Clip], tuple[str, ...]]:
    """The videos of a folder, by name, and their classes."""
    paths = sorted(p for p in args.source.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    classes = tuple(sorted({p.parent.name for p in paths})) if args.labels else ()
    loose = next((p.name for p in paths if p.parent == args.source), None)
    if args.labels and loose:
        raise UserError(f"{loose} has no class; with --labels each video lies in a folder of its class")
    clips = []
    for path, split in zip(paths, split_of(len(paths), args.seed), strict=True):
        values = {"label": classes.index(path.parent.name)} if args.labels else {}
        if args.length and len(paths) >= enough(args.seed):
            values["split"] = SPLITS.index(split)
        clips.append(Clip(path, str(path.relative_to(args.source)), values))
    return clips, classes


def enough(seed: int) -> int:
    """The number of videos from which on no split is empty."""
    return next(n for n in itertools.count(3) if len(set(split_of(n, seed))) == len(SPLITS))


def main(args: Args) -> None:
    clips, classes = find(args)
    if args.length and clips and "split" not in clips[0].values:
        print(f"{len(clips)} videos are too few to split: the pieces of one will be in several splits")
    name = args.source.resolve().name
    fps = args.fps or rate_of(clips)
    fill_with_videos(args, name, fps, clips, classes=classes, length=args.length)


if __name__ == "__main__":
    command(main, "collect")
