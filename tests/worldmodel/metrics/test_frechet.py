"""The Fréchet distance against closed forms and against matrix roots taken in other ways."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from scipy.linalg import sqrtm

from worldmodel.metrics.frechet import Gaussian, frechet_distance, frechet_distance_of_gaussians
from worldmodel.utils.errors import UserError


def normal(mean: list[float], covariance: np.ndarray) -> Gaussian:
    return Gaussian.from_moments(np.array(mean), np.asarray(covariance))


def by_root(a: np.ndarray, b: np.ndarray) -> float:
    """The definition, with scipy's root of the product of the covariances."""
    root = sqrtm(np.cov(a.T) @ np.cov(b.T))
    shift = np.square(a.mean(0) - b.mean(0)).sum()
    return float(shift + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root.real))


def test_one_dimension() -> None:
    assert frechet_distance_of_gaussians(normal([1], [[4]]), normal([4], [[25]])) == pytest.approx(
        3**2 + (2 - 5) ** 2, rel=1e-12
    )
    a, b = np.array([[0.0], [2.0]]), np.array([[1.0], [9.0]])  # deviations sqrt(2) and 4 sqrt(2), n - 1 below
    assert frechet_distance(a, b) == pytest.approx(4**2 + 2 * (1 - 4) ** 2, rel=1e-12)


def test_diagonal_covariances() -> None:
    a, b = normal([0, 0, 0], np.diag([1, 4, 9])), normal([0, 1, 2], np.diag([16, 4, 1]))
    assert frechet_distance_of_gaussians(a, b) == pytest.approx(1 + 4 + (1 - 4) ** 2 + 0 + (3 - 1) ** 2, rel=1e-12)


def test_commuting_covariances() -> None:
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))
    s, t = np.arange(1.0, 7), np.arange(6.0, 0, -1)
    a, b = normal([0] * 6, turn * s**2 @ turn.T), normal([0] * 6, turn * t**2 @ turn.T)
    assert frechet_distance_of_gaussians(a, b) == pytest.approx(np.square(s - t).sum(), rel=1e-12)


def test_a_shift_is_its_length() -> None:
    x = np.random.default_rng(0).normal(size=(50, 8)) @ np.diag(np.arange(1.0, 9))
    shift = np.linspace(-1, 2, 8)
    assert frechet_distance(x, x + shift) == pytest.approx(np.square(shift).sum(), abs=1e-10)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(x, 3 * x - 2 * x.mean(0)) == pytest.approx(4 * np.trace(np.cov(x.T)), rel=1e-12)


def test_ranks_that_are_not_full() -> None:
    """Two lines at an angle: tr (A B)^(1/2) is the product of their deviations times the cosine."""
    a, b = 2 * np.array([1.0, 0, 0]), 3 * np.array([0.6, 0.8, 0])
    expected = 4 + 9 - 2 * 2 * 3 * 0.6
    assert frechet_distance_of_gaussians(
        normal([0] * 3, np.outer(a, a)), normal([0] * 3, np.outer(b, b))
    ) == pytest.approx(expected)
    steps = np.array([-1.0, 1.0])[:, None] / np.sqrt(2)  # of variance 1
    assert frechet_distance(steps * a, steps * b) == pytest.approx(expected, rel=1e-12)
    zero = normal([0] * 3, np.zeros((3, 3)))
    assert frechet_distance_of_gaussians(zero, normal([0] * 3, np.eye(3))) == pytest.approx(3)
    perpendicular = normal([0] * 3, np.diag([0.0, 0, 7]))
    assert frechet_distance_of_gaussians(normal([0] * 3, np.diag([5.0, 3, 0])), perpendicular) == pytest.approx(15)


@pytest.mark.parametrize("seed", range(4))
def test_random_features_against_scipys_root(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(12, 12))
    a, b = rng.normal(size=(200, 12)), rng.normal(size=(90, 12)) @ mix + 1
    assert frechet_distance(a, b) == pytest.approx(by_root(a, b), rel=1e-9)
    moments = [Gaussian.from_moments(x.mean(0), np.cov(x.T)) for x in (a, b)]
    assert frechet_distance_of_gaussians(*moments) == pytest.approx(frechet_distance(a, b), rel=1e-9), (
        "both ways in agree"
    )
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-12)


@pytest.mark.parametrize("n", [2, 3, 6])
def test_fewer_clips_than_features_against_forty_digits(n: int) -> None:
    """tr (A B)^(1/2) from the eigenvalues of A B in arbitrary precision."""
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=(n, 7)), 2 * rng.normal(size=(n + 1, 7))
    with mpmath.workdps(40):
        covariances = []
        for x in (a, b):
            m = mpmath.matrix(x.tolist())
            centred = mpmath.matrix(len(x), 7)
            for j in range(7):
                mean = mpmath.fsum(m[i, j] for i in range(len(x))) / len(x)
                for i in range(len(x)):
                    centred[i, j] = m[i, j] - mean
            covariances.append(centred.T * centred / (len(x) - 1))
        values, _ = mpmath.eig(covariances[0] * covariances[1])
        root = mpmath.fsum(mpmath.sqrt(abs(v)) for v in values if abs(v) > mpmath.mpf(10) ** -25)
        traces = mpmath.fsum(c[i, i] for c in covariances for i in range(7))
        expected = float(traces - 2 * root) + np.square(a.mean(0) - b.mean(0)).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-11)
    moments = [Gaussian.from_moments(x.mean(0), np.cov(x.T)) for x in (a, b)]
    assert frechet_distance_of_gaussians(*moments) == pytest.approx(expected, rel=1e-7)


def test_the_size_of_the_papers_protocol() -> None:
    """256 clips and 400 features, float32: equal sets have no distance, and turning both changes nothing."""
    rng = np.random.default_rng(0)
    a = (rng.normal(size=(256, 400)) * np.geomspace(10, 1e-3, 400)).astype(np.float32)
    b = (a + rng.normal(size=a.shape)).astype(np.float32)
    assert frechet_distance(a, a) < 1e-8
    turn, _ = np.linalg.qr(rng.normal(size=(400, 400)))
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(frechet_distance(a, b), rel=1e-10)
    assert frechet_distance(a, b) > 1


def test_what_cannot_be_compared() -> None:
    x = np.ones((4, 3))
    bad = x.copy()
    bad[1, 1] = np.nan
    with pytest.raises(UserError, match="not finite"):
        Gaussian.fit(bad)
    with pytest.raises(UserError, match="two clips or more"):
        Gaussian.fit(x[:1])
    with pytest.raises(UserError, match="3 and 2 features"):
        frechet_distance(x, x[:, :2])
    with pytest.raises(UserError, match="negative eigenvalue"):
        normal([0, 0], np.diag([1, -1]))
    with pytest.raises(UserError, match="symmetric"):
        normal([0, 0], np.array([[1, 1], [0, 1]]))
