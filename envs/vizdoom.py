"""ViZDoom as a Gymnasium environment with small frames: 64x64x3 uint8, with each action held for `frame_skip` tics.

Differences from ViZDoom's own Gymnasium wrapper:

* The engine's time limit is switched off and counted here, in steps. The engine reports a timeout as a termination
  without a frame, and a world model would learn that time kills. Here `terminated` means that the episode really ended,
  and `truncated` that the time limit was reached.
* When the player dies the engine has no state, and its wrapper returns a black frame. Here the last frame is repeated,
  so that no black frame enters the data.
* The engine writes its settings and a working folder into the current directory. Here each instance has a temporary
  folder. Engine and folder are removed by `close`, at the end of the process, and after it was killed
  (`envs/engine_cleanup.py`).

Reward and game variables are those of the scenario, actions those of `envs.buttons`. Health Gathering Supreme: +1 per
tic alive (+4 per step at frame skip 4), -100 at death, actions (none, forward, right, left), HEALTH in `info`. Battle2:
+1 per monster killed, actions with five factors, and AMMO2, HEALTH and USER2 (the number of kills) in `info`.

The frame skip of 4 is that of published scores (Kempka et al., 2016, and later work).
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from PIL import Image

from worldmodel.data.env_spec import EnvSpec
from worldmodel.utils.errors import UserError
from worldmodel.utils.extras import extra
from worldmodel.utils.settings import Count, Pixels, Positive, check_value

from .buttons import Buttons
from .engine_cleanup import EngineFolder
from .recorded_env import make_recorded_env
from .render import Picture, Viewer
from .reset_arguments import check_options, check_render_mode, check_seed
from .scenarios import Scenario, find_scenario
from .spaces import to_action_spec

with extra("vizdoom"):
    import vizdoom as vzd


def make_engine(env_spec: EnvSpec) -> VizdoomFrames:
    """Make the engine that a store was recorded from; `UserError` if it was not recorded from ViZDoom."""
    if env_spec.env_id != "VizdoomFrames-v0":
        raise UserError(
            f"{env_spec.name} was not recorded from VizdoomFrames-v0, so there is no engine to compare with; use a run "
            "that was"
        )
    engine = make_recorded_env(env_spec).unwrapped
    assert isinstance(engine, VizdoomFrames)
    return engine


def open_game(scenario: Scenario, folder: Path) -> vzd.DoomGame:
    """Set up an engine without a window and without starting it. It writes its files into `folder`."""
    game = vzd.DoomGame()
    game.load_config(str(scenario.config))
    if scenario.wad is not None:
        game.set_doom_scenario_path(str(scenario.wad))
    if scenario.map_name:
        game.set_doom_map(scenario.map_name)
    game.add_game_args(scenario.arguments)
    game.set_mode(vzd.Mode.PLAYER)  # never in real time
    game.set_window_visible(False)
    game.set_screen_format(vzd.ScreenFormat.RGB24)
    game.set_screen_resolution(vzd.ScreenResolution.RES_160X120)
    game.set_doom_config_path(f"{folder}/vizdoom.ini")
    return game


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Report a Ctrl-C as Ctrl-C. It also ends the engine, whose error may come first."""
    try:
        yield
    except vzd.ViZDoomUnexpectedExitException:
        time.sleep(0.1)  # raises KeyboardInterrupt, if there was a Ctrl-C
        raise


def close_engine(game: vzd.DoomGame, folder: EngineFolder) -> None:
    """Close an engine and remove its folder."""
    try:
        game.close()
    finally:
        folder.close()


class VizdoomFrames(gym.Env[np.ndarray, Any]):
    """A ViZDoom scenario with small RGB frames.

    Observation: `Box(0, 255, (size, size, 3), uint8)`, the 160x120 screen resized by area averaging.
    Action: `Discrete(buttons + 1)`, where action 0 does nothing; `MultiDiscrete` for Battle2.
    `info`: the scenario's game variables by name, as float.

    Args:
        scenario: Scenario that ships with ViZDoom, or battle2.
        frame_skip: Tics per step.
        size: Height and width of a frame.
        horizon: Time limit in steps; None uses the scenario's, 0 sets no limit.
        render_mode: "rgb_array" (the 160x120 screen), "human" (a window) or None.

    Raises:
        UserError: An argument is invalid, or the scenario's map is missing.
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

        found = find_scenario(check_value(str, scenario, "scenario"))
        frame_skip, size = check_value(Positive, frame_skip, "frame_skip"), check_value(Pixels, size, "size")
        horizon = check_value(Count | None, horizon, "horizon")
        self.render_mode = check_render_mode(render_mode, self.metadata["render_modes"])
        self.frame_skip, self.size = frame_skip, size
        self.metadata = {**self.metadata, "render_fps": vzd.DEFAULT_TICRATE / frame_skip}
        self._own = EngineFolder()
        self.folder = self._own.path
        self.game, self.multiplayer = open_game(found, self.folder), bool(found.arguments)
        self._end = weakref.finalize(self, close_engine, self.game, self._own)
        tics = self.game.get_episode_timeout() or found.time_limit
        limit = horizon if horizon is not None else tics and max(1, tics // frame_skip)  # 0: no limit
        self.game.set_episode_timeout(0)
        self.buttons = Buttons(self.game.get_available_buttons(), found.factored)
        self.action_space = self.buttons.space
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.variables = tuple(v.name for v in self.game.get_available_game_variables())
        self.env_spec = EnvSpec(
            name=scenario,
            env_id="VizdoomFrames-v0",
            env_kwargs={"scenario": scenario, "frame_skip": frame_skip, "size": size, "horizon": limit},
            frame_shape=(size, size, 3),
            action=to_action_spec(self.action_space),
            variables=self.variables,
            fps=vzd.DEFAULT_TICRATE / frame_skip,
            max_episode_steps=limit,
        )
        self.viewer = Viewer(scenario, self.env_spec.fps)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        check_options(options, ())
        super().reset(seed=check_seed(seed))
        self.game.set_seed(int(self.np_random.integers(2**32, dtype=np.uint32)))
        if self.multiplayer:  # a multiplayer game does not restart with new_episode
            self.game.close()
        with interruptible():
            if self.game.is_running():
                self.game.new_episode()
            else:
                with contextlib.chdir(self.folder):
                    self.game.init()
                self._own.record_shared_memory()
        self._read_state()
        self.elapsed = 0
        return self._observe()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if not self.game.is_running():
            raise UserError("no episode has started; call reset first")
        buttons = self.buttons.press(self.env_spec.action.check(action))
        with interruptible():
            reward = self.game.make_action(buttons.tolist(), self.frame_skip)
        terminated = self.game.is_episode_finished()
        if not terminated:  # the engine has no frame of the end, so the last one is repeated
            self._read_state()
        self.elapsed += 1
        truncated = not terminated and 0 < self.env_spec.max_episode_steps <= self.elapsed
        frame, info = self._observe()
        return frame, float(reward), bool(terminated), truncated, info

    def _read_state(self) -> None:
        state = self.game.get_state()
        assert state is not None
        self.screen = state.screen_buffer.copy()
        self.variable_values = np.array([] if state.game_variables is None else state.game_variables, np.float32)

    def _observe(self) -> tuple[np.ndarray, dict[str, Any]]:
        if self.render_mode == "human":
            self.viewer.show(self.screen)
        frame = Image.fromarray(self.screen).resize((self.size, self.size), Image.Resampling.BOX)
        return np.array(frame), dict(zip(self.variables, self.variable_values.tolist(), strict=True))

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        if not self.game.is_running():
            raise UserError("there is nothing to render yet; call reset first")
        return self.screen.copy().view(Picture) if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        self.viewer.close()
        self._end()
