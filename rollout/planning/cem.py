"""The cross-entropy method (Rubinstein, 1999): sample action sequences, fit the distribution to the best, and repeat.

Discrete actions have a categorical distribution per step. Continuous actions have a normal distribution per step, which
starts around zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from worldmodel.data.env_spec import ActionSpec
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import Count, Fraction, Positive, Settings

ScoreFn = Callable[[np.ndarray], np.ndarray]
"""Scores (n,) of action sequences (n, horizon, *shape)."""


@dataclass(frozen=True, kw_only=True)
class CEMConfig(Settings):
    """Settings of the cross-entropy method."""

    n_candidates: Positive = 32
    """Action sequences sampled per round."""
    n_elite: Positive = 6
    """Best sequences per round, to which the distribution is fitted."""
    n_rounds: Positive = 2
    """Rounds of sampling and fitting."""
    horizon: Positive = 8
    """Length of a sequence in steps."""
    hold_steps: Positive = 2
    """Steps for which each action of a sequence is held."""
    n_dims: Count = 0
    """Number of leading dimensions of a Box action to plan; the others stay at zero. 0 plans all of them."""
    momentum: Fraction = 0.2
    """Weight of the old distribution in the new one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_elite > self.n_candidates:
            raise UserError(f"n_elite must be at most n_candidates, {self.n_candidates}, not {self.n_elite}")


class CategoricalPlan:
    """Distribution over sequences of a Discrete space: the probability of each action in each slot."""

    def __init__(self, spec: ActionSpec, slots: int) -> None:
        self.probs = np.full((slots, spec.nvec[0]), 1 / spec.nvec[0])

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return np.stack([rng.choice(len(p), size=n, p=p) for p in self.probs], axis=1)

    def update(self, best: np.ndarray, momentum: float) -> None:
        share = np.stack([np.bincount(slot, minlength=self.probs.shape[1]) for slot in best.T]) / len(best)
        self.probs = momentum * self.probs + (1 - momentum) * share

    def mode(self) -> np.ndarray:
        return self.probs.argmax(1)


class GaussianPlan:
    """Distribution over sequences of a Box: mean and standard deviation per number and slot, clipped to the bounds."""

    def __init__(self, spec: ActionSpec, slots: int, numbers: int) -> None:
        self.low, self.high = np.array(spec.low), np.array(spec.high)
        self.mean = np.tile(np.clip(0.0, self.low, self.high), (slots, 1))
        self.std = np.tile((self.high - self.low) / 4, (slots, 1))
        self.std[:, numbers or self.std.shape[1] :] = 0

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return np.clip(rng.normal(self.mean, self.std, (n, *self.mean.shape)), self.low, self.high)

    def update(self, best: np.ndarray, momentum: float) -> None:
        self.mean = momentum * self.mean + (1 - momentum) * best.mean(0)
        self.std = momentum * self.std + (1 - momentum) * best.std(0)

    def mode(self) -> np.ndarray:
        return self.mean


def check_action_spec(spec: ActionSpec) -> None:
    """`UserError` for a space other than Discrete and Box."""
    if spec.kind == "MultiDiscrete":
        raise UserError(f"planning needs a Discrete or Box action space, not {spec}; use another environment")


def cross_entropy_method(spec: ActionSpec, config: CEMConfig, score: ScoreFn, rng: np.random.Generator) -> np.ndarray:
    """Optimize an action sequence.

    Args:
        spec: Action space, Discrete or Box.
        config: Settings of the method.
        score: Scores candidate sequences.
        rng: Source of all randomness.

    Returns:
        The mode of the final distribution, (horizon, *shape).

    Raises:
        UserError: The action space is neither Discrete nor Box.
    """
    check_action_spec(spec)
    slots = -(-config.horizon // config.hold_steps)
    distribution = GaussianPlan(spec, slots, config.n_dims) if spec.kind == "Box" else CategoricalPlan(spec, slots)
    for _ in range(config.n_rounds):
        picks = distribution.sample(config.n_candidates, rng)
        best = np.argsort(-score(picks.repeat(config.hold_steps, 1)[:, : config.horizon]))[: config.n_elite]
        distribution.update(picks[best], config.momentum)
    return distribution.mode().repeat(config.hold_steps, 0)[: config.horizon].astype(spec.dtype)
