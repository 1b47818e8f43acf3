"""A Gymnasium vector environment as a Stable-Baselines3 `VecEnv`, with one forward pass for all lanes.

    PPO("CnnPolicy", SB3VecEnv(gym.make_vec("VideoGPTDream-v0", num_envs=64, autoreset_mode="SameStep")))

SB3 does not accept a Gymnasium `VectorEnv`. Its convention equals Gymnasium's SAME_STEP under other names: the last
frame of an episode is `terminal_observation`, `infos` keep the info of the last step, and `reset_infos` has the info
of the reset.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from worldmodel.utils.errors import UserError
from worldmodel.utils.extras import extra

with extra("sb3"):
    from stable_baselines3.common.vec_env import VecEnv
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices


class SB3VecEnv(VecEnv):
    """Wraps a Gymnasium vector environment for SB3.

    The lanes are one object: `set_attr`, `env_method` and reset options apply to all lanes together.

    Args:
        env: A vector environment made with `autoreset_mode="SameStep"`. Its infos are plain arrays.

    Raises:
        UserError: `env` is not a vector environment, or has another autoreset mode.
    """

    def __init__(self, env: VectorEnv) -> None:
        if not isinstance(env, VectorEnv):
            raise UserError(f"SB3VecEnv needs a vector environment, not {type(env).__name__}; use gym.make_vec")
        if env.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP:
            raise UserError(
                "Stable-Baselines3 resets a lane in the step that ends its episode; make the environment with "
                'autoreset_mode="SameStep"'
            )
        self.env = env
        self.render_mode = env.render_mode
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> np.ndarray:
        """Start an episode in every lane, with the seeds and options that were set; returns frames (b, h, w, c)."""
        seeds = None if all(s is None for s in self._seeds) else list(self._seeds)
        first, *others = self._options
        self._reset_seeds()
        self._reset_options()
        if any(options != first for options in others):
            raise UserError("the lanes of a vector environment are reset together; give all of them the same options")
        frames, infos = self.env.reset(seed=seeds, options=first or None)  # type: ignore[arg-type]
        self.reset_infos = split_infos(infos, self.num_envs)
        return frames

    def step_async(self, actions: np.ndarray) -> None:
        """Take the actions (b, ...) of the next step; `step_wait` makes it."""
        self.actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Make the step: frames (b, h, w, c), rewards (b,) float32, episode ends (b,), and an info for each lane."""
        frames, rewards, terminated, truncated, infos = self.env.step(self.actions)
        final_obs, final_info = infos.pop("final_obs", None), infos.pop("final_info", {})
        step_infos, last = split_infos(infos, self.num_envs), split_infos(final_info, self.num_envs)
        done = terminated | truncated
        for i in np.flatnonzero(done).tolist():
            self.reset_infos[i], step_infos[i] = step_infos[i], last[i] | {"terminal_observation": final_obs[i]}
        for i, info in enumerate(step_infos):
            info["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
        return frames, rewards.astype(np.float32), done, step_infos

    def get_images(self) -> Sequence[np.ndarray | None]:
        """One frame per lane, for `render` and `VecVideoRecorder`."""
        return list(self.env.render() or [None] * self.num_envs)  # type: ignore[arg-type]

    def close(self) -> None:
        self.env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return [getattr(self.env, attr_name)] * len(self._lanes(indices))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        self._check_all_lanes(indices)
        setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        self._check_all_lanes(indices)
        return [getattr(self.env, method_name)(*args, **kwargs)] * self.num_envs

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        return [False] * len(self._lanes(indices))

    def _check_all_lanes(self, indices: VecEnvIndices) -> None:
        if len(self._lanes(indices)) != self.num_envs:
            raise UserError("the lanes of a vector environment are one object; leave indices out")

    def _lanes(self, indices: VecEnvIndices) -> Sequence[int]:
        return list(self._get_indices(indices))


def split_infos(infos: dict[str, Any], n: int) -> list[dict[str, Any]]:
    """Split Gymnasium's dict of arrays into one dict per lane, with only the keys that the lane has."""
    lanes: list[dict[str, Any]] = [{} for _ in range(n)]
    for name, values in infos.items():
        for i in np.flatnonzero(infos.get(f"_{name}", np.zeros(n, bool))):
            lanes[i][name] = values[i].item() if values[i].ndim == 0 else values[i]
    return lanes
