"""Makes frames from camera pictures, and from the images of videos, which are cropped to the center square."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from envs.images import resize_image
from worldmodel.utils.errors import UserError


def is_picture(shape: tuple[int, ...], dtype: np.dtype[Any] | None) -> bool:
    """Whether an array is a picture of bytes: (h, w), (h, w, c) or (c, h, w), of 1 or 3 channels."""
    return dtype == np.uint8 and min(shape, default=0) > 0 and (len(shape) == 2 or bool(channel_axes(shape)))


def channel_axes(shape: tuple[int, ...]) -> list[int]:
    """The axes of a picture with three axes that can be its 1 or 3 channels, the usual last axis first."""
    return [axis for axis in (2, 0) if len(shape) == 3 and shape[axis] in (1, 3)]


def frames_of(cameras: Sequence[np.ndarray], size: int) -> np.ndarray:
    """The frames (t, h, w, 3) of the pictures (t, ...) of each camera, scaled as a whole and put side by side."""
    views = []
    for pictures in cameras:
        if channel_axes(pictures.shape[1:])[:1] == [0]:
            pictures = np.moveaxis(pictures, 1, 3)
        if size or pictures.shape[3:] != (3,):
            pictures = np.stack([resize_image(picture, size) for picture in pictures])
        views.append(pictures)
    if len(heights := {view.shape[1] for view in views}) > 1:
        raise UserError(f"the pictures have heights {sorted(heights)}; give a --size to put them side by side")
    return np.concatenate(views, axis=2)


def center_square(image: Image.Image, size: int, aspect: float = 1.0) -> np.ndarray:
    """The center square, scaled to (size, size, 3); `aspect` is the width of a pixel over its height.

    The filter includes pixels outside of the square, so the result equals scaling the whole image and then cropping.
    """
    side = min(image.width * aspect, image.height)
    left, top = (image.width - side / aspect) / 2, (image.height - side) / 2
    box = (max(left, 0), max(top, 0), min(left + side / aspect, image.width), min(top + side, image.height))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box))


def on_white(image: Image.Image) -> Image.Image:
    """An RGBA image on a white background."""
    page = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(page, image).convert("RGB")
