"""The inception score against closed forms and another formula."""

from __future__ import annotations

import math

import numpy as np
import pytest

from worldmodel.metrics.inception import inception_score, probabilities
from worldmodel.utils.errors import UserError


def test_no_difference_between_samples_scores_one() -> None:
    assert inception_score(np.full((40, 5), 0.2)) == pytest.approx(1, rel=1e-12)
    assert inception_score(np.tile([0.7, 0.2, 0.1, 0.0], (9, 1))) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("k", [2, 10, 101])
def test_sure_and_balanced_scores_the_number_of_classes(k: int) -> None:
    assert inception_score(np.tile(np.eye(k), (3, 1))) == pytest.approx(k, rel=1e-12)


def test_unbalanced_classes_score_the_exponent_of_their_entropy() -> None:
    p = np.eye(2)[[0] * 9 + [1]]
    assert inception_score(p) == pytest.approx(math.exp(-0.9 * math.log(0.9) - 0.1 * math.log(0.1)), rel=1e-12)


def test_two_samples_by_hand() -> None:
    p = np.array([[0.9, 0.1], [0.1, 0.9]])
    divergence = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert inception_score(p) == pytest.approx(math.exp(divergence), rel=1e-12)


def test_random_samples_by_entropies() -> None:
    """The mean divergence is the entropy of the mean less the mean entropy."""
    logits = np.random.default_rng(0).normal(scale=3, size=(300, 17))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    entropy = lambda q: -sum(x * math.log(x) for x in q)  # noqa: E731
    expected = math.exp(entropy(p.mean(0)) - sum(map(entropy, p)) / len(p))
    assert inception_score(p) == pytest.approx(expected, rel=1e-12)
    assert inception_score(probabilities(logits)) == pytest.approx(expected, rel=1e-12)


def test_large_logits_do_not_overflow() -> None:
    p = probabilities(np.array([[1000.0, 0], [0, 1000]], np.float32))
    assert np.array_equal(p, np.eye(2))
    assert inception_score(p) == pytest.approx(2)


def test_what_is_no_probability() -> None:
    for p in (np.ones((2, 2)), np.array([[1.5, -0.5]]), np.full((2, 2), np.nan), np.ones(3), np.ones((0, 3))):
        with pytest.raises(UserError, match="probabilities"):
            inception_score(p)
