"""Inception score (Salimans et al., 2016; Table 2): high if each sample clearly has one class, and classes vary.

    IS = exp(mean over x of KL(p(y|x) || p(y))),  p(y) the mean of p(y|x)

It ranges from 1, if the classifier does not distinguish the samples, to the number of classes. The paper follows the
protocol of TGAN2: C3D trained on UCF-101, one score for each of ten sets of 2048 samples, and their mean and standard
deviation (dividing by ten, not nine). The score grows with the number of samples, which is part of the protocol.

Dimensions: n samples, k classes. Everything here is float64.
"""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax, rel_entr

from worldmodel.utils.errors import UserError


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Logits (n, k) -> p(y|x) (n, k)."""
    return np.exp(log_softmax(np.asarray(logits, np.float64), axis=1))


def inception_score(p: np.ndarray) -> float:
    """The score of probabilities (n, k) whose rows sum to 1; a probability of 0 is allowed."""
    p = np.asarray(p, np.float64)
    if p.ndim != 2 or not len(p):
        raise UserError(f"an inception score needs probabilities (samples, classes), not {p.shape}")
    if not ((p >= 0).all() and np.allclose(p.sum(1), 1, atol=1e-6)):  # nan fails too
        raise UserError("an inception score needs probabilities that sum to 1; give logits to `probabilities` first")
    return float(np.exp(rel_entr(p, p.mean(0)).sum(1).mean()))
