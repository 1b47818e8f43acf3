"""Reading actions back: factors of each kind of space, and accuracies worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rollout.inverse_dynamics import (
    ActionClassifier,
    Predictions,
    accuracy,
    accuracy_ratio,
    action_labels,
    classify_actions,
    factor_sizes,
)
from worldmodel.data.env_spec import ActionSpec

KEYS = ActionSpec(kind="Discrete", nvec=(4,))
PAD = ActionSpec(kind="MultiDiscrete", nvec=(3, 2))
ARM = ActionSpec(kind="Box", low=(-0.3, 0.0), high=(0.3, 4.0))


def test_factors_of_each_space() -> None:
    assert factor_sizes(KEYS) == (4,)
    assert action_labels(KEYS, np.array([[0, 3]])).tolist() == [[[0], [3]]]
    assert factor_sizes(PAD) == (3, 2)
    assert action_labels(PAD, np.array([[[2, 0], [1, 1]]])).tolist() == [[[2, 0], [1, 1]]]
    assert factor_sizes(ARM) == (3, 3)
    cuts = np.array([[-0.1, 0.0], [0.1, 0.0]])  # the second is 0 in two thirds of the data
    assert action_labels(ARM, np.array([[-0.3, 0.0], [0.0, 0.0], [0.3, 1.0]]), cuts).tolist() == [
        [0, 0],
        [1, 0],
        [2, 2],
    ]


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
    found = classify_actions(ActionClassifier(Reads(), PAD), films, actions)
    assert found.n_true.tolist() == [[2, 0, 0, 0, 2], [0, 1, 1, 1, 1]]
    assert found.n_correct.tolist() == [[2, 0, 0, 0, 2], [0, 1, 0, 0, 1]]
    first, second = 2 / 3, 1 / 2  # of three values two are read, of two one
    assert found.mean == pytest.approx((first + second) / 2)


def test_values_are_as_frequent_as_any_other_in_every_resample() -> None:
    """Of two episodes a resample has one twice or both, and the interval reaches from the least to the most of them."""
    there = np.array([[2, 1, 0], [1, 1, 0]])  # the third value is nowhere
    perfect, poor = Predictions(there, there, (3,)), Predictions(there, np.array([[1, 1, 0], [0, 0, 0]]), (3,))
    told = accuracy(perfect)
    assert (told.mean, told.low, told.high) == (1.0, 1.0, 1.0)
    told = accuracy(poor)
    assert (told.mean, told.low, told.high) == pytest.approx(((1 / 3 + 1 / 2) / 2, 0.0, (1 / 2 + 1) / 2))
    told = accuracy(poor, np.array([7, 7]))  # one episode: there is nothing to draw
    assert told.low == told.high == pytest.approx(told.mean)
    for groups in (np.arange(2), None):
        told = accuracy_ratio(poor, perfect, groups)
        assert (told.mean, told.low, told.high) == pytest.approx((5 / 12, 0.0, 3 / 4))
    half = Predictions(there, np.array([[1, 1, 0], [1, 0, 0]]), (3,))
    together, apart = accuracy_ratio(half, half, np.arange(2)), accuracy_ratio(half, half, None)
    assert (together.low, together.high) == (1.0, 1.0), "what both share cancels"
    assert (apart.low, apart.high) == pytest.approx(((1 / 2) / (3 / 4), (3 / 4) / (1 / 2))), "each is drawn alone"
