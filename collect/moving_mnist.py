"""Moving MNIST: digits that fly through a dark square and bounce off its walls; as published, or made here.

    python collect/moving_mnist.py --source mnist_test_seq.npy      # the published 10,000 videos of 20 frames
    python collect/moving_mnist.py --digits train-images-idx3-ubyte.gz --episodes 60000
    python collect/moving_mnist.py                                  # digits of a font: nothing to fetch

What is published is a test set without a training set, uint8 (20, 10000, 64, 64). People train on videos they make,
or on a part of it; here it is split 8:1:1 like all else, so numbers from it are not those of the published test.

Made here: `per_video` digits, drawn with replacement, begin anywhere, fly in any direction at one `speed`, and do not
see each other; where they overlap, the brighter pixel counts. A wall mirrors the path: the distance that goes beyond
it comes back. (The generator of the publication stops at the wall for that frame.) So a position is the straight
path, folded, and all frames are computed at once. Positions are rounded to whole pixels only for drawing.

A batch of videos depends on (seed, number of the batch) alone, by however many processes they are made.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import sys
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

if not __package__:  # run as a file: the folder above is where `collect` is found
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageDraw, ImageFont

from collect.files import Files, fill
from configs import command
from worldmodel.errors import UserError
from worldmodel.settings import NotNegative, Pixels, Positive
from worldmodel.world import World
from worldmodel.writer import Episode

BATCH = 50
"""Videos made, or read, at a time. Part of what is made, since a batch draws its numbers together."""
FONT_SIZES = (20, 24, 28)
IDX_IMAGES = 0x00000803
"""How a file of MNIST images begins: bytes, in three dimensions."""


@dataclass(frozen=True, kw_only=True)
class Args(Files):
    """Make a store of Moving MNIST."""

    source: Path = Path()
    """mnist_test_seq.npy as published; without it videos are made."""
    out: Path = Path("runs/moving_mnist/data.zarr")
    """The store; one that is not complete goes on."""
    digits: str = "font"
    """Pictures to make videos of: "font", a .npy of uint8 (n, h, w), or MNIST's idx3-ubyte file, gzipped or not."""
    episodes: Positive = 10_000
    """Videos to make."""
    length: Positive = 20
    """Frames of a video that is made."""
    per_video: Positive = 2
    """Digits in a video that is made."""
    speed: NotNegative = 3.6
    """Pixels that a digit flies in a frame."""
    size: Pixels = 64
    """Height and width of a frame that is made."""
    channels: Literal[1, 3] = 3
    """1, or 3 equal ones."""


def read_array(path: Path, dimensions: int, what: str) -> np.ndarray:
    """A .npy of uint8, mapped, not read."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}); fetch it again") from None
    if array.ndim != dimensions or array.dtype != np.uint8 or 0 in array.shape:
        raise UserError(f"{path} holds {array.dtype} {array.shape}, but {what}; give another file")
    return array


def read_idx(path: Path) -> np.ndarray:
    """The images (n, h, w) of an idx3-ubyte file, gzipped or not."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        magic, n, h, w = struct.unpack_from(">4I", data)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise UserError(f"{path} cannot be read ({error}); fetch it again") from None
    if magic != IDX_IMAGES or len(data) != 16 + n * h * w:
        raise UserError(f"{path} is not a whole idx3-ubyte file of images; give MNIST's train-images-idx3-ubyte.gz")
    return np.frombuffer(data, np.uint8, offset=16).reshape(n, h, w)


def font_digits() -> np.ndarray:
    """The ten digits in some sizes of Pillow's own font, (n, 28, 28), in the middle."""
    pictures = []
    for size in FONT_SIZES:
        font = ImageFont.load_default(size)
        for digit in "0123456789":
            picture = Image.new("L", (28, 28))
            ImageDraw.Draw(picture).text((14, 14), digit, 255, font, anchor="mm", stroke_width=1)
            pictures.append(np.asarray(picture))
    return np.stack(pictures)


def load_digits(args: Args) -> np.ndarray:
    """(n, h, w) uint8, not bigger than a frame."""
    path = Path(args.digits)
    if args.digits == "font":
        digits = font_digits()
    elif not path.is_file():
        raise UserError(f'{path} does not exist; give a file of digits, or "font"')
    elif path.suffix == ".npy":
        digits = np.array(read_array(path, 3, "digits are uint8 (n, h, w)"))
    else:
        digits = read_idx(path)
    if max(digits.shape[1:]) > args.size or not len(digits):
        raise UserError(f"{len(digits)} digits of {digits.shape[1:]} do not fit into frames of {args.size}")
    return digits


def fly(start: np.ndarray, step: np.ndarray, length: int, room: np.ndarray) -> np.ndarray:
    """Positions (n, t, 2) from a start (n, 2), by a step (n, 2) a frame, mirrored at 0 and at `room` (2)."""
    straight = start[:, None] + step[:, None] * np.arange(length)[:, None]
    return room - np.abs(straight % np.maximum(2 * room, 1e-9) - room)


def draw(frames: np.ndarray, digits: np.ndarray, corners: np.ndarray) -> None:
    """Draw a digit (n, h, w) into each video (n, t, H, W), its upper left corner at (n, t, 2) of y, x."""
    n, t = np.indices(corners.shape[:2])
    windows = sliding_window_view(frames, digits.shape[1:], axis=(2, 3), writeable=True)  # type: ignore[call-overload]
    at = (n, t, corners[..., 0], corners[..., 1])  # one window a frame, so none is written twice
    windows[at] = np.maximum(windows[at], digits[:, None])


def make(args: Args, digits: np.ndarray, batch: int) -> list[Episode]:
    """A batch of videos; a last one that is not full is the beginning of a full one."""
    rng = np.random.default_rng([args.seed, batch])
    room = args.size - np.array(digits.shape[1:], float)
    frames = np.zeros((BATCH, args.length, args.size, args.size), np.uint8)
    for _ in range(args.per_video):
        chosen = digits[rng.integers(len(digits), size=BATCH)]
        angle = rng.uniform(0, 2 * np.pi, BATCH)
        step = args.speed * np.stack([np.sin(angle), np.cos(angle)], 1)
        path = fly(rng.uniform(0, room, (BATCH, 2)), step, args.length, room)
        draw(frames, chosen, np.rint(path).astype(int))
    return [episode(video, args.channels) for video in frames[: args.episodes - batch * BATCH]]


def episode(video: np.ndarray, channels: int) -> Episode:
    """(t, h, w) -> frames (t, h, w, c)."""
    return {"frames": np.repeat(video[..., None], channels, axis=-1)}


def read(path: Path, channels: int, batch: int) -> list[Episode]:
    """A batch of the published videos (t, n, h, w)."""
    videos = np.load(path, mmap_mode="r")[:, batch * BATCH : (batch + 1) * BATCH]
    return [episode(videos[:, i], channels) for i in range(videos.shape[1])]


def batches(episodes: int) -> list[int]:
    return list(range(-(-episodes // BATCH)))


def fill_as_published(args: Args) -> None:
    videos = read_array(args.source, 4, "Moving MNIST is uint8 (frames, videos, height, width)")
    world = World(name="moving_mnist", frame_shape=(*videos.shape[2:], args.channels))
    fill(args, world, batches(videos.shape[1]), partial(read, args.source, args.channels), videos=list(videos.shape))


def fill_with_made(args: Args) -> None:
    digits = load_digits(args)
    world = World(name="moving_mnist", frame_shape=(args.size, args.size, args.channels))
    how = {name: getattr(args, name) for name in ("episodes", "length", "per_video", "speed")}
    fingerprint = hashlib.sha256(digits.tobytes()).hexdigest()[:16]
    fill(args, world, batches(args.episodes), partial(make, args, digits), **how, digits=fingerprint)


def main(args: Args) -> None:
    if args.source == Path():
        fill_with_made(args)
    elif args.source.is_file():
        fill_as_published(args)
    else:
        raise UserError(f"{args.source} is no file; give mnist_test_seq.npy, or no source to make videos")


if __name__ == "__main__":
    command(main, "collect")
