"""Episodes: one played in an engine, and where those of a dream start."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from envs.policies import MAX_STACKED_FRAMES, Player
from envs.vector import DreamVectorEnv
from worldmodel.utils.errors import UserError


def start_contexts(env: DreamVectorEnv) -> np.ndarray:
    """The starting context (n,) of each lane: all those that are starts of episodes, in turn.

    Raises:
        UserError: If there are none.
    """
    starts = np.flatnonzero(env.contexts.is_episode_start(env.env_spec.action.encoded_dim).numpy())
    if not len(starts):
        raise UserError(
            f"no starting context of {env.env_spec.name} is the start of an episode; run train/tokens.py again"
        )
    return np.resize(starts, env.num_envs)


def play_episode(env: gym.Env[np.ndarray, Any], player: Player, seed: int, i: int) -> tuple[int, float]:
    """Play episode i with `player`; returns the steps survived and the return."""
    engine_seed, action_seed = np.random.SeedSequence([seed, i]).generate_state(2)
    rng = np.random.default_rng(action_seed)
    frames = [env.reset(seed=int(engine_seed))[0]]
    steps, total, done = 0, 0.0, False
    while not done:
        frame, reward, terminated, truncated, _ = env.step(
            player(np.stack(frames[-MAX_STACKED_FRAMES:])[:, None], rng)[0]
        )
        frames.append(frame)
        steps, total, done = steps + 1, total + float(reward), terminated or truncated
    return steps, total
