"""Quality of predicted probabilities: discrimination (AUROC) and calibration.

Dimensions: n independent predictions.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata


def auroc(probability: np.ndarray, happened: np.ndarray) -> float:
    """Area under the ROC curve: how often an event has a higher probability than a non-event, ties counting half.

    Args:
        probability: (n,).
        happened: (n,) bool.

    Returns:
        From 0 to 1; NaN if all predictions are events, or none.
    """
    events, others = int(happened.sum()), int((~happened).sum())
    if not events or not others:
        return float("nan")
    ranks = rankdata(probability)
    return float((ranks[happened].sum() - events * (events + 1) / 2) / (events * others))


def expected_calibration_error(
    probability: np.ndarray, happened: np.ndarray, bins: int = 15, weight: np.ndarray | None = None
) -> float:
    """Mean difference of predicted probability and observed frequency over bins of equal width (Guo et al., 2017).

    Args:
        probability: (n,).
        happened: (n,) bool.
        bins: Number of bins, which are weighted by their predictions.
        weight: Weight of each prediction (n,), if some kinds were sampled more often than others; 1 by default.
    """
    weight = np.ones(len(probability)) if weight is None else weight
    index = np.minimum((probability * bins).astype(int), bins - 1)
    predicted, observed = (np.bincount(index, weight * what, bins) for what in (probability, happened))
    return float(np.abs(predicted - observed).sum() / weight.sum())
