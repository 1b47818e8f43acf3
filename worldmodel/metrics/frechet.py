"""The Fréchet distance of two sets of features, which is FVD, R-FVD or FVD* for I3D features of the right clips.

    d = |m_a - m_b|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2))      means m, covariances A and B (n - 1 in the denominator)

The last trace needs no matrix root. If A = F'F and B = G'G, the square roots of the eigenvalues of A B are the
singular values of F G', so the trace is their sum. F is the centered features over sqrt(n - 1), or its triangular
factor. This is exact even for fewer clips than features, as in the paper's protocol (256 clips, 400 logits), where the
covariances do not have full rank and a root of A B is badly conditioned.

The distance is biased upwards for few clips, so results for different numbers of clips cannot be compared.

Dimensions: n clips, d features. Everything here is float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldmodel.utils.errors import UserError


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution fitted to features."""

    mean: np.ndarray
    """(d,) mean."""
    factor: np.ndarray
    """(r, d) factor F of the covariance F'F."""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.mean).all() and np.isfinite(self.factor).all()):
            raise UserError("some features are not finite; check the weights, and how clips are prepared for them")

    @staticmethod
    def fit(features: np.ndarray) -> Gaussian:
        """Fit to features (n, d); `UserError` for fewer than two clips, or features that are not finite."""
        if features.ndim != 2 or len(features) < 2:
            raise UserError(f"a distance needs features (clips, features) of two clips or more, not {features.shape}")
        x = np.asarray(features, np.float64)
        mean = x.mean(0)
        centered = (x - mean) / np.sqrt(len(x) - 1)
        if not np.isfinite(centered).all():
            return Gaussian(mean, centered)  # raises the error
        return Gaussian(mean, np.asarray(np.linalg.qr(centered, mode="r")) if len(x) > x.shape[1] else centered)

    @staticmethod
    def from_moments(mean: np.ndarray, covariance: np.ndarray) -> Gaussian:
        """Build from a mean (d,) and covariance (d, d); eigenvalues within rounding of zero are set to zero.

        Raises:
            UserError: If the covariance is not symmetric or has negative eigenvalues.
        """
        mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
        if covariance.shape != (*mean.shape, *mean.shape) or not np.allclose(covariance, covariance.T):
            raise UserError(f"a covariance of {len(mean)} features is a symmetric square, not {covariance.shape}")
        values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
        rounding = np.abs(values).max() * len(values) * np.finfo(np.float64).eps
        if values[0] < -1e3 * rounding:
            raise UserError(f"a covariance has no negative eigenvalues, but this one has {values[0]:.3g}")
        return Gaussian(mean, np.sqrt(np.where(values > rounding, values, 0))[:, None] * vectors.T)


def frechet_distance_of_gaussians(a: Gaussian, b: Gaussian) -> float:
    """The squared 2-Wasserstein distance of two normal distributions, at least 0."""
    if a.mean.shape != b.mean.shape:
        raise UserError(
            f"{len(a.mean)} and {len(b.mean)} features cannot be compared; compute both with the same network"
        )
    overlap = np.linalg.svd(a.factor @ b.factor.T, compute_uv=False).sum()
    covariance_term = np.square(a.factor).sum() + np.square(b.factor).sum() - 2 * overlap
    return float(max(0.0, np.square(a.mean - b.mean).sum() + covariance_term))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The Fréchet distance of features (n, d) and (m, d); `UserError` if d differs or there are too few clips."""
    return frechet_distance_of_gaussians(Gaussian.fit(a), Gaussian.fit(b))
