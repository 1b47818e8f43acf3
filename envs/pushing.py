"""A robot pushing objects about a bin, in the manner of BAIR's data (Ebert et al., 2017), simulated by MuJoCo.

Frames, actions and what is recorded beside them have the names and meanings of the published data, so that a store of
this environment and one that `collect/bair.py` read can stand for each other:

* 64x64x3 uint8 from one fixed oblique camera; 30 frames an episode, 29 steps of 0.2 s.
* Action `Box(4)`: dx and dy of the hand in metres, steps for which the gripper closes, steps for which the hand is
  lifted (`envs/pushing_robot.py` says where this comes from). Numbers of steps are rounded.
* `info`: x, y, z of the hand in metres in the robot's frame, BAIR's `endeffector_pos`.
* Reward 0, as there; an episode never terminates, and is truncated after its last step.

Objects, their colours and places, and the hand's first place are drawn from the episode's seed. A frame is drawn at
twice its size and averaged, since multisampling in software costs more.
"""

from __future__ import annotations

from typing import Annotated, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldmodel.data.env_spec import EnvSpec
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import Positive, Range, check_value

from .offscreen import OffscreenRenderer
from .pushing_robot import ACTION, STEP_SECONDS, Robot
from .pushing_scene import MAX_RENDER_SIZE
from .render import Viewer
from .reset_arguments import check_options, check_render_mode, check_seed
from .spaces import to_gym_space

SUPERSAMPLING = 2
"""Pixels of the drawing, each way, that are averaged into one of the frame."""
Size = Annotated[int, Range(1, MAX_RENDER_SIZE // SUPERSAMPLING)]
"""Height and width of a frame that the drawing has room for."""


class Pushing(gym.Env[np.ndarray, Any]):
    """BAIR's robot pushing as small RGB frames; what is drawn, before it is averaged, is what `render` shows."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "human"], "render_fps": 1 / STEP_SECONDS}

    def __init__(self, size: int = 64, horizon: int = 29, render_mode: str | None = None) -> None:
        """`horizon` is the length of an episode in steps, one less than its frames."""
        size, horizon = check_value(Size, size, "size"), check_value(Positive, horizon, "horizon")
        self.render_mode, self.size = check_render_mode(render_mode, self.metadata["render_modes"]), size
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = to_gym_space(ACTION)
        self.variables = ("x", "y", "z")
        self.env_spec = EnvSpec(
            name="bair",
            env_id="BAIRPushing-v0",
            env_kwargs={"size": size, "horizon": horizon},
            frame_shape=(size, size, 3),
            action=ACTION,
            variables=self.variables,
            fps=1 / STEP_SECONDS,
            max_episode_steps=horizon,
        )
        self.viewer = Viewer("BAIR pushing", self.env_spec.fps)
        self.renderer: OffscreenRenderer | None = None

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        check_options(options, ())
        super().reset(seed=check_seed(seed))
        self.robot = Robot(self.np_random)
        if self.renderer is None:  # one drawing context draws all episodes
            self.renderer = OffscreenRenderer(self.robot.model, "aux1", SUPERSAMPLING * self.size)
        return self._observe()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.renderer is None:
            raise UserError("no episode has begun; call reset first")
        self.robot.act(self.env_spec.action.check(action))
        frame, info = self._observe()
        return frame, 0.0, False, self.robot.steps >= self.env_spec.max_episode_steps, info

    def project(self, points: np.ndarray) -> np.ndarray:
        """(n, 2) row and column, in pixels of a frame, of points (n, 3) in metres."""
        position, rotation, focal = self._camera_pose()
        rays = (points - position) @ rotation
        return self.size / 2 + focal * rays[:, [1, 0]] / rays[:, 2:] * (1, -1)

    def unproject(self, pixel: np.ndarray, height: float) -> np.ndarray:
        """(2,) x and y in metres of what is at that height, and seen at a pixel (row, column): the reverse."""
        position, rotation, focal = self._camera_pose()
        row, column = (np.asarray(pixel) - self.size / 2) / focal
        ray = rotation @ (-column, row, 1.0)
        return (position + ray * (height - position[2]) / ray[2])[:2]

    def _camera_pose(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Where the camera is (3,), how it is turned (3, 3), and its focal length in pixels of a frame."""
        camera, data = self.robot.model.camera("aux1").id, self.robot.data
        focal = self.size / 2 / np.tan(np.radians(self.robot.model.cam_fovy[camera]) / 2)
        return data.cam_xpos[camera], data.cam_xmat[camera].reshape(3, 3), focal

    def _observe(self) -> tuple[np.ndarray, dict[str, Any]]:
        assert self.renderer is not None
        self.rendered = self.renderer.draw(self.robot.model, self.robot.data)
        if self.render_mode == "human":
            self.viewer.show(self.rendered)
        parts = self.rendered.reshape(self.size, SUPERSAMPLING, self.size, SUPERSAMPLING, 3)
        frame = np.rint(parts.mean((1, 3))).astype(np.uint8)
        return frame, dict(zip(self.variables, self.robot.hand.tolist(), strict=True))

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        if self.renderer is None:
            raise UserError("there is nothing to render yet; call reset first")
        return self.rendered.copy() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        self.viewer.close()
        if self.renderer is not None:
            self.renderer.close()
            self.renderer = None
