"""Calibration figures on cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from worldmodel.metrics.calibration import auroc, expected_calibration_error


def test_auroc_counts_pairs() -> None:
    probability, happened = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    assert auroc(probability, happened) == pytest.approx((1 + 0.5 + 1 + 1) / 4), "one tie among four pairs"
    assert auroc(-probability, happened) == pytest.approx(0.5 / 4)
    assert np.isnan(auroc(probability, np.ones(4, bool)))


def test_calibration_error_is_the_weighted_gap() -> None:
    probability = np.array([0.05, 0.05, 0.05, 0.05, 0.95, 0.95])
    happened = np.array([False, False, False, True, True, True])
    expected = 4 / 6 * abs(0.25 - 0.05) + 2 / 6 * abs(1 - 0.95)
    assert expected_calibration_error(probability, happened, bins=10) == pytest.approx(expected)
    weight = np.array([1.0, 1, 1, 1, 2, 2])
    weighted = (4 * abs(0.25 - 0.05) + 4 * abs(1 - 0.95)) / 8
    assert expected_calibration_error(probability, happened, 10, weight) == pytest.approx(weighted)
    rng = np.random.default_rng(0)
    p = rng.random(200_000)
    assert expected_calibration_error(p, rng.random(200_000) < p) < 0.01
    assert expected_calibration_error(np.ones(3), np.ones(3, bool)) == 0
