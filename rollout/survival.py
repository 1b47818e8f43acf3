"""What a future of Doom is worth to a plan: its predicted return, and what is left at its end.

A short horizon seldom sees a death, so the rewards of all futures are alike; what tells them apart is how much life
they end with. Two answers to that:

* points of HEALTH, each of some worth: a future must reach a kit within its horizon to gain by it;
* the critic of a policy (`Beyond.of`), which has learned what the last frame is worth: a kit in sight counts. PPO
  learned with potential-based shaping, under which values are lower by the potential (Ng, Harada and Russell, 1999);
  it is added again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from envs.dream import DreamEnv
from envs.policies import load_policy, policy_folder, stacked
from worldmodel.checkpoint import read_header
from worldmodel.errors import UserError
from worldmodel.world import World


@dataclass(frozen=True)
class Beyond:
    """What the end of a future is worth, in units of the engine's reward."""

    points: tuple[tuple[str, float], ...] = (("HEALTH", 1.0),)
    """Game variables, and what a point of each is worth; a world without them has none."""
    gamma: float = 1.0
    """Discount of a step."""
    depth: int = 1
    """Frames that the critic sees at once."""
    critic: Callable[[np.ndarray], np.ndarray] | None = None
    """(n,) the value of frames (n, h, w, 3 depth)."""

    @staticmethod
    def of(name: str, world: World) -> Beyond:
        """The critic of a policy: a folder, or one that ships; `UserError` if it never learned values."""
        policy, training = load_policy(name, world), read_header(policy_folder(name))[0]["training"]
        if "reward_scale" not in training:
            raise UserError(f"{name} learned no values, only to imitate; give a policy of train/policy.py")
        scale, shaping = training["reward_scale"], training["shaping"]
        weights = shaping if isinstance(shaping, list) else [["HEALTH", shaping]]  # HEALTH alone, once
        if missing := [variable for variable, _ in weights if variable not in world.variables]:
            raise UserError(f"{name} learned with {missing[0]}, of which this dream knows nothing; give another critic")

        @torch.inference_mode()
        def value(frames: np.ndarray) -> np.ndarray:
            return policy.predict_values(policy.obs_to_tensor(frames)[0])[:, 0].numpy() / scale

        depth = policy.observation_space.shape[0] // 3  # type: ignore[index]
        return Beyond(
            tuple((variable, weight / scale) for variable, weight in weights), training["gamma"], depth, value
        )


def survival(dream: DreamEnv, actions: np.ndarray, seed: int, beyond: Beyond) -> np.ndarray:
    """(n,) worth of action sequences (n, horizon), each in a future of its own."""
    fork = dream.fork(len(actions), seed)
    total, alive, discount, frames = np.zeros(len(actions)), np.ones(len(actions), bool), 1.0, [fork.frames]
    for t in range(actions.shape[1]):
        rewards, terminated, _, _ = fork.advance(actions[:, t])
        total += discount * rewards * alive
        alive &= ~terminated
        discount *= beyond.gamma
        frames = [*frames, fork.frames][-beyond.depth :]
    left = np.zeros(len(actions))
    for name, worth in beyond.points:
        if name in dream.world.variables:
            left += worth * fork.variables[:, dream.world.variables.index(name)]
    if beyond.critic is not None:
        left += beyond.critic(stacked(np.stack(frames), beyond.depth))
    return total + discount * left * alive
