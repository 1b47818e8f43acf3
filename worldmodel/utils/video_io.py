"""Images and videos: grids, GIF and PNG files, and videos in TensorBoard.

All are uint8: an image (h, w, 3), a video (t, h, w, 3), several videos (n, t, h, w, 3).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from worldmodel.utils.files import write_atomic

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def with_colors(video: np.ndarray) -> np.ndarray:
    """Gray frames (..., h, w, 1) with three equal channels; frames in color as they are."""
    return video.repeat(3, -1) if video.shape[-1] == 1 else video


def video_grid(videos: np.ndarray) -> np.ndarray:
    """Videos (n, t, h, w, 3 or 1) as one image (n*h, t*w, 3), a row for each video."""
    return np.concatenate([np.concatenate(list(film), axis=1) for film in with_colors(videos)], axis=0)


def side_by_side(videos: Sequence[np.ndarray]) -> np.ndarray:
    """Put versions of the same videos, each (n, t, h, w, 3 or 1), next to each other: (t, n*h, len(videos)*w, 3)."""
    columns = [video.swapaxes(0, 1).reshape(video.shape[1], -1, *video.shape[3:]) for video in videos]
    return with_colors(np.concatenate(columns, axis=2))


def abs_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Absolute difference |a - b| of two uint8 arrays, as uint8."""
    return np.abs(a.astype(np.int16) - b).clip(0, 255).astype(np.uint8)


def upscale(frames: np.ndarray, factor: int) -> np.ndarray:
    """Enlarge (..., h, w, 3) to (..., factor*h, factor*w, 3) by repeating pixels."""
    return frames.repeat(factor, -3).repeat(factor, -2)


def add_labels(picture: np.ndarray, words: Sequence[str], height: int = 14) -> np.ndarray:
    """Add a white band of `height` pixels with evenly spaced words above an image (h, w, 3)."""
    band = Image.new("RGB", (picture.shape[1], height), "white")
    for i, word in enumerate(words):
        ImageDraw.Draw(band).text((i * picture.shape[1] // len(words) + 3, 1), word, fill="black")
    return np.concatenate([np.array(band), picture], axis=0)


def gif_bytes(video: np.ndarray, fps: float) -> bytes:
    """A video (t, h, w, 3) as a looping GIF."""
    images, file = [Image.fromarray(frame) for frame in video], io.BytesIO()
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)
    return file.getvalue()


def save_gif(path: Path, video: np.ndarray, fps: float) -> None:
    """Write a video (t, h, w, 3) as a looping GIF, atomically."""
    write_atomic(path, gif_bytes(video, fps))


def save_png(path: Path, picture: np.ndarray) -> None:
    """Write an image (h, w, 3) as a PNG, atomically."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", optimize=True)
    write_atomic(path, file.getvalue())


def add_video(writer: SummaryWriter, tag: str, video: np.ndarray, step: int, fps: float) -> None:
    """Log a video (t, h, w, 3) as an animated image; `SummaryWriter.add_video` would need moviepy."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    height, width = video.shape[1:3]
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif_bytes(video, fps))
    writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)
