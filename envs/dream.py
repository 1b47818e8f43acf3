"""A world model as a Gymnasium environment: `gym.make("VideoGPTDream-v0")`, or with `model="runs/demo"`.

The spaces are those of the recorded environment, so a policy can be used in both without changes. `terminated` is
sampled from the predicted probability of termination. `truncated` is the time limit of the recorded environment.

`info` contains the predicted game variables by name. After a step it also contains `done_prob` (the probability of
termination), `expected_reward`, `expected_<variable>` (for example `expected_HEALTH`), and `log_likelihood` and
`entropy` in nats per frame.

`DreamEnv` is a `DreamVectorEnv` (envs/vector.py) with one lane.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from worldmodel.utils.settings import as_array

from .keys import keys_to_actions
from .render import Picture, Viewer
from .reset_arguments import check_render_mode, check_seed
from .vector import DreamVectorEnv


class DreamEnv(gym.Env[np.ndarray, Any]):
    """A world model as a single environment. The options of `reset` are those of `DreamVectorEnv`.

    Args:
        model: Run folder, or `hf://owner/name`; by default the pretrained model of `world=`.
        render_mode: "rgb_array", "human" (a window) or None.
        **settings: The fields of `DreamConfig`.

    Raises:
        UserError: An argument is invalid, or the run folder is incomplete.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "human"], "render_fps": 35 / 4}

    def __init__(self, model: str | Path = "", render_mode: str | None = None, **settings: Any) -> None:
        self.render_mode = check_render_mode(render_mode, self.metadata["render_modes"])
        self.vector_env = DreamVectorEnv(1, model, AutoresetMode.DISABLED, **settings)
        self.env_spec, self.contexts = self.vector_env.env_spec, self.vector_env.contexts
        self.metadata = {**self.metadata, "render_fps": self.vector_env.metadata["render_fps"]}
        self.observation_space = self.vector_env.single_observation_space
        self.action_space = self.vector_env.single_action_space
        self.viewer = Viewer(f"dream of {self.env_spec.name}", self.metadata["render_fps"])

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Makes the episode repeatable.
            options: Where it starts: {"context": number} of a starting context, or {"frames": (t, h, w, c) uint8,
                "actions": (t - 1, ...), "variables": (t, v)} of real frames; by default a random starting context.

        Returns:
            The last frame of the context (h, w, c) uint8, and the info.

        Raises:
            UserError: If seed or options do not fit the dream.
        """
        seed = check_seed(seed)
        self.vector_env.rngs = [self.np_random]  # a wrapper may have replaced it
        _, infos = self.vector_env.reset(seed=seed, options=options)
        self._np_random = self.vector_env.rngs[0]
        self._np_random_seed = self._np_random_seed if seed is None else seed
        return self._observation(), single_info(infos)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Dream the next frame.

        Args:
            action: An action of the recorded environment.

        Returns:
            The frame (h, w, c) uint8, the reward, whether the episode terminated or was truncated, and the info.

        Raises:
            UserError: If the action is outside the space, or the dream was not reset.
        """
        rewards, terminated, truncated, step_info = self.vector_env.step_lanes(as_array(action)[None])
        every = np.ones(1, bool)
        info = single_info(self.vector_env._gym_info(every, step_info, every))
        return self._observation(), float(rewards[0]), bool(terminated[0]), bool(truncated[0]), info

    def snapshot(self) -> dict[str, Any]:
        """The complete state of the dream; `restore` returns to it any number of times."""
        return self.vector_env.snapshot()

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Return to a snapshot. The same actions then give the same frames; see `DreamVectorEnv.restore`."""
        self.vector_env.restore(snapshot)
        self._np_random = self.vector_env.rngs[0]

    def fork(self, n: int, seed: int | None = None) -> DreamVectorEnv:
        """Copies of the current state, to try several futures.

        Args:
            n: Number of copies.
            seed: Seed of what each of them samples from here on.

        Returns:
            A vector environment with n lanes; see `DreamVectorEnv.fork`.
        """
        return self.vector_env.fork(n, seed)

    def get_keys_to_action(self) -> dict[str, int]:
        """Key -> action, for `gymnasium.utils.play`."""
        return keys_to_actions(self.env_spec)

    def _observation(self) -> np.ndarray:
        if self.render_mode == "human":
            self.viewer.show(self.vector_env.frames[0])
        return self.vector_env.frames[0].copy()

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """The current frame, enlarged four times: (4h, 4w, 3). A notebook shows it."""
        self.vector_env.require_lanes("rendering")
        if self.render_mode != "rgb_array":
            return None
        return self.vector_env.frames[0].repeat(4, 0).repeat(4, 1).view(Picture)

    def close(self) -> None:
        self.viewer.close()


def single_info(infos: dict[str, Any]) -> dict[str, Any]:
    """The info of the only lane of a vector environment with one lane."""
    return {k: v[0].item() if v.ndim == 1 else v[0].copy() for k, v in infos.items() if k[0] != "_"}
