"""Means with 95% bootstrap intervals over independent groups.

Clips of one episode are not independent, so whole groups (episodes) are resampled with replacement, and the mean of all
their items is computed, 2,000 times with a fixed seed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class MeanInterval:
    """A mean and its 95% interval."""

    mean: float
    low: float
    high: float
    n: int
    """Number of items."""

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def percentile_interval(mean: float, resampled: np.ndarray, n: int) -> MeanInterval:
    """A statistic of n items with the interval that contains 95% of its values in resamples (n_resamples,)."""
    low, high = np.quantile(resampled, [0.025, 0.975])
    return MeanInterval(float(mean), float(low), float(high), n)


def _draw_groups(groups: np.ndarray, n_resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The index of each item's group (n,), and groups drawn with replacement (n_resamples, number of groups)."""
    _, index = np.unique(groups, return_inverse=True)
    n = index.max() + 1
    return index, np.random.default_rng(seed).integers(n, size=(n_resamples, n))


def bootstrap_counts(groups: np.ndarray, n_resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """How often each of n items is in each resample of whole groups, (n_resamples, n).

    This is for statistics that are not means of items and must be computed for each resample.

    Args:
        groups: Group of each item (n,).
        n_resamples: Number of resamples.
        seed: Seed of the resampling.
    """
    index, drawn = _draw_groups(groups, n_resamples, seed)
    return np.stack([np.bincount(row, minlength=len(row)) for row in drawn])[:, index]


def bootstrap(values: np.ndarray, groups: np.ndarray | None = None, n_resamples: int = 2000) -> MeanInterval:
    """The mean of values (n,) with its interval over groups (n,); by default each item is a group."""
    values = np.asarray(values, np.float64)
    groups = np.arange(len(values)) if groups is None else groups
    return bootstrap_ratio(values, np.ones(len(values)), groups, n_resamples)


def bootstrap_ratio(a: np.ndarray, b: np.ndarray, groups: np.ndarray, n_resamples: int = 2000) -> MeanInterval:
    """The mean of a (n,) over the mean of b (n,), with its interval; both are resampled with the same groups (n,)."""
    index, drawn = _draw_groups(groups, n_resamples, seed=0)
    resampled = np.bincount(index, a)[drawn].sum(1) / np.bincount(index, b)[drawn].sum(1)
    return percentile_interval(a.mean() / b.mean(), resampled, len(a))


def means_to_json(value: Any) -> Any:
    """Convert all `MeanInterval`s in nested dictionaries and lists to JSON."""
    if isinstance(value, MeanInterval):
        return value.to_json()
    if isinstance(value, dict):
        return {k: means_to_json(v) for k, v in value.items()}
    return [means_to_json(v) for v in value] if isinstance(value, list) else value
