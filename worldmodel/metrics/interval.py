"""Means with their 95% intervals, by the bootstrap over independent items.

Clips of one episode are not independent, so an interval is taken over groups (episodes): whole groups are drawn with
replacement and the mean of all their items is taken, 2,000 times with a fixed seed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Mean:
    """A mean and its 95% interval."""

    mean: float
    low: float
    high: float
    n: int
    """Items."""

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def bootstrap(values: np.ndarray, groups: np.ndarray | None = None, draws: int = 2000) -> Mean:
    """The mean of values (n,) and its interval over groups (n,), by default over the items themselves."""
    values = np.asarray(values, np.float64)
    _, index = np.unique(np.arange(len(values)) if groups is None else groups, return_inverse=True)
    sums, sizes = np.bincount(index, values), np.bincount(index)
    drawn = np.random.default_rng(0).integers(len(sums), size=(draws, len(sums)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Mean(float(values.mean()), float(low), float(high), len(values))


def ratio(a: np.ndarray, b: np.ndarray, groups: np.ndarray | None, draws: int = 2000) -> Mean:
    """The mean of a (n,) over the mean of b (n,), and its interval over groups, the same groups drawn for both.

    Without groups items of a and of b are drawn each on their own.
    """
    if groups is None:
        rng = np.random.default_rng(0)
        low, high = np.quantile(np.divide(*(rng.choice(x, (draws, len(x))).mean(1) for x in (a, b))), [0.025, 0.975])
        return Mean(float(a.mean() / b.mean()), float(low), float(high), len(a))
    _, index = np.unique(groups, return_inverse=True)
    drawn = np.random.default_rng(0).integers(index.max() + 1, size=(draws, index.max() + 1))
    low, high = np.quantile(np.bincount(index, a)[drawn].sum(1) / np.bincount(index, b)[drawn].sum(1), [0.025, 0.975])
    return Mean(float(a.mean() / b.mean()), float(low), float(high), len(a))
