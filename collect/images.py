"""Makes frames of images: observations are scaled as a whole, images of videos are cropped to the center square."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from PIL import Image

from worldmodel.utils.errors import UserError


def is_image(space: spaces.Space[Any]) -> bool:
    """Whether a space is an image: uint8 of shape (h, w), (h, w, 1) or (h, w, 3)."""
    shape = space.shape or ()
    bytes_ = isinstance(space, spaces.Box) and space.dtype == np.uint8
    return bytes_ and min(shape, default=0) > 0 and (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3)))


def resize_image(picture: np.ndarray, size: int) -> np.ndarray:
    """Scale such an image to (size, size, 3) without cropping; size 0 keeps its height and width."""
    image = Image.fromarray(picture.squeeze(-1) if picture.shape[2:] == (1,) else picture).convert("RGB")
    smaller = size <= min(image.size)
    to = (size, size) if size else image.size
    return np.array(image.resize(to, Image.Resampling.BOX if smaller else Image.Resampling.BILINEAR))


def is_picture(shape: tuple[int, ...], dtype: np.dtype[Any] | None) -> bool:
    """Whether an array is a picture of bytes: (h, w), (h, w, c) or (c, h, w), of 1 or 3 channels."""
    return dtype == np.uint8 and min(shape, default=0) > 0 and (len(shape) == 2 or bool(channel_axes(shape)))


def channel_axes(shape: tuple[int, ...]) -> list[int]:
    """Which axes of a picture's three can be that of its 1 or 3 channels; the last one is the usual one."""
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
