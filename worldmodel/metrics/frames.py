"""How far predicted frames are from true ones: NMSE and PSNR of each frame.

Frames are uint8 (..., h, w, c); both figures have the leading shape.
"""

from __future__ import annotations

import numpy as np


def squared_error(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean squared error with pixels in [0, 1]."""
    difference = prediction.astype(np.float32) - truth.astype(np.float32)
    return np.square(difference / 255).mean((-3, -2, -1), dtype=np.float64)


def nmse(prediction: np.ndarray, truth: np.ndarray, variance: float) -> np.ndarray:
    """Mean squared error over the variance of the data (sections 4.1 and 4.7): 1 is what the mean colour scores."""
    return squared_error(prediction, truth) / variance


def psnr(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB; equal frames count as if they were half a grey level off (54 dB)."""
    return -10 * np.log10(np.maximum(squared_error(prediction, truth), (0.5 / 255) ** 2))
