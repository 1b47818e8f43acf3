"""The toy world itself, as an engine: importing this registers it."""

from __future__ import annotations

import gymnasium as gym
import numpy as np


class ToyEngine(gym.Env):
    """A bright square pushed left (1) and right (2)."""

    observation_space = gym.spaces.Box(0, 255, (16, 16, 3), np.uint8)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        super().reset(seed=seed)
        self.column = 1
        return self.frame(), {"COLUMN": 1.0}

    def frame(self) -> np.ndarray:
        frame = np.full((16, 16, 3), 40, np.uint8)
        frame[4:12, self.column * 4 : self.column * 4 + 4] = (250, 200, 60)
        return frame

    def step(self, action: int) -> tuple:
        self.column = (self.column + (0, -1, 1)[int(action)]) % 4
        return self.frame(), 1.0, False, False, {"COLUMN": float(self.column)}


gym.register("ToyEngine-v0", entry_point=ToyEngine)
