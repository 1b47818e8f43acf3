"""SSIM against closed forms and a window that is built and laid over the frame by scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import convolve2d

from worldmodel.metrics.ssim import ssim
from worldmodel.utils.errors import UserError


def reference(a: np.ndarray, b: np.ndarray) -> float:
    """One channel (h, w), two-dimensional window, float64."""
    axis = np.arange(-5, 6)
    window = np.exp(-(axis[:, None] ** 2 + axis[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    local = lambda x: convolve2d(x, window, mode="valid")  # noqa: E731
    a, b = a.astype(np.float64), b.astype(np.float64)
    ma, mb = local(a), local(b)
    va, vb, vab = local(a * a) - ma**2, local(b * b) - mb**2, local(a * b) - ma * mb
    c1, c2 = 6.5025, 58.5225
    return float(((2 * ma * mb + c1) * (2 * vab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean())


def films(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


def test_equal_frames_score_one() -> None:
    a = films((2, 3, 16, 20, 3))
    assert ssim(a, a) == pytest.approx(np.ones((2, 3)), abs=1e-12)


@pytest.mark.parametrize(("x", "y"), [(0, 255), (10, 20), (128, 130)])
def test_even_frames_in_closed_form(x: int, y: int) -> None:
    a, b = np.full((1, 1, 12, 12, 3), x, np.uint8), np.full((1, 1, 12, 12, 3), y, np.uint8)
    assert ssim(a, b)[0, 0] == pytest.approx((2 * x * y + 6.5025) / (x * x + y * y + 6.5025), rel=1e-6)


def test_random_frames_against_scipy() -> None:
    a = films((2, 2, 17, 23, 3))
    b = (a * 0.7 + films(a.shape, 1) * 0.3).astype(np.uint8)
    expected = [
        [np.mean([reference(a[i, j, ..., c], b[i, j, ..., c]) for c in range(3)]) for j in (0, 1)] for i in (0, 1)
    ]
    assert 0.5 < np.min(expected) < np.max(expected) < 0.99
    assert ssim(a, b) == pytest.approx(np.array(expected), rel=1e-9)
    assert ssim(a, b, batch=1) == pytest.approx(ssim(a, b), rel=1e-12)
    assert ssim(b, a) == pytest.approx(ssim(a, b), rel=1e-12)


def test_a_negative_is_below_zero() -> None:
    a = films((1, 1, 32, 32, 3))
    assert ssim(a, 255 - a)[0, 0] < -0.5


def test_what_cannot_be_compared() -> None:
    a = films((1, 1, 16, 16, 3))
    with pytest.raises(UserError, match="two arrays of uint8"):
        ssim(a, a[:, :, 1:])
    with pytest.raises(UserError, match="two arrays of uint8"):
        ssim(a.astype(np.float32), a.astype(np.float32))
    with pytest.raises(UserError, match="window of 11"):
        ssim(a[:, :, :10], a[:, :, :10])
    assert ssim(a[:0], a[:0]).shape == (0, 1)
