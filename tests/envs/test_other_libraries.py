"""Libraries that train on a dream: what they see is the dream, and a few updates of a small network run.

tests/docs/test_works_with.py runs the page about them, with the models that ship.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import Categorical
from torchrl.envs import GymWrapper
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

import envs  # noqa: F401
from envs.sb3 import SB3VecEnv
from envs.vector import DreamVectorEnv

LANES, HORIZON = 3, 4


def make(run: Path, mode: str) -> DreamVectorEnv:
    return gym.make_vec("VideoGPTDream-v0", num_envs=LANES, model=run, autoreset_mode=mode, horizon=HORIZON)


def network(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(-3), nn.Linear(16 * 16 * 3, 8), nn.Tanh(), nn.Linear(8, outputs))


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_the_statistics_of_episodes_that_cleanrl_prints(mode: str, toy_run: Path) -> None:
    env = gym.wrappers.vector.RecordEpisodeStatistics(make(toy_run, mode))
    env.reset(seed=1)
    returns, waits, seen = np.zeros(LANES), np.zeros(LANES, bool), 0
    for step in range(20):
        _, rewards, terminated, truncated, infos = env.step(np.full(LANES, step % 3))
        returns = np.where(waits, 0, returns + rewards)
        over = terminated | truncated
        np.testing.assert_array_equal(infos.get("_episode", np.zeros(LANES, bool)), over)
        if over.any():
            np.testing.assert_allclose(infos["episode"]["r"][over], returns[over], rtol=1e-5)
        seen += int(over.sum())
        waits = over if mode == "NextStep" else np.zeros(LANES, bool)
        returns[over & (mode == "SameStep")] = 0
    assert seen >= LANES * 20 // (HORIZON + 1)


def test_ppo_in_the_way_of_cleanrl(toy_run: Path) -> None:
    """Rollouts into preallocated tensors, advantages backwards in time, the clipped loss, all in one function."""
    torch.manual_seed(0)
    n_steps, gamma, gae_lambda, clip = 8, 0.99, 0.95, 0.2
    env = gym.wrappers.vector.RecordEpisodeStatistics(make(toy_run, "SameStep"))
    actor, critic = network(3), network(1)
    before = [p.detach().clone() for p in (*actor.parameters(), *critic.parameters())]
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=1e-3)
    obs = torch.zeros(n_steps, LANES, 16, 16, 3)
    actions, logprobs, rewards, dones, values = (torch.zeros(n_steps, LANES) for _ in range(5))
    next_obs, _ = env.reset(seed=1)
    next_obs, next_done = torch.Tensor(next_obs) / 255, torch.zeros(LANES)
    for step in range(n_steps):
        obs[step], dones[step] = next_obs, next_done
        with torch.no_grad():
            policy, values[step] = Categorical(logits=actor(next_obs)), critic(next_obs).flatten()
        action = policy.sample()
        actions[step], logprobs[step] = action, policy.log_prob(action)
        frames, reward, terminations, truncations, infos = env.step(action.numpy())
        rewards[step] = torch.tensor(reward)
        next_obs, next_done = torch.Tensor(frames) / 255, torch.Tensor(np.logical_or(terminations, truncations))
        for i in np.flatnonzero(infos.get("_final_obs", [])):
            assert infos["final_obs"][i].shape == (16, 16, 3)
    advantages, last = torch.zeros_like(rewards), torch.zeros(LANES)
    with torch.no_grad():
        ahead = torch.cat([values[1:], critic(next_obs).reshape(1, -1)])
    going_on = 1 - torch.cat([dones[1:], next_done[None]])
    for t in reversed(range(n_steps)):
        delta = rewards[t] + gamma * ahead[t] * going_on[t] - values[t]
        last = advantages[t] = delta + gamma * gae_lambda * going_on[t] * last
    policy = Categorical(logits=actor(obs.flatten(0, 1)))
    ratio = (policy.log_prob(actions.flatten()) - logprobs.flatten()).exp()
    gain = advantages.flatten()
    loss = -torch.min(gain * ratio, gain * ratio.clamp(1 - clip, 1 + clip)).mean()
    loss = loss + 0.5 * (critic(obs.flatten(0, 1)).flatten() - (gain + values.flatten())).square().mean()
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    assert dones.any()
    after = [*actor.parameters(), *critic.parameters()]
    assert all((p != q).any() for p, q in zip(before, after, strict=True))


def test_sb3_contrib_trains(toy_run: Path) -> None:
    contrib = pytest.importorskip("sb3_contrib")
    from stable_baselines3.common.vec_env import VecMonitor

    env = VecMonitor(SB3VecEnv(make(toy_run, "SameStep")))
    recurrent = contrib.RecurrentPPO("MlpLstmPolicy", env, n_steps=8, batch_size=8, n_epochs=1, seed=0).learn(24)
    assert recurrent.num_timesteps == 24
    assert {round(float(told["l"])) for told in recurrent.ep_info_buffer} <= set(range(1, HORIZON + 1))
    assert len(recurrent.ep_info_buffer) >= LANES
    replayed = contrib.QRDQN("MlpPolicy", env, buffer_size=60, learning_starts=6, batch_size=4, train_freq=1, seed=0)
    assert replayed.learn(24)._n_updates == 6


@pytest.mark.parametrize("mode", ["Disabled", "SameStep"])
def test_torchrl_sees_every_frame(mode: str, toy_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`next` has the frame that the action led to, also where an episode ends and another begins at once."""
    led_to, step_lanes = [], DreamVectorEnv.step_lanes

    def note(env: DreamVectorEnv, actions: np.ndarray) -> Any:
        result = step_lanes(env, actions)
        led_to.append(env.frames.copy())
        return result

    env = GymWrapper(make(toy_run, mode), categorical_action_encoding=True)
    env.set_seed(0)
    monkeypatch.setattr(DreamVectorEnv, "step_lanes", note)
    batch = env.rollout(12, break_when_any_done=False)
    assert batch.batch_size == (LANES, 12)
    np.testing.assert_array_equal(batch["next", "observation"], np.stack(led_to, 1))
    over = batch["next", "done"].squeeze(-1)
    assert over.sum() >= 2 * LANES
    follows = batch["observation"][:, 1:] == batch["next", "observation"][:, :-1]
    assert follows[~over[:, :-1]].all()
    assert not follows[over[:, :-1]].flatten(1).all(1).any(), "an episode begins with another frame"


def test_torchrl_trains(toy_run: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self, outputs: int) -> None:
            super().__init__()
            self.inside = network(outputs)

        def forward(self, frames: torch.Tensor) -> torch.Tensor:
            return self.inside(frames / 255)

    env = GymWrapper(make(toy_run, "Disabled"), categorical_action_encoding=True)
    scores = TensorDictModule(Scaled(3), ["observation"], ["logits"])
    actor = ProbabilisticActor(scores, in_keys=["logits"], distribution_class=Categorical, return_log_prob=True)
    critic = ValueOperator(Scaled(1), ["observation"])
    loss, advantage = ClipPPOLoss(actor, critic), GAE(gamma=0.99, lmbda=0.95, value_network=critic)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    before = [p.detach().clone() for p in loss.parameters()]
    with torch.no_grad():
        batch = advantage(env.rollout(8, actor, break_when_any_done=False))
    told = loss(batch)
    sum(told[name] for name in ("loss_objective", "loss_critic", "loss_entropy")).backward()
    optimizer.step()
    assert all((p != q).any() for p, q in zip(before, loss.parameters(), strict=True))
