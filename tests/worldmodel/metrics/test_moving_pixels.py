"""Moving pixels: a ball on a still background is counted, wherever it is; one that is gone is missed."""

from __future__ import annotations

import numpy as np

from worldmodel.metrics.frames import moving_pixels, still_background


def test_a_ball_is_counted_wherever_it_is() -> None:
    scenery = np.random.default_rng(0).integers(100, size=(2, 16, 16, 3)).astype(np.uint8)
    frames = scenery[:, None].repeat(9, 1)
    other, gone = frames.copy(), frames.copy()
    for t in range(9):
        frames[:, t, 1 + t : 3 + t, 4:6] = 220  # 4 pixels of 256, never long at the same place
        other[:, t, 10:12, 1 + t : 3 + t] = 220
    gone += 10  # noise below the threshold
    background = still_background(frames)
    assert np.array_equal(background, scenery) and background.dtype == np.uint8
    assert np.allclose(moving_pixels(frames, background), 4 / 256)
    assert np.allclose(moving_pixels(other, background), 4 / 256)
    assert not moving_pixels(gone, background).any()
