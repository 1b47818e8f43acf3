"""Any Gymnasium environment as one with small frames, as it is recorded and played beside its dream.

    gymnasium.make("GymFrames-v0", env_id="ale_py:ALE/Pong-v5", size=96)

A store that is recorded from such an environment keeps these arguments, so the environment can be made again.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldmodel.data.env_spec import EnvSpec
from worldmodel.utils.errors import UserError, one_line
from worldmodel.utils.json_schema import load_json
from worldmodel.utils.settings import Count, Pixels, check_value

from .images import is_image, resize_image
from .spaces import to_action_spec


class GymFrames(gym.Env[np.ndarray, Any]):
    """An environment whose observations are frames.

    Observation: `Box(0, 255, (size, size, 3), uint8)`: the environment's own observation if it is an image, otherwise
    its rendering with `render_mode="rgb_array"`. Both are scaled without cropping, so that a model receives everything
    a player can see.
    Action: the environment's.
    `info`: the numbers of a flat observation that is not an image, as obs_0, obs_1, ...

    Args:
        env_id: Gymnasium id; `module:id` imports the module first, which may be in the current folder.
        env_kwargs: Keyword arguments of the environment.
        size: Height and width of a frame in pixels.
        horizon: Time limit in steps; 0 uses that of the environment.
        wrappers: Wrappers of the environment, the innermost first, each as `module:name`. The name is of a class or
            function that takes the environment and nothing else.

    Raises:
        UserError: The environment or a wrapper cannot be made, there is no time limit, or actions cannot be recorded.
    """

    def __init__(
        self,
        env_id: str,
        env_kwargs: dict[str, Any] | None = None,
        size: int = 64,
        horizon: int = 0,
        wrappers: Sequence[str] = (),
    ) -> None:
        env_id, size = check_value(str, env_id, "env_id"), check_value(Pixels, size, "size")
        horizon = check_value(Count, horizon, "horizon")
        kwargs = check_value(dict, env_kwargs or {}, "env_kwargs")
        self.name, self.size = env_id, size
        wrappers = check_value(tuple[str, ...], wrappers, "wrappers")
        self.env = make_env(env_id, kwargs, horizon, wrappers)
        self.is_image = is_image(self.env.observation_space)
        if not self.is_image:
            self.env.close()
            self.env = make_env(env_id, kwargs, horizon, wrappers, render_mode="rgb_array")
        seen = self.env.observation_space
        n = seen.shape[0] if isinstance(seen, spaces.Box) and len(seen.shape) == 1 else 0
        self.variables = tuple(f"obs_{i}" for i in range(n))
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = self.env.action_space
        recipe = {"env_id": env_id, "env_kwargs": kwargs, "size": size, "horizon": horizon}
        recipe |= {"wrappers": list(wrappers)} if wrappers else {}
        self.env_spec = EnvSpec(
            name=env_id.rpartition(":")[2].replace("/", "-"),
            env_id="GymFrames-v0",
            env_kwargs=recipe,
            frame_shape=(size, size, 3),
            action=to_action_spec(self.action_space),
            variables=self.variables,
            fps=float(self.env.metadata.get("render_fps") or 10),
            max_episode_steps=horizon or self._own_limit(),
        )
        self.metadata = {"render_modes": [], "render_fps": self.env_spec.fps}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self.observation, _ = self.env.reset(seed=seed, options=options)
        return self._frame(), self._variable_values()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.observation, reward, terminated, truncated, _ = self.env.step(action)
        return self._frame(), float(reward), bool(terminated), bool(truncated), self._variable_values()

    def close(self) -> None:
        self.env.close()

    def _own_limit(self) -> int:
        """The environment's time limit in steps; `UserError` without one, because an episode might never end."""
        steps = limit_of(self.env)
        if not steps:
            raise UserError(f"{self.name} has no time limit, so an episode might never end; give --max-episode-steps")
        return steps

    def _variable_values(self) -> dict[str, float]:
        return dict(zip(self.variables, self.observation.tolist(), strict=True)) if self.variables else {}

    def _frame(self) -> np.ndarray:
        picture = self.observation if self.is_image else self.env.render()
        if not isinstance(picture, np.ndarray) or picture.ndim not in (2, 3) or picture.dtype != np.uint8:
            raise UserError(
                f"{self.name} renders no image as rgb_array; wrap the environment to have images as observations"
            )
        return resize_image(picture, self.size)


def make_env(
    env_id: str, env_kwargs: dict[str, Any], horizon: int, wrappers: Sequence[str] = (), **more: Any
) -> gym.Env[Any, Any]:
    """Make an environment with a time limit in steps, or its own if that is 0; `UserError` if it cannot be made."""
    add_cwd_to_path()
    limit = {"max_episode_steps": horizon} if horizon else {}
    try:
        env = gym.make(env_id, disable_env_checker=True, **env_kwargs, **limit, **more)
    except Exception as error:  # environments raise errors of any type
        why = one_line(error).rstrip(".")
        raise UserError(f"{env_id} cannot be made: {why}; fix or install it, or give another id") from None
    for name in wrappers:
        env = wrap(env, name)
    return env


def wrap(env: gym.Env[Any, Any], name: str) -> gym.Env[Any, Any]:
    """Put the wrapper `module:name` around an environment; `UserError` if that cannot be done."""
    try:
        wrapped = import_named(name)(env)
    except Exception as error:  # wrappers raise errors of any type
        raise UserError(
            f"wrapper {name!r} failed: {one_line(error).rstrip('.')}; give module:name of a class or function that "
            "takes the environment alone"
        ) from None
    if not isinstance(wrapped, gym.Env):
        raise UserError(f"wrapper {name!r} made {type(wrapped).__name__}, not a gymnasium.Env; return the environment")
    return wrapped


def time_limit(env_id: str, env_kwargs: dict[str, Any]) -> int:
    """The environment's own time limit in steps; 0 if it has none."""
    with closing(make_env(env_id, env_kwargs, 0)) as env:
        return limit_of(env)


def limit_of(env: gym.Env[Any, Any]) -> int:
    """The time limit in steps of an environment object; 0 if it has none."""
    return int(env.spec.max_episode_steps or 0) if env.spec else 0


def parse_env_kwargs(text: str) -> dict[str, Any]:
    """Keyword arguments of an environment from JSON; `UserError` if the text is not a valid JSON dictionary."""
    example = """give something like '{"level": 1}'"""
    try:
        made = load_json(text)
    except ValueError as error:
        raise UserError(f"env_kwargs {text!r} is not valid JSON ({error}); {example}") from None
    if not isinstance(made, dict) or "render_mode" in made:
        raise UserError(f"env_kwargs {text!r} must be a dictionary, and render_mode is chosen here; {example}")
    return made


def import_named(name: str) -> Any:
    """What `module:name` names; the module may be in the current folder, and may raise any error."""
    add_cwd_to_path()
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def add_cwd_to_path() -> None:
    """Make modules in the current folder importable."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
