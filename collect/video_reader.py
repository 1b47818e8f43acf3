"""How all readers of videos make frames of them; collect/video.py says how."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import av
import numpy as np
from PIL import Image

from collect.files import BrokenFile, Filled, ReaderArgs, fill_store, names_digest, reason, with_labels
from collect.gif_decoding import gif_images
from collect.images import center_square, on_white
from collect.video_decoding import orient, shown_frames, to_rgb, video_stream
from worldmodel.data.env_spec import EnvSpec
from worldmodel.data.writer import Episode
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import Count, NotNegative, Pixels, Positive

SUFFIXES = (".avi", ".mp4", ".mkv", ".webm", ".mov", ".gif")


LONGEST = 10 * 3600.0
"""Seconds of a video. The time stamps of a longer one are damaged, and resampling would fill the memory with it."""


TimedFrame = tuple[float, float, Callable[[int], np.ndarray]]
"""When a frame comes, when it goes, and what makes its (size, size, 3) of it."""


@dataclass(frozen=True, kw_only=True)
class VideoArgs(ReaderArgs):
    """What all readers of videos are asked."""

    source: Path = Path()
    """Folder of the data as published."""
    size: Pixels = 64
    """Height and width of a frame."""
    fps: NotNegative = 0.0
    """Frames a second to resample to; 0 takes each frame once."""
    frame_stride: Positive = 1
    """Keep each so manieth frame of those."""
    max_frames: Count = 0
    """Keep at most so many frames of a video, its first; 0 keeps all."""
    min_frames: Positive = 16
    """Skip videos of fewer frames; 16 is what the paper trains on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.max_frames < self.min_frames:
            raise UserError(f"max_frames {self.max_frames} is below min_frames {self.min_frames}; lower min_frames")


@dataclass(frozen=True)
class Clip:
    """A video file, its name for people, and what is known of it."""

    path: Path
    name: str
    values: dict[str, int] = field(default_factory=dict)
    """`label` and `split`, if known."""

    def __str__(self) -> str:
        return self.name


def gif_frames(path: Path) -> Iterator[TimedFrame]:
    """The frames of a GIF; each must be made before the next is asked for."""
    start = 0
    for thousandths, page in gif_images(path):
        end = start + thousandths
        yield start / 1000, end / 1000, partial(gif_frame, page)
        start = end


def gif_frame(page: Image.Image, size: int) -> np.ndarray:
    return center_square(on_white(page), size)


def video_frames(path: Path) -> Iterator[TimedFrame]:
    """The frames of a video; each is on screen until the next, the last one for a period."""
    with av.open(str(path)) as container:
        stream, rate = video_stream(container)
        aspect = float(stream.sample_aspect_ratio or 1)
        held: av.VideoFrame | None = None
        start = zero = 0.0
        for frame in shown_frames(container):
            if held is None:
                zero = frame.time or 0.0
            else:
                now = start + 1 / rate if frame.time is None else frame.time - zero
                yield start, now, partial(video_frame, held, aspect)
                start = now
            held = frame
        if held is not None:
            yield start, start + 1 / rate, partial(video_frame, held, aspect)


def video_frame(frame: av.VideoFrame, aspect: float, size: int) -> np.ndarray:
    return orient(center_square(to_rgb(frame), size, aspect), frame)


def timed_frames(path: Path) -> Iterator[TimedFrame]:
    return gif_frames(path) if path.suffix.lower() == ".gif" else video_frames(path)


def resampled(shown: Iterator[TimedFrame], fps: float) -> Iterator[Callable[[int], np.ndarray]]:
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


def decode(path: Path, name: str, args: VideoArgs) -> np.ndarray:
    """The frames (t, size, size, 3) of a file."""
    try:
        with contextlib.closing(timed_frames(path)) as shown:  # type: ignore[type-var]
            chosen = itertools.islice(
                resampled(shown, args.fps), 0, args.max_frames * args.frame_stride or None, args.frame_stride
            )
            frames = [make(args.size) for make in chosen]
    except Exception as error:  # each decoder has errors of its own
        raise BrokenFile(f"{name}: {reason(error)}") from None
    if len(frames) < args.min_frames:
        raise BrokenFile(f"{name}: it has {len(frames)} frames, and {args.min_frames} are asked for")
    return np.stack(frames)


def read_video(args: VideoArgs, length: int, clip: Clip) -> list[Episode]:
    """The episodes of a video: one, or its pieces."""
    frames = decode(clip.path, clip.name, args)
    if len(frames) < length:
        raise BrokenFile(f"{clip.name}: it has {len(frames)} frames, and a piece has {length}")
    starts = range(0, len(frames) - length + 1, length) if length else [0]
    return [with_labels({"frames": frames[s : s + length] if length else frames}, **clip.values) for s in starts]


def fps_of(clips: Sequence[Clip]) -> float:
    """Frames a second of the first video that can be read."""
    for clip in clips:
        with contextlib.suppress(Exception):  # `fill` will say what is wrong with it
            if clip.path.suffix.lower() == ".gif":
                times = [end for _, end, _ in gif_frames(clip.path)]
                return round(len(times) / times[-1], 3)
            with av.open(str(clip.path)) as container:
                return video_stream(container)[1]
    return EnvSpec(name="").fps


def fill_store_with_videos(
    args: VideoArgs,
    name: str,
    fps: float,
    clips: Sequence[Clip],
    classes: tuple[str, ...] = (),
    length: int = 0,
    noted: bool = False,
) -> Filled[Clip]:
    """A store of clips; `fps` are the frames a second before `frame_stride`."""
    shape = (args.size, args.size, 3)
    return fill_store(
        args,
        EnvSpec(name=name, frame_shape=shape, classes=classes, fps=fps / args.frame_stride),
        clips,
        partial(read_video, args, length),
        noted=noted,
        **{key: getattr(args, key) for key in ("fps", "frame_stride", "max_frames", "min_frames")},
        length=length,
        files=names_digest(f"{c.name} {c.values}" for c in clips),
    )
