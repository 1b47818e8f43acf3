"""Structural similarity (Wang et al., 2004) of frames.

    ((2 m_a m_b + c1) (2 s_ab + c2)) / ((m_a^2 + m_b^2 + c1) (s_a^2 + s_b^2 + c2))

of means, variances and covariance under a Gaussian window of 11 x 11 with sigma 1.5, c1 = (0.01 * 255)^2 and
c2 = (0.03 * 255)^2; averaged over the positions where the window is inside the frame, and over the channels. It is 1
for equal frames and in [-1, 1] in general. Other programs pad the frame or convert it to gray; their results differ.

Dimensions: h w space, c channels.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.utils.errors import UserError

WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def gaussian() -> Tensor:
    """The window's weights along one axis (11,), float64; they sum to 1."""
    x = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-x.square() / (2 * SIGMA**2))
    return weights / weights.sum()


def blur(x: Tensor, weights: Tensor) -> Tensor:
    """Local means of (b, 1, h, w) -> (b, 1, h - 10, w - 10)."""
    return F.conv2d(F.conv2d(x, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))


def ssim(a: np.ndarray, b: np.ndarray, device: str = "cpu", batch: int = 64) -> np.ndarray:
    """SSIM of pairs of frames.

    Args:
        a: uint8 (..., h, w, c).
        b: The same shape.
        device: "cpu" or "cuda".
        batch: Frames that are processed at a time.

    Returns:
        (...) float64.

    Raises:
        UserError: If the arrays are not frames of the same shape, or smaller than the window.
    """
    if a.shape != b.shape or a.dtype != np.uint8 or b.dtype != np.uint8 or a.ndim < 3:
        raise UserError(f"SSIM compares two arrays of uint8 frames, not {a.dtype} {a.shape} and {b.dtype} {b.shape}")
    *leading, h, w, c = a.shape
    if min(h, w) < WINDOW:
        raise UserError(f"SSIM has a window of {WINDOW} pixels, but these frames have {h} x {w}; use larger frames")
    weights, scores = gaussian().to(device), [np.zeros(0)]
    pairs = [x.reshape(-1, h, w, c) for x in (a, b)]
    for at in range(0, len(pairs[0]), batch):
        x, y = (torch.from_numpy(p[at : at + batch]).to(device, torch.float64) for p in pairs)
        scores.append(_compare(x.movedim(-1, 1), y.movedim(-1, 1), weights).cpu().numpy())
    return np.concatenate(scores).reshape(leading)


def _compare(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """(b, c, h, w) twice -> (b,)."""
    n, c = x.shape[:2]
    x, y = x.reshape(n * c, 1, *x.shape[2:]), y.reshape(n * c, 1, *y.shape[2:])
    mx, my = blur(x, weights), blur(y, weights)
    vx, vy = blur(x * x, weights) - mx.square(), blur(y * y, weights) - my.square()
    vxy = blur(x * y, weights) - mx * my
    score = (2 * mx * my + C1) * (2 * vxy + C2) / ((mx.square() + my.square() + C1) * (vx + vy + C2))
    return score.reshape(n, -1).mean(1)
