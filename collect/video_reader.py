"""Makes frames of video files, for all readers of videos; collect/video.py documents the decisions."""

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

from collect.episodes import cut_episode
from collect.files import BrokenFile, Filled, ReaderArgs, fill_store, names_digest, reason, with_labels
from collect.gif_decoding import gif_images
from collect.images import center_square, on_white
from collect.steps import MIN_BLOCK, cut_in_time
from collect.video_decoding import orient, shown_frames, to_rgb, video_stream
from worldmodel.data.env_spec import EnvSpec
from worldmodel.data.writer import Episode
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import Count, NotNegative, Pixels, Positive

SUFFIXES = (".avi", ".mp4", ".mkv", ".webm", ".mov", ".gif")


LONGEST = 10 * 3600.0
"""Longest video in seconds. Longer ones have damaged time stamps, and resampling them would fill the memory."""


TimedFrame = tuple[float, float, Callable[[int], np.ndarray]]
"""Start and end of a frame in seconds, and a function from a size to its pixels (size, size, 3)."""


@dataclass(frozen=True, kw_only=True)
class VideoArgs(ReaderArgs):
    """Settings of all readers of videos."""

    source: Path = Path()
    """Folder of the data as published."""
    size: Pixels = 64
    """Height and width of a frame in pixels."""
    fps: NotNegative = 0.0
    """Frames per second to resample videos to; 0 uses each frame once."""
    frame_stride: Positive = 1
    """Keep every N-th of these frames."""
    max_frames: Count = 0
    """Keep at most the first N frames of a video; 0 keeps all."""
    min_frames: Positive = 16
    """Skip videos with fewer frames; 16 is the paper's clip length."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.max_frames < self.min_frames:
            raise UserError(f"max_frames {self.max_frames} is below min_frames {self.min_frames}; lower min_frames")

    @property
    def shortest_part(self) -> int:
        """Frames that each part of a video has at least, if it is cut by time."""
        return max(MIN_BLOCK, self.min_frames)


@dataclass(frozen=True)
class Clip:
    """A video file, its name for messages, and its labels."""

    path: Path
    name: str
    values: dict[str, int] = field(default_factory=dict)
    """`label` and `split`, if known."""

    def __str__(self) -> str:
        return self.name


def gif_frames(path: Path) -> Iterator[TimedFrame]:
    """The frames of a GIF; use each one before requesting the next."""
    start = 0
    for thousandths, page in gif_images(path):
        end = start + thousandths
        yield start / 1000, end / 1000, partial(gif_frame, page)
        start = end


def gif_frame(page: Image.Image, size: int) -> np.ndarray:
    return center_square(on_white(page), size)


def video_frames(path: Path) -> Iterator[TimedFrame]:
    """The frames of a video; each lasts until the next, the last one for a period."""
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
    """The frame on screen in the middle of each period of 1 / fps seconds; at fps 0 each frame once."""
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
    except Exception as error:  # decoders raise errors of any type
        raise BrokenFile(f"{name}: {reason(error)}") from None
    if len(frames) < args.min_frames:
        raise BrokenFile(f"{name}: it has {len(frames)} frames, fewer than min_frames, {args.min_frames}")
    return np.stack(frames)


def read_video(args: VideoArgs, length: int, in_time: bool, clip: Clip) -> list[Episode]:
    """The episodes of a video: one, or its segments, or its parts for each split."""
    frames = decode(clip.path, clip.name, args)
    if len(frames) < length:
        raise BrokenFile(f"{clip.name}: it has {len(frames)} frames, fewer than a segment, {length}")
    found = [with_labels(part, **clip.values) for part in cut_episode({"frames": frames}, length)]
    return [part for one in found for part in (cut_in_time(one, args.shortest_part) if in_time else (one,))]


def fps_of(clips: Sequence[Clip]) -> float:
    """Frames per second of the first readable video."""
    for clip in clips:
        with contextlib.suppress(Exception):  # `fill_store` reports the error
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
    in_time: bool = False,
) -> Filled[Clip]:
    """Fill a store with clips.

    Args:
        args: Settings of the reader.
        name: Name of the data.
        fps: Frames per second before `frame_stride`.
        clips: Videos to read.
        classes: Names of the labels.
        length: Frames per segment; 0 keeps videos whole.
        noted: Also record the clip of each episode.
        in_time: Cut each video by time into parts for training, validation and testing.
    """
    shape = (args.size, args.size, 3)
    return fill_store(
        args,
        EnvSpec(name=name, frame_shape=shape, classes=classes, fps=fps / args.frame_stride),
        clips,
        partial(read_video, args, length, in_time),
        noted=noted,
        **{key: getattr(args, key) for key in ("fps", "frame_stride", "max_frames", "min_frames")},
        length=length,
        **({"cut_in_time": True} if in_time else {}),  # stores of earlier versions have no such setting
        files=names_digest(f"{c.name} {c.values}" for c in clips),
    )
