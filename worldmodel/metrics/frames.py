"""Distance of predicted frames from the ground truth (NMSE and PSNR of each frame), and how much of a frame moves.

Frames are uint8 (..., h, w, c); results have shape (...).
"""

from __future__ import annotations

import numpy as np

MOVED = 40
"""A pixel shows something that moves if one of its colors differs from the background by more than this, of 255."""


def squared_error(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean squared error with pixels in [0, 1]."""
    difference = prediction.astype(np.float32) - truth.astype(np.float32)
    return np.square(difference / 255).mean((-3, -2, -1), dtype=np.float64)


def nmse(prediction: np.ndarray, truth: np.ndarray, variance: float) -> np.ndarray:
    """Mean squared error over the variance of the data (sections 4.1 and 4.7); predicting the mean color scores 1."""
    return squared_error(prediction, truth) / variance


def psnr(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB, at most 54: equal frames count as if they differed by half a gray level."""
    return -10 * np.log10(np.maximum(squared_error(prediction, truth), (0.5 / 255) ** 2))


def moving_pixels(frames: np.ndarray, background: np.ndarray) -> np.ndarray:
    """The share of pixels that show something other than the background.

    Args:
        frames: uint8 (n, t, h, w, c).
        background: What does not move in each clip (n, h, w, c): see `still_background`.

    Returns:
        (n, t), from 0 to 1.
    """
    difference = np.abs(frames.astype(np.int16) - background[:, None].astype(np.int16))
    return (difference.max(-1) > MOVED).mean((-2, -1))


def still_background(frames: np.ndarray) -> np.ndarray:
    """The median over time of clips (n, t, h, w, c): what stands still for at least half of a clip."""
    return np.median(frames, axis=1).astype(frames.dtype)
