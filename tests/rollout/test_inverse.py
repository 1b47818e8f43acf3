"""Reading actions back: factors of each kind of space, and accuracies worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rollout.inverse import Reader, classes, hits, labels
from worldmodel.world import ActionSpec

KEYS = ActionSpec(kind="Discrete", nvec=(4,))
PAD = ActionSpec(kind="MultiDiscrete", nvec=(3, 2))
ARM = ActionSpec(kind="Box", low=(-0.3, 0.0), high=(0.3, 4.0))


def test_factors_of_each_space() -> None:
    assert classes(KEYS) == (4,)
    assert labels(KEYS, np.array([[0, 3]])).tolist() == [[[0], [3]]]
    assert classes(PAD) == (3, 2)
    assert labels(PAD, np.array([[[2, 0], [1, 1]]])).tolist() == [[[2, 0], [1, 1]]]
    assert classes(ARM) == (3, 3)
    cuts = np.array([[-0.1, 0.0], [0.1, 0.0]])  # the second is 0 in two thirds of the data
    assert labels(ARM, np.array([[-0.3, 0.0], [0.0, 0.0], [0.3, 1.0]]), cuts).tolist() == [[0, 0], [1, 0], [2, 2]]


class Reads(nn.Module):
    """A reader that sees the first factor in the first channel of the second frame, and always says 1 of the other."""

    def forward(self, x: Tensor) -> Tensor:
        value = ((x[:, 3, 0, 0] + 0.5) * 255).round().long()
        return torch.cat([torch.eye(3)[value], torch.tensor([[0.0, 1.0]]).expand(len(x), 2)], 1)


def test_accuracy_is_balanced_within_each_factor_and_averaged_over_them() -> None:
    actions = np.array([[[0, 1], [0, 1]], [[1, 1], [2, 0]]])
    films = np.zeros((2, 3, 8, 8, 3), np.uint8)
    films[:, 1:, :, :, 0] = actions[:, :, 0, None, None]
    films[1, 2, :, :, 0] = 0  # reads 0 where the action was 2
    read = hits(Reader(Reads(), PAD), films, actions)
    first, second = 2 / 3, 1 / 2  # of three values two are read, of two one
    assert read.mean() == pytest.approx((first + second) / 2)
