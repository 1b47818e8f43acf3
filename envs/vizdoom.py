"""ViZDoom as the models see it: 64x64x3 uint8 frames, one action held for `frame_skip` tics.

What differs from ViZDoom's own Gymnasium wrapper, and why:

* The engine's clock is switched off and the time limit is kept here, in steps. The engine calls a timeout
  a termination and has no picture to show for it; a model of the world would learn that time kills.
  Here `terminated` means that the episode really ended, `truncated` that time ran out.
* When the player dies the engine has no state left, and its wrapper returns a black frame. Here the last
  frame that was seen stands in its place: no black frame enters the data.
* The engine writes its settings and a working folder into the current directory. Here each instance
  has a temporary folder of its own, gone after `close`.

Reward, buttons and game variables are the scenario's. For Health Gathering Supreme: +1 a tic alive
(+4 a step at frame skip 4), -100 at death, actions (none, forward, right, left), HEALTH in `info`.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import vizdoom as vzd
from gymnasium import spaces
from PIL import Image
from vizdoom.gymnasium_wrapper.base_gymnasium_env import VizdoomEnv

from worldmodel.errors import UserError
from worldmodel.world import World

from .render import Viewer
from .spaces import to_spec

TIME_LIMIT = {"take_cover": 2100}
"""Tics, for scenarios that set no limit themselves: that of Gym's DoomTakeCover, by which its scores are known."""


def scenario_config(scenario: str) -> Path:
    """The .cfg of a scenario that ships with ViZDoom; `UserError` listing them for an unknown name."""
    folder = Path(vzd.scenarios_path)
    path = folder / f"{scenario}.cfg"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.cfg")))
        raise UserError(f"there is no scenario {scenario!r}; ViZDoom ships {known}")
    return path


def engine_of(world: World) -> VizdoomFrames:
    """The engine that a world was recorded from."""
    if world.env_id != "VizdoomFrames-v0":
        raise UserError(f"{world.name} was not recorded from VizdoomFrames-v0, so there is no engine to compare with")
    return VizdoomFrames(**world.env_kwargs)


class VizdoomFrames(gym.Env[np.ndarray, Any]):
    """A scenario as small RGB frames.

    Observation: `Box(0, 255, (size, size, 3), uint8)`, the 160x120 screen averaged over areas.
    Action: one button at a time, `Discrete(buttons + 1)` with "nothing" first.
    `info`: the scenario's game variables by name, as float.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "human"], "render_fps": 35 / 4}

    def __init__(
        self,
        scenario: str = "health_gathering_supreme",
        frame_skip: int = 4,
        size: int = 64,
        horizon: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        """`horizon`, in steps, defaults to the scenario's limit in tics over `frame_skip`; 0 means none."""
        if frame_skip < 1 or size < 1:
            raise UserError(f"frame_skip and size must be at least 1, not {frame_skip} and {size}")
        config = scenario_config(scenario)
        self.render_mode, self.frame_skip, self.size = render_mode, frame_skip, size
        self.metadata = {**self.metadata, "render_fps": vzd.DEFAULT_TICRATE / frame_skip}
        self.folder = tempfile.mkdtemp(prefix="vizdoom-")
        self.engine = VizdoomEnv(
            config_file=str(config),
            frame_skip=frame_skip,
            max_buttons_pressed=1,
            screen_resolution="RES_160X120",
        )
        game = self.engine.game
        game.set_doom_config_path(f"{self.folder}/vizdoom.ini")
        tics = game.get_episode_timeout() or TIME_LIMIT.get(scenario, 0)
        limit = tics // frame_skip if horizon is None else horizon
        game.set_episode_timeout(0)
        self.action_space = self.engine.action_space
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.variables = tuple(v.name for v in game.get_available_game_variables())
        self.world = World(
            name=scenario,
            env_id="VizdoomFrames-v0",
            env_kwargs={"scenario": scenario, "frame_skip": frame_skip, "size": size, "horizon": limit},
            frame_shape=(size, size, 3),
            action=to_spec(self.action_space),
            variables=self.variables,
            fps=vzd.DEFAULT_TICRATE / frame_skip,
            max_episode_steps=limit,
        )
        self.viewer = Viewer(scenario, self.world.fps)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        with contextlib.chdir(self.folder):
            self._see(self.engine.reset(seed=seed)[0])
        self.elapsed = 0
        return self._out()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, _, _ = self.engine.step(self.world.action.check(action)[()])
        if not terminated:  # the engine has no picture of the end: the last one stays
            self._see(observation)
        self.elapsed += 1
        truncated = not terminated and 0 < self.world.max_episode_steps <= self.elapsed
        frame, info = self._out()
        return frame, float(reward), bool(terminated), truncated, info

    def _see(self, observation: dict[str, np.ndarray]) -> None:
        self.screen = observation["screen"].copy()
        self.values = observation.get("gamevariables", np.zeros(0, np.float32)).copy()

    def _out(self) -> tuple[np.ndarray, dict[str, Any]]:
        if self.render_mode == "human":
            self.viewer.show(self.screen)
        frame = Image.fromarray(self.screen).resize((self.size, self.size), Image.Resampling.BOX)
        return np.array(frame), dict(zip(self.variables, self.values.tolist(), strict=True))

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        return self.screen.copy() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        self.viewer.close()
        self.engine.close()
        shutil.rmtree(self.folder, ignore_errors=True)
