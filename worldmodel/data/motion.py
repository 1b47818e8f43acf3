"""How much of the picture moves in a store's frames, and how small the moving regions are, to choose model sizes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from worldmodel.data.clips import Clips
from worldmodel.data.store import Store

CHANGE = 15
"""A pixel has changed if one of its colors has changed by more than this, of 255."""


@dataclass(frozen=True)
class Motion:
    """What changes from a frame to the next."""

    changed: float
    """Mean fraction of the pixels that change."""
    still: float
    """Fraction of the steps in which nothing changes."""
    smallest: float
    """Area in pixels of small regions that change: one in ten is smaller. 0 if nothing ever changes."""


def measure_motion(store: Store, n: int = 512) -> Motion:
    """Measure the motion in at most n pairs of frames, spread over all episodes."""
    pairs = Clips(store, "all", 2, ["frames"], cache="off")
    frames = pairs.fixed_sample(min(n, len(pairs)))["frames"].astype(np.int16)
    changed = np.abs(frames[:, 1] - frames[:, 0]).max(-1) > CHANGE
    areas = [ndimage.sum_labels(picture, *label(picture)) for picture in changed if picture.any()]
    smallest = float(np.quantile(np.concatenate(areas), 0.1)) if areas else 0.0
    return Motion(float(changed.mean()), float(1 - changed.any((1, 2)).mean()), smallest)


def label(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number of the region that each pixel is in, and the numbers of all regions; diagonals connect."""
    regions, n = ndimage.label(picture, np.ones((3, 3)))
    return regions, np.arange(1, n + 1)
