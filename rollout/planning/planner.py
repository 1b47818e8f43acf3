"""A player that plans: every few steps it starts a dream from the last real frames, and searches for the best actions
in it with the cross-entropy method.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from envs.dream import DreamEnv
from rollout.planning.cem import CEMConfig, cross_entropy_method

ValueFn = Callable[[DreamEnv, np.ndarray, int], np.ndarray]
"""Values (n,) of action sequences (n, horizon, *shape) from the current state of a dream, with a seed."""


class Planner:
    """Plans in a dream, and plays `replan_every` steps of each plan.

    Args:
        dream: The dream to plan in.
        value: Scores action sequences.
        replan_every: Steps played before the next plan.
        context_frames: Real frames that the dream starts from; fewer at the start of an episode.
        cem: Settings of the cross-entropy method.
    """

    def __init__(
        self, dream: DreamEnv, value: ValueFn, *, replan_every: int, context_frames: int, cem: CEMConfig
    ) -> None:
        self.dream, self.value, self.cem = dream, value, cem
        self.replan_every, self.context_frames = replan_every, context_frames
        self.reset()

    def reset(self) -> None:
        """Start a new episode."""
        self.frames: deque[np.ndarray] = deque(maxlen=self.context_frames)
        self.actions: deque[np.ndarray] = deque(maxlen=self.context_frames - 1)
        self.variables: deque[list[float]] = deque(maxlen=self.context_frames)
        self.planned: list[np.ndarray] = []

    def act(self, frame: np.ndarray, variables: list[float], rng: np.random.Generator) -> np.ndarray:
        """The next action for a frame (h, w, 3); makes a new plan if the last one is used up."""
        self.frames.append(frame)
        self.variables.append(variables)
        if not self.planned:
            self.planned = list(self.plan(rng)[: self.replan_every])
        action = self.planned.pop(0)
        self.actions.append(action)
        return action

    def plan(self, rng: np.random.Generator) -> np.ndarray:
        """The best action sequence (horizon, *shape) from the current state."""
        spec = self.dream.env_spec.action
        options = {
            "frames": np.stack(self.frames),
            "actions": np.array(self.actions, spec.dtype),
            "variables": list(self.variables),
        }
        self.dream.reset(seed=int(rng.integers(2**31)), options=options)
        return cross_entropy_method(spec, self.cem, lambda a: self.value(self.dream, a, int(rng.integers(2**31))), rng)
