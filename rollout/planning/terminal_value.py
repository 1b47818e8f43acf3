"""What a future of Doom is worth to a plan: its predicted return, and what is left at its end.

A short horizon seldom sees a death, so the rewards of all futures are alike; what tells them apart is how much life
they end with. Two answers to that:

* points of HEALTH, each of some worth: a future must reach a kit within its horizon to gain by it;
* the critic of a policy (`TerminalValue.from_policy`), which has learned what the last frame is worth: a kit in sight
  counts. PPO learned with potential-based shaping, under which values are lower by the potential (Ng, Harada and
  Russell, 1999); it is added again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from envs.dream import DreamEnv
from envs.policies import load_policy, policy_folder, stack_frames
from worldmodel.data.env_spec import EnvSpec
from worldmodel.utils.checkpoint import read_header
from worldmodel.utils.errors import UserError


@dataclass(frozen=True)
class TerminalValue:
    """What the end of a future is worth, in units of the engine's reward."""

    variable_weights: tuple[tuple[str, float], ...] = (("HEALTH", 1.0),)
    """Game variables, and what a point of each is worth; a world without them has none."""
    gamma: float = 1.0
    """Discount of a step."""
    n_stack: int = 1
    """Frames that the critic sees at once."""
    value_fn: Callable[[np.ndarray], np.ndarray] | None = None
    """(n,) the value of frames (n, h, w, 3 depth)."""

    @staticmethod
    def from_policy(name: str, env_spec: EnvSpec) -> TerminalValue:
        """The critic of a policy: a folder, or one that ships; `UserError` if it never learned values."""
        policy, training = load_policy(name, env_spec), read_header(policy_folder(name))[0]["training"]
        if "reward_scale" not in training:
            raise UserError(f"{name} learned no values, only to imitate; give a policy of train/policy.py")
        scale, shaping = training["reward_scale"], training["reward_shaping"]
        if missing := [variable for variable, _ in shaping if variable not in env_spec.variables]:
            raise UserError(f"{name} learned with {missing[0]}, of which this dream knows nothing; give another critic")

        @torch.inference_mode()
        def value(frames: np.ndarray) -> np.ndarray:
            return policy.predict_values(policy.obs_to_tensor(frames)[0])[:, 0].numpy() / scale

        depth = policy.observation_space.shape[0] // 3  # type: ignore[index]
        return TerminalValue(
            tuple((variable, weight / scale) for variable, weight in shaping), training["gamma"], depth, value
        )


def survival_value(dream: DreamEnv, actions: np.ndarray, seed: int, terminal_value: TerminalValue) -> np.ndarray:
    """(n,) worth of action sequences (n, horizon), each in a future of its own."""
    fork = dream.fork(len(actions), seed)
    total, alive, discount, frames = np.zeros(len(actions)), np.ones(len(actions), bool), 1.0, [fork.frames]
    for t in range(actions.shape[1]):
        rewards, terminated, _, _ = fork.step_lanes(actions[:, t])
        total += discount * rewards * alive
        alive &= ~terminated
        discount *= terminal_value.gamma
        frames = [*frames, fork.frames][-terminal_value.n_stack :]
    final_value = np.zeros(len(actions))
    for name, worth in terminal_value.variable_weights:
        if name in dream.env_spec.variables:
            final_value += worth * fork.variables[:, dream.env_spec.variables.index(name)]
    if terminal_value.value_fn is not None:
        final_value += terminal_value.value_fn(stack_frames(np.stack(frames), terminal_value.n_stack))
    return total + discount * final_value * alive
