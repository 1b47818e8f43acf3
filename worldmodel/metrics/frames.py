"""Distance of predicted frames from the ground truth: NMSE and PSNR of each frame.

Frames are uint8 (..., h, w, c); results have shape (...).
"""

from __future__ import annotations

import numpy as np


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
