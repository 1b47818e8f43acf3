"""A robot that pushes objects in a bin, like BAIR's data (Ebert et al., 2017), simulated with MuJoCo.

Frames, actions and variables have the names and meanings of the published data, so that stores of this environment and
of `collect/bair.py` are interchangeable:

* Frames: 64x64x3 uint8 from one fixed oblique camera. An episode has 30 frames and 29 steps of 0.2 s.
* Action `Box(4)`: dx and dy of the hand in meters, number of steps to close the gripper, number of steps to lift the
  hand (see `envs/pushing_robot.py`). The numbers of steps are rounded.
* `info`: x, y, z of the hand in meters in the robot's frame; `endeffector_pos` in BAIR's data.
* Reward is always 0, as in BAIR's data. An episode never terminates; it is truncated after its last step.

Objects, their colors and positions, and the hand's first position depend on the episode's seed. A frame is rendered at
twice its size and averaged, because multisampling in software is slower.
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
from .render import Picture, Viewer
from .reset_arguments import check_options, check_render_mode, check_seed
from .spaces import to_gym_space

SUPERSAMPLING = 2
"""Rendered pixels per frame pixel along each axis."""
Size = Annotated[int, Range(1, MAX_RENDER_SIZE // SUPERSAMPLING)]
"""Height and width of a frame."""


class Pushing(gym.Env[np.ndarray, Any]):
    """Simulated robot pushing with small RGB frames. `render` returns the frame at its rendered size.

    Args:
        size: Height and width of a frame.
        horizon: Steps per episode, one less than its frames.
        render_mode: "rgb_array", "human" (a window) or None.

    Raises:
        UserError: An argument is invalid, or (in `reset`) no offscreen renderer works.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "human"], "render_fps": 1 / STEP_SECONDS}

    def __init__(self, size: int = 64, horizon: int = 29, render_mode: str | None = None) -> None:

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
        if self.renderer is None:  # one OpenGL context for all episodes
            self.renderer = OffscreenRenderer(self.robot.model, "aux1", SUPERSAMPLING * self.size)
        return self._observe()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.renderer is None:
            raise UserError("no episode has started; call reset first")
        self.robot.act(self.env_spec.action.check(action))
        frame, info = self._observe()
        return frame, 0.0, False, self.robot.steps >= self.env_spec.max_episode_steps, info

    def project(self, points: np.ndarray) -> np.ndarray:
        """Row and column (n, 2) in pixels of a frame, of points (n, 3) in meters."""
        position, rotation, focal = self._camera_pose()
        rays = (points - position) @ rotation
        return self.size / 2 + focal * rays[:, [1, 0]] / rays[:, 2:] * (1, -1)

    def unproject(self, pixel: np.ndarray, height: float) -> np.ndarray:
        """x and y (2,) in meters of the point at a given height that projects to a pixel (row, column)."""
        position, rotation, focal = self._camera_pose()
        row, column = (np.asarray(pixel) - self.size / 2) / focal
        ray = rotation @ (-column, row, 1.0)
        return (position + ray * (height - position[2]) / ray[2])[:2]

    def _camera_pose(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Position (3,), rotation (3, 3) and focal length (in pixels of a frame) of the camera."""
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
        return self.rendered.copy().view(Picture) if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        self.viewer.close()
        if self.renderer is not None:
            self.renderer.close()
            self.renderer = None
