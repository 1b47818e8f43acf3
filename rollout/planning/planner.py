"""A player that plans: every few steps its last real frames become a dream, in which the cross-entropy method looks
for the actions that are worth most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from envs.dream import DreamEnv
from rollout.planning.cem import CEMConfig, cross_entropy_method

ValueFn = Callable[[DreamEnv, np.ndarray, int], np.ndarray]
"""(n,) the worth of actions (n, horizon, *shape) from the dream as it stands, its futures seeded."""


class Planner:
    """Plays `replan_every` steps of each plan; a dream is given `context_frames` frames, fewer at the start of an
    episode."""

    def __init__(
        self, dream: DreamEnv, value: ValueFn, *, replan_every: int, context_frames: int, cem: CEMConfig
    ) -> None:
        self.dream, self.value, self.cem = dream, value, cem
        self.replan_every, self.context_frames = replan_every, context_frames
        self.reset()

    def reset(self) -> None:
        """A new episode."""
        self.frames: deque[np.ndarray] = deque(maxlen=self.context_frames)
        self.actions: deque[np.ndarray] = deque(maxlen=self.context_frames - 1)
        self.variables: deque[list[float]] = deque(maxlen=self.context_frames)
        self.planned: list[np.ndarray] = []

    def act(self, frame: np.ndarray, variables: list[float], rng: np.random.Generator) -> np.ndarray:
        """The next action; plans when none is ready."""
        self.frames.append(frame)
        self.variables.append(variables)
        if not self.planned:
            self.planned = list(self.plan(rng)[: self.replan_every])
        self.actions.append(self.planned.pop(0))
        return self.actions[-1]

    def plan(self, rng: np.random.Generator) -> np.ndarray:
        """The best sequence of actions (horizon, *shape) from here."""
        spec = self.dream.env_spec.action
        options = {
            "frames": np.stack(self.frames),
            "actions": np.array(self.actions, spec.dtype).reshape(-1, *spec.shape),
            "variables": list(self.variables),
        }
        self.dream.reset(seed=int(rng.integers(2**31)), options=options)
        return cross_entropy_method(spec, self.cem, lambda a: self.value(self.dream, a, int(rng.integers(2**31))), rng)
