"""A world model as a Gymnasium environment: `gym.make("VideoGPTDream-v0", model="runs/demo")`.

Spaces are those of the environment that was recorded, so a policy moves between the two unchanged. `terminated`
is drawn from the model's probability of an end, `truncated` is the recorded environment's time limit. `info`
has the game variables by name, as the model believes them, and the step's `log_likelihood` and `entropy` in
nats per frame.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from worldmodel.dream import Context, Dream, Lanes
from worldmodel.errors import UserError
from worldmodel.sampling import Sampling

from .render import Viewer
from .spaces import to_space


class DreamEnv(gym.Env[np.ndarray, Any]):
    """One lane of a dream.

    `model`: a run folder. `horizon`: steps of the dream until `truncated`, the recorded limit if None, 0 for none.
    `temperature`, `top_k`, `top_p`: how codes are drawn.

    `reset(options=...)` takes `{"context": i}`, one of the starting contexts beside the model, or
    `{"frames": (t, h, w, 3), "actions": (t - 1, ...), "variables": (v,)}` of one's own, uint8 and a multiple of
    the time stride; without options a starting context is drawn.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "human"], "render_fps": 35 / 4}

    def __init__(
        self,
        model: str | Path = "",
        render_mode: str | None = None,
        horizon: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        device: str = "cpu",
    ) -> None:
        if not str(model):
            raise UserError(
                'give a run folder: gym.make("VideoGPTDream-v0", model="runs/demo"); `make demo` makes that one'
            )
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
        self.dream = Dream.load(Path(model), sampling, device)
        self.contexts = Context.load(Path(model))
        self.world, self.render_mode = self.dream.world, render_mode
        self.limit = -(-self.world.max_episode_steps // self.dream.stride) if horizon is None else horizon
        fps = self.world.fps / self.dream.stride
        self.metadata = {**self.metadata, "render_fps": fps}
        self.observation_space = spaces.Box(0, 255, self.world.frame_shape, np.uint8)
        self.action_space = to_space(self.world.action)
        self.viewer = Viewer(f"dream of {self.world.name}", fps)
        self.lanes: Lanes | None = None

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        context = self._context(options or {})
        self.lanes, frames, variables = self.dream.reset(context, [int(self.np_random.integers(2**63))])
        self.elapsed = 0
        self._show(frames[0])
        return self.frame.copy(), dict(zip(self.world.variables, variables[0].tolist(), strict=True))

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.lanes is None:
            raise UserError("reset the dream before stepping it")
        step = self.dream.step(self.lanes, np.asarray(action)[None])
        self.elapsed += 1
        self._show(step.frames[0, -1])
        info: dict[str, Any] = dict(zip(self.world.variables, step.variables[0].tolist(), strict=True))
        info |= {"log_likelihood": step.log_likelihood.item(), "entropy": step.entropy.item()}
        if self.dream.stride > 1:
            info["frames"] = step.frames[0].cpu().numpy()
        terminated = bool(step.terminated[0])
        truncated = not terminated and 0 < self.limit <= self.elapsed
        return self.frame.copy(), step.reward.item(), terminated, truncated, info

    def snapshot(self) -> tuple[Lanes, int, np.ndarray]:
        """Everything the dream knows now; `restore` takes any number of futures from it."""
        if self.lanes is None:
            raise UserError("reset the dream before taking a snapshot of it")
        return self.lanes.clone(), self.elapsed, self.frame.copy()

    def restore(self, snapshot: tuple[Lanes, int, np.ndarray]) -> None:
        """Go back to a snapshot: the same actions from here give the same dream."""
        lanes, self.elapsed, self.frame = snapshot[0].clone(), snapshot[1], snapshot[2].copy()
        self.lanes = lanes

    def _context(self, options: dict[str, Any]) -> Context:
        unknown = options.keys() - {"context", "frames", "actions", "variables"}
        if unknown:
            raise UserError(
                f"reset takes no option {sorted(unknown)[0]!r}; it takes context, or frames with actions and variables"
            )
        if "frames" in options or "actions" in options:
            if not {"frames", "actions"} <= options.keys():
                raise UserError("a context of one's own has both frames and the actions between them")
            variables = options.get("variables")
            variables = None if variables is None else np.asarray(variables, np.float32)[None]
            return self.dream.context(
                np.asarray(options["frames"])[None], np.asarray(options["actions"])[None], variables
            )
        index = options.get("context", int(self.np_random.integers(len(self.contexts))))
        if not isinstance(index, (int, np.integer)) or not 0 <= index < len(self.contexts):
            raise UserError(f"there are starting contexts 0 to {len(self.contexts) - 1}, but {index} was asked for")
        return self.contexts[slice(index, index + 1)]

    def _show(self, frame: torch.Tensor) -> None:
        self.frame = frame.cpu().numpy().copy()
        if self.render_mode == "human":
            self.viewer.show(self.frame)

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """The current frame, enlarged four times."""
        return self.frame.repeat(4, 0).repeat(4, 1) if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        self.viewer.close()
