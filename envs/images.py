"""Converts observations that are images to frames."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from PIL import Image


def is_image(space: spaces.Space[Any]) -> bool:
    """Whether a space is an image: uint8 of shape (h, w), (h, w, 1) or (h, w, 3)."""
    shape = space.shape or ()
    bytes_ = isinstance(space, spaces.Box) and space.dtype == np.uint8
    return bytes_ and min(shape, default=0) > 0 and (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3)))


def resize_image(picture: np.ndarray, size: int) -> np.ndarray:
    """Scale an image that fits `is_image` to (size, size, 3) without cropping; size 0 keeps its height and width."""
    image = Image.fromarray(picture.squeeze(-1) if picture.shape[2:] == (1,) else picture).convert("RGB")
    smaller = size <= min(image.size)
    to = (size, size) if size else image.size
    return np.array(image.resize(to, Image.Resampling.BOX if smaller else Image.Resampling.BILINEAR))
