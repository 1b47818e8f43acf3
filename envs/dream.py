"""A world model as a Gymnasium environment: `gym.make("VideoGPTDream-v0")`, or with `model="runs/demo"`.

Spaces are those of the environment that was recorded, so a policy moves between the two unchanged. `terminated`
is drawn from the model's probability of an end, `truncated` is the recorded environment's time limit. `info`
has the game variables by name, as the model believes them, and of a step the probability `done_prob` that it ended, the
variables that were to be expected (`expected_HEALTH`), and `log_likelihood` and `entropy` in nats per frame.

It is one lane of `envs/vector.py`, which does the work.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from worldmodel.utils.settings import as_array

from .keys import keys_to_actions
from .render import Viewer
from .reset_arguments import check_render_mode, check_seed
from .vector import DreamVectorEnv


class DreamEnv(gym.Env[np.ndarray, Any]):
    """One lane of a dream; the arguments and `reset`'s options are those of `DreamVectorEnv`."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "human"], "render_fps": 35 / 4}

    def __init__(self, model: str | Path = "", render_mode: str | None = None, **settings: Any) -> None:
        """`settings` are the fields of `DreamConfig`; `render_mode` may also be "human", a window."""
        self.render_mode = check_render_mode(render_mode, self.metadata["render_modes"])
        self.vector_env = DreamVectorEnv(1, model, AutoresetMode.DISABLED, **settings)
        self.env_spec, self.contexts = self.vector_env.env_spec, self.vector_env.contexts
        self.metadata = {**self.metadata, "render_fps": self.vector_env.metadata["render_fps"]}
        self.observation_space = self.vector_env.single_observation_space
        self.action_space = self.vector_env.single_action_space
        self.viewer = Viewer(f"dream of {self.env_spec.name}", self.metadata["render_fps"])

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        seed = check_seed(seed)
        self.vector_env.rngs = [self.np_random]  # which someone may have set
        _, infos = self.vector_env.reset(seed=seed, options=options)
        self._np_random = self.vector_env.rngs[0]
        self._np_random_seed = self._np_random_seed if seed is None else seed
        return self._observation(), single_info(infos)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        rewards, terminated, truncated, step_info = self.vector_env.step_lanes(as_array(action)[None])
        every = np.ones(1, bool)
        info = single_info(self.vector_env._gym_info(every, step_info, every))
        return self._observation(), float(rewards[0]), bool(terminated[0]), bool(truncated[0]), info

    def snapshot(self) -> dict[str, Any]:
        """Everything the dream knows now; `restore` takes any number of futures from it."""
        return self.vector_env.snapshot()

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go back to a snapshot: the same actions from here give the same dream."""
        self.vector_env.restore(snapshot)
        self._np_random = self.vector_env.rngs[0]

    def fork(self, n: int, seed: int | None = None) -> DreamVectorEnv:
        """n copies of this moment as a vector environment; see `DreamVectorEnv.fork`."""
        return self.vector_env.fork(n, seed)

    def get_keys_to_action(self) -> dict[str, int]:
        """Keys for `gymnasium.utils.play`."""
        return keys_to_actions(self.env_spec)

    def _observation(self) -> np.ndarray:
        if self.render_mode == "human":
            self.viewer.show(self.vector_env.frames[0])
        return self.vector_env.frames[0].copy()

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """The current frame, enlarged four times."""
        self.vector_env.require_lanes("rendering")
        return self.vector_env.frames[0].repeat(4, 0).repeat(4, 1) if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        self.viewer.close()


def single_info(infos: dict[str, Any]) -> dict[str, Any]:
    """The info of one lane from those of a vector of one."""
    return {k: v[0].item() if v.ndim == 1 else v[0].copy() for k, v in infos.items() if k[0] != "_"}
