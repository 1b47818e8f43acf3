"""What moves is measured in pixels that change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import TOY, toy_episode
from worldmodel.data.motion import measure_motion
from worldmodel.data.store import Store
from worldmodel.data.writer import StoreWriter


def moving(folder: Path, at: list[tuple[int, int]], size: int) -> Store:
    """A store of a white square on black that is at a row and a column in each frame."""
    episode = toy_episode(np.random.default_rng(0), len(at) - 1)
    episode["frames"] = np.zeros((len(at), 16, 16, 3), np.uint8)
    for frame, (row, column) in zip(episode["frames"], at, strict=True):
        frame[row : row + size, column : column + size] = 255
    with StoreWriter(folder, TOY, {}) as writer:
        writer.append(episode)
    return Store(folder)


def test_small_things_that_jump_are_measured(tmp_path: Path) -> None:
    motion = measure_motion(moving(tmp_path, [(2, 2), (8, 8), (2, 2), (8, 8), (8, 8)], 2))
    assert motion.smallest == 4.0, "the place it left, and the one it came to"
    assert motion.still == pytest.approx(1 / 4)
    assert motion.changed == pytest.approx(3 / 4 * 8 / 16**2)


def test_nothing_moves(tmp_path: Path) -> None:
    motion = measure_motion(moving(tmp_path, [(2, 2)] * 5, 4))
    assert (motion.changed, motion.still, motion.smallest) == (0.0, 1.0, 0.0)
