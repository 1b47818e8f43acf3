"""Tiny models of Stable-Baselines3 and the environments that they play."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, TRPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack
from torch import nn

VECTOR = spaces.Box(-9, 9, (3,), np.float32)
PICTURE = spaces.Box(0, 255, (36, 40, 3), np.uint8)
SIDES, AXES = spaces.Discrete(3), spaces.Box(np.array([-2, 0], np.float32), np.array([2, 1], np.float32))


class Noise(gym.Env[Any, Any]):
    """Observations are random; an episode has seven steps."""

    def __init__(self, observed: gym.Space[Any] = VECTOR, actions: gym.Space[Any] = SIDES) -> None:
        self.observation_space, self.action_space = observed, actions

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.see(), {}

    def see(self) -> Any:
        if isinstance(self.observation_space, spaces.Dict):
            return {name: self.noise(space) for name, space in self.observation_space.items()}
        return self.noise(self.observation_space)

    def noise(self, space: Any) -> np.ndarray:
        high = space.low + self.np_random.random() * (space.high.astype(float) - space.low)  # some are darker
        return self.np_random.uniform(space.low, high).astype(space.dtype)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.t += 1
        return self.see(), 0.0, self.t == 7, False, {}


def vec_noise(observed: gym.Space[Any], actions: gym.Space[Any], n_stack: int = 1) -> VecEnv:
    env: VecEnv = DummyVecEnv([lambda: Noise(observed, actions)])
    return VecFrameStack(env, n_stack) if n_stack > 1 else env


def make(kind: Any, policy: str, observed: gym.Space[Any], actions: gym.Space[Any], **more: Any) -> BaseAlgorithm:
    """A model with random weights; weights that do not differ much would all lead to one action."""
    n_stack = more.pop("n_stack", 1)
    small = {"buffer_size": 10} if kind in (DQN, QRDQN, SAC, TD3, DDPG, TQC) else {}
    more["policy_kwargs"] = dict(more.get("policy_kwargs", {}))  # algorithms write into it
    model = kind(policy, vec_noise(observed, actions, n_stack), seed=0, device="cpu", **small, **more)
    generator = np.random.default_rng(1)
    for parameter in model.policy.parameters():
        if parameter.ndim > 1:
            noise = generator.normal(size=parameter.shape, scale=2 / np.sqrt(parameter[0].numel()))
            parameter.data.copy_(parameter.new_tensor(noise))
    return model


WIDTHS = {"net_arch": [8, 8]}
CNN = {"features_extractor_kwargs": {"features_dim": 8}}
MODELS: dict[str, Callable[[], BaseAlgorithm]] = {
    "ppo": lambda: make(PPO, "MlpPolicy", VECTOR, SIDES),
    "ppo, other sizes": lambda: make(
        PPO,
        "MlpPolicy",
        VECTOR,
        spaces.MultiDiscrete([2, 3]),
        policy_kwargs={"net_arch": {"pi": [8], "vf": [4, 4]}, "activation_fn": nn.ReLU, "ortho_init": False},
    ),
    "ppo, axes": lambda: make(PPO, "MlpPolicy", VECTOR, AXES),
    "ppo, gSDE": lambda: make(PPO, "MlpPolicy", VECTOR, AXES, use_sde=True),
    "ppo, pictures": lambda: make(PPO, "CnnPolicy", PICTURE, SIDES, policy_kwargs=CNN),
    "ppo, a dictionary": lambda: make(
        PPO,
        "MultiInputPolicy",
        spaces.Dict({"eye": PICTURE, "arm": VECTOR}),
        SIDES,
        policy_kwargs={"features_extractor_kwargs": {"cnn_output_dim": 8}},
    ),
    "a2c, stacked pictures": lambda: make(A2C, "CnnPolicy", PICTURE, SIDES, n_stack=4, policy_kwargs=CNN),
    "a2c, stacked vectors": lambda: make(A2C, "MlpPolicy", VECTOR, SIDES, n_stack=3),
    "dqn": lambda: make(DQN, "MlpPolicy", VECTOR, SIDES, policy_kwargs=WIDTHS),
    "dqn, stacked pictures": lambda: make(DQN, "CnnPolicy", PICTURE, SIDES, n_stack=2, policy_kwargs=CNN),
    "sac": lambda: make(SAC, "MlpPolicy", VECTOR, AXES, policy_kwargs=WIDTHS),
    "sac, gSDE": lambda: make(SAC, "MlpPolicy", VECTOR, AXES, policy_kwargs=WIDTHS, use_sde=True),
    "td3": lambda: make(TD3, "MlpPolicy", VECTOR, AXES, policy_kwargs=WIDTHS),
    "ddpg": lambda: make(DDPG, "MlpPolicy", VECTOR, AXES, policy_kwargs=WIDTHS),
    "recurrent": lambda: make(RecurrentPPO, "MlpLstmPolicy", VECTOR, SIDES, policy_kwargs={"lstm_hidden_size": 16}),
    "recurrent, stacked pictures": lambda: make(
        RecurrentPPO, "CnnLstmPolicy", PICTURE, SIDES, n_stack=2, policy_kwargs=CNN | {"lstm_hidden_size": 16}
    ),
    "trpo": lambda: make(TRPO, "MlpPolicy", VECTOR, AXES, policy_kwargs=WIDTHS),
    "qrdqn": lambda: make(QRDQN, "MlpPolicy", VECTOR, SIDES, policy_kwargs=WIDTHS | {"n_quantiles": 5}),
    "tqc": lambda: make(TQC, "MlpPolicy", VECTOR, AXES, policy_kwargs=WIDTHS),
}


def rewrite(path: Path, weights: Any = None, **data: Any) -> None:
    """Write a saved model again, with other weights or other values in its JSON."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    if weights is not None:
        torch.save(weights, buffer := io.BytesIO())
        parts["policy.pth"] = buffer.getvalue()
    parts["data"] = json.dumps(json.loads(parts["data"]) | data).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
