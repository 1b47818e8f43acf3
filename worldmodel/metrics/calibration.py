"""How good probabilities are: do they tell events from others, and do they come true as often as they say?

Dimensions: n independent predictions.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata


def auroc(probability: np.ndarray, happened: np.ndarray) -> float:
    """Area under the ROC curve: the chance that an event got a higher probability than a non-event, ties half.

    `happened` (n,) bool; nan where there are no events or nothing else.
    """
    events, others = int(happened.sum()), int((~happened).sum())
    if not events or not others:
        return float("nan")
    ranks = rankdata(probability)
    return float((ranks[happened].sum() - events * (events + 1) / 2) / (events * others))


def expected_calibration_error(
    probability: np.ndarray, happened: np.ndarray, bins: int = 15, weight: np.ndarray | None = None
) -> float:
    """Mean distance of probability and frequency over bins of equal width, weighted by size (Guo et al., 2017).

    `weight` (n,): how many predictions each one stands for, where some kinds were drawn more often than others.
    """
    weight = np.ones(len(probability)) if weight is None else weight
    index = np.minimum((probability * bins).astype(int), bins - 1)
    predicted, observed = (np.bincount(index, weight * what, bins) for what in (probability, happened))
    return float(np.abs(predicted - observed).sum() / weight.sum())
