"""The value of a future of Doom for planning: its predicted return plus a terminal value.

Deaths within a short horizon are rare, so most futures have equal rewards. They differ in their final state. Two
terminal values are available:

* a weight per point of HEALTH: a future gains only if it reaches a medikit within its horizon;
* the value function of a policy (`TerminalValue.from_policy`) on the last frames: a visible medikit counts too. With
  potential-based shaping, PPO learns values that are lower by the potential (Ng, Harada and Russell, 1999), so the
  potential is added again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from envs.dream import DreamEnv
from envs.policies import load_policy, policy_folder, stack_frames
from worldmodel.data.env_spec import EnvSpec
from worldmodel.utils.checkpoint import read_checkpoint
from worldmodel.utils.errors import UserError


@dataclass(frozen=True)
class TerminalValue:
    """The value of the final state of a future, in units of the engine's reward."""

    variable_weights: tuple[tuple[str, float], ...] = (("HEALTH", 1.0),)
    """Game variables and the value of a point of each; variables that the environment lacks are ignored."""
    gamma: float = 1.0
    """Discount factor per step."""
    n_stack: int = 1
    """Number of stacked frames that `value_fn` takes."""
    value_fn: Callable[[np.ndarray], np.ndarray] | None = None
    """Values (n,) of stacked frames (n, h, w, 3 n_stack)."""

    @staticmethod
    def from_policy(name: str, env_spec: EnvSpec) -> TerminalValue:
        """The value function of a policy: a folder, or a pretrained one.

        Raises:
            UserError: The policy has no trained value function, or was shaped with variables that the dream lacks.
        """
        policy, training = load_policy(name, env_spec), read_checkpoint(policy_folder(name)).config["training"]
        if "reward_scale" not in training:
            raise UserError(f"{name} was trained by imitation and has no value function; use one of train/policy.py")
        scale, shaping = training["reward_scale"], training["reward_shaping"]
        if missing := [variable for variable, _ in shaping if variable not in env_spec.variables]:
            raise UserError(
                f"{name} was trained with the game variable {missing[0]}, which this dream does not have; use another "
                "--value-policy"
            )

        @torch.inference_mode()
        def value(frames: np.ndarray) -> np.ndarray:
            return policy.predict_values(policy.obs_to_tensor(frames)[0])[:, 0].numpy() / scale

        depth = policy.observation_space.shape[0] // 3  # type: ignore[index]
        return TerminalValue(
            tuple((variable, weight / scale) for variable, weight in shaping), training["gamma"], depth, value
        )


def survival_value(dream: DreamEnv, actions: np.ndarray, seed: int, terminal_value: TerminalValue) -> np.ndarray:
    """Values (n,) of action sequences (n, horizon), each in a separate future of the dream."""
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
