"""The cross-entropy method (Rubinstein, 1999): draw sequences of actions, keep the best, move towards them, repeat.

Integers are drawn from a table of odds for each step, numbers from a normal distribution around doing nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from worldmodel.errors import UserError
from worldmodel.settings import Count, Positive, Settings, Share
from worldmodel.world import ActionSpec

Worth = Callable[[np.ndarray], np.ndarray]
"""(n,) how good sequences of actions (n, horizon, *shape) are."""


@dataclass(frozen=True, kw_only=True)
class Cem(Settings):
    """The cross-entropy method."""

    candidates: Positive = 32
    """Futures of a round."""
    elite: Positive = 6
    """Of them, those that the distribution moves towards."""
    rounds: Positive = 2
    horizon: Positive = 8
    """Steps of a future."""
    hold: Positive = 2
    """Steps for which an action of a future is held."""
    numbers: Count = 0
    """Of a Box, only so many of an action's first numbers are planned, the others do nothing; 0 for all."""
    momentum: Share = 0.2
    """Share of the old distribution in the new one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.elite > self.candidates:
            raise UserError(f"elite must be at most candidates, {self.candidates}, not {self.elite}")


class Odds:
    """Of a Discrete space: the chance of each action in each slot."""

    def __init__(self, spec: ActionSpec, slots: int) -> None:
        self.odds = np.full((slots, spec.nvec[0]), 1 / spec.nvec[0])

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return np.stack([rng.choice(len(p), size=n, p=p) for p in self.odds], axis=1)

    def move(self, best: np.ndarray, momentum: float) -> None:
        share = np.stack([np.bincount(slot, minlength=self.odds.shape[1]) for slot in best.T]) / len(best)
        self.odds = momentum * self.odds + (1 - momentum) * share

    def likeliest(self) -> np.ndarray:
        return self.odds.argmax(1)


class Normal:
    """Of a Box: mean and standard deviation of each number in each slot, cut at the bounds."""

    def __init__(self, spec: ActionSpec, slots: int, numbers: int) -> None:
        self.low, self.high = np.array(spec.low), np.array(spec.high)
        self.mean = np.tile(np.clip(0.0, self.low, self.high), (slots, 1))
        self.sd = np.tile((self.high - self.low) / 4, (slots, 1))
        self.sd[:, numbers or self.sd.shape[1] :] = 0

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return np.clip(rng.normal(self.mean, self.sd, (n, *self.mean.shape)), self.low, self.high)

    def move(self, best: np.ndarray, momentum: float) -> None:
        self.mean = momentum * self.mean + (1 - momentum) * best.mean(0)
        self.sd = momentum * self.sd + (1 - momentum) * best.std(0)

    def likeliest(self) -> np.ndarray:
        return self.mean


def check(spec: ActionSpec) -> None:
    """`UserError` for a space that is not planned in."""
    if spec.kind == "MultiDiscrete":
        raise UserError(f"plans are of one choice or of numbers a step, not of {spec}")


def cem(spec: ActionSpec, how: Cem, worth: Worth, rng: np.random.Generator) -> np.ndarray:
    """The likeliest actions (horizon, *shape) after all rounds; `UserError` for a space that is not planned in."""
    check(spec)
    slots = -(-how.horizon // how.hold)
    distribution = Normal(spec, slots, how.numbers) if spec.kind == "Box" else Odds(spec, slots)
    for _ in range(how.rounds):
        picks = distribution.draw(how.candidates, rng)
        best = np.argsort(-worth(picks.repeat(how.hold, 1)[:, : how.horizon]))[: how.elite]
        distribution.move(picks[best], how.momentum)
    return distribution.likeliest().repeat(how.hold, 0)[: how.horizon].astype(spec.dtype)
