"""Moving MNIST: digits that move through a dark square and bounce off its walls, as published or generated.

    python collect/moving_mnist.py --source mnist_test_seq.npy      # the published 10,000 videos of 20 frames
    python collect/moving_mnist.py --digits train-images-idx3-ubyte.gz --episodes 60000
    python collect/moving_mnist.py                                  # digits of a font, without any download

The published data is a test set without a training set: 10,000 videos of 20 frames of 64x64. Others train on generated
videos, or on a part of it. Here it is split 8:1:1 like other data, so results are not those of the published test set.
`mnist_files` describes its file formats.

Generated videos have `per_video` digits, chosen with replacement. Each starts at a random position and moves in a
random direction at constant `speed`, independently of others. Where they overlap, the brighter pixel counts. A wall
reflects the path exactly (the original generator stops at the wall for one frame). So positions are a folded straight
line, and all frames are computed at once. Positions are rounded to pixels only for drawing.

A batch of videos depends on (seed, number of the batch) alone, not on the number of processes.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

if not __package__:  # run as a file: import from the project's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageDraw, ImageFont

from collect.files import ReaderArgs, fill_store
from collect.mnist_files import PUBLISHED, VideoArray, open_video_array, read_array, read_idx
from configs import command
from configs.written import Written, recorded
from worldmodel.data.env_spec import EnvSpec
from worldmodel.data.storage import local_folder
from worldmodel.data.writer import Episode
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import Address, NotNegative, Pixels, Positive

BATCH = 50
"""Videos per batch. Another value generates other videos, since a batch shares a random generator."""
FONT_SIZES = (20, 24, 28)


@dataclass(frozen=True, kw_only=True)
class Args(ReaderArgs):
    """Make a store of Moving MNIST."""

    source: Path = Path()
    """File as published (mnist_test_seq.npy), or a .npz of it; by default videos are generated."""
    axes: str = ""
    """Order of the source's axes, such as tnhw; t is time, n the video; by default derived from its shape."""
    out: Address = Address("runs/moving_mnist/data.zarr")
    """Store to write; an unfinished one resumes."""
    digits: str = "font"
    """Images of digits: "font", a .npy, or MNIST's idx3-ubyte file. A .npy has uint8 (n, h, w). MNIST's may be gzipped,
    as it is published."""
    episodes: Positive = 10_000
    """Number of videos to generate."""
    length: Positive = 20
    """Frames per video, if it is generated or its source does not say."""
    per_video: Positive = 2
    """Digits per generated video."""
    speed: NotNegative = 3.6
    """Speed of a digit in pixels per frame."""
    size: Pixels = 64
    """Height and width of a generated frame in pixels."""
    channels: Literal[1, 3] = 3
    """Channels of a frame; 3 are equal copies."""


def font_digits() -> np.ndarray:
    """The ten digits in several sizes of Pillow's own font, centered, (n, 28, 28)."""
    pictures = []
    for size in FONT_SIZES:
        font = ImageFont.load_default(size)
        for digit in "0123456789":
            picture = Image.new("L", (28, 28))
            ImageDraw.Draw(picture).text((14, 14), digit, 255, font, anchor="mm", stroke_width=1)
            pictures.append(np.asarray(picture))
    return np.stack(pictures)


def load_digits(args: Args) -> np.ndarray:
    """The images of digits (n, h, w), uint8; `UserError` if they are larger than a frame."""
    path = Path(args.digits)
    if args.digits == "font":
        digits = font_digits()
    elif not path.is_file():
        raise UserError(f'{path} does not exist; give a file of digits, or "font"')
    elif path.suffix == ".npy":
        digits = np.array(read_array(path, path, (3,), "digits are uint8 (n, h, w)"))
    else:
        digits = read_idx(path)
    if max(digits.shape[1:]) > args.size or not len(digits):
        raise UserError(
            f"{len(digits)} digits of {digits.shape[1:]} do not fit into frames of {args.size}; set a larger --size"
        )
    return digits


def bounce(start: np.ndarray, step: np.ndarray, length: int, room: np.ndarray) -> np.ndarray:
    """Positions (n, t, 2) from a start (n, 2) with steps (n, 2) per frame, reflected at 0 and at `room` (2)."""
    straight = start[:, None] + step[:, None] * np.arange(length)[:, None]
    return room - np.abs(straight % np.maximum(2 * room, 1e-9) - room)


def draw_digits(frames: np.ndarray, digits: np.ndarray, corners: np.ndarray) -> None:
    """Draw one digit (n, h, w) into each video (n, t, H, W), with upper left corners (n, t, 2) as y, x."""
    n, t = np.indices(corners.shape[:2])
    windows = sliding_window_view(frames, digits.shape[1:], axis=(2, 3), writeable=True)  # type: ignore[call-overload]
    at = (n, t, corners[..., 0], corners[..., 1])  # one window per frame, so no pixel is written twice
    windows[at] = np.maximum(windows[at], digits[:, None])


def make_videos(args: Args, digits: np.ndarray, batch: int) -> list[Episode]:
    """Generate a batch of videos; an incomplete last batch is the start of a complete one."""
    rng = np.random.default_rng([args.seed, batch])
    room = args.size - np.array(digits.shape[1:], float)
    frames = np.zeros((BATCH, args.length, args.size, args.size), np.uint8)
    for _ in range(args.per_video):
        chosen = digits[rng.integers(len(digits), size=BATCH)]
        angle = rng.uniform(0, 2 * np.pi, BATCH)
        step = args.speed * np.stack([np.sin(angle), np.cos(angle)], 1)
        path = bounce(rng.uniform(0, room, (BATCH, 2)), step, args.length, room)
        draw_digits(frames, chosen, np.rint(path).astype(int))
    return [make_episode(video, args.channels) for video in frames[: args.episodes - batch * BATCH]]


def make_episode(video: np.ndarray, channels: int) -> Episode:
    """(t, h, w) -> frames (t, h, w, c)."""
    return {"frames": np.repeat(video[..., None], channels, axis=-1)}


def read_videos(videos: VideoArray, channels: int, batch: int) -> list[Episode]:
    """Read a batch of the published videos."""
    return [make_episode(video, channels) for video in videos.read(batch * BATCH, (batch + 1) * BATCH)]


def batches(episodes: int) -> list[int]:
    return list(range(-(-episodes // BATCH)))


def import_published(args: Args) -> None:
    with open_video_array(args.source, args.axes, args.length, local_folder(args.out)) as videos:
        env_spec = EnvSpec(name="moving_mnist", frame_shape=(videos.size("h"), videos.size("w"), args.channels))
        how: dict[str, Any] = {"videos": list(videos.shape)}
        if videos.axes != PUBLISHED:
            how["axes"] = videos.axes
        fill_store(args, env_spec, batches(videos.size("n")), partial(read_videos, videos, args.channels), **how)


def make_store(args: Args) -> None:
    digits = load_digits(args)
    env_spec = EnvSpec(name="moving_mnist", frame_shape=(args.size, args.size, args.channels))
    how = {name: getattr(args, name) for name in ("episodes", "length", "per_video", "speed")}
    fingerprint = hashlib.sha256(digits.tobytes()).hexdigest()[:16]
    fill_store(args, env_spec, batches(args.episodes), partial(make_videos, args, digits), **how, digits=fingerprint)


def main(args: Args) -> Written:
    if args.source == Path():
        make_store(args)
    elif args.source.is_file():
        import_published(args)
    else:
        raise UserError(f"{args.source} is not a file; give mnist_test_seq.npy, or leave --source out")
    return recorded(args.out)


if __name__ == "__main__":
    command(main, "collect")
