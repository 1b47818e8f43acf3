"""What is promised of a PPO run that is cut: whole updates on disk, and the updates of a single go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from train import policy, pusher
from train.ppo import CheckpointCallback, learn, linear_schedule
from worldmodel.utils.checkpoint import CHECKPOINT_FILE, read_checkpoint
from worldmodel.utils.errors import UserError

SMALL: dict[str, Any] = {"total_timesteps": 170, "num_envs": 2, "n_steps": 20}
"""Five rollouts of 40 steps, of which the last passes the end."""
SCRIPTS = {
    "pusher": lambda **how: pusher.main(pusher.Args(hidden_dim=8, **SMALL | how)),
    "policy": lambda **how: policy.main(
        policy.Args(scenario="basic", reward_shaping=(), features_dim=8, **SMALL | how)
    ),
}
Trail = dict[int, tuple[float, dict, dict]]


def state(ppo: PPO) -> tuple[dict, dict]:
    """Weights and optimizer, as a checkpoint has them."""
    named = {k: v.clone() for k, v in ppo.policy.named_parameters()}
    moments = ppo.policy.optimizer.state_dict()["state"]
    return named, {i: {k: v.clone() for k, v in of.items()} for i, of in moments.items()}


@pytest.fixture
def trail(monkeypatch: pytest.MonkeyPatch) -> Trail:
    """Steps -> learning rate, weights and optimizer after the update from them."""
    seen, train = Trail(), PPO.train

    def watched(ppo: PPO) -> None:
        train(ppo)
        seen[ppo.num_timesteps] = (ppo.policy.optimizer.param_groups[0]["lr"], *state(ppo))

    monkeypatch.setattr(PPO, "train", watched)
    return seen


def holds(folder: Path, weights: dict, optimizer: dict) -> bool:
    saved = read_checkpoint(folder)
    return all(torch.equal(saved.weights[k], weights[k]) for k in weights) and all(
        torch.equal(saved.optimizer[i][k], v) for i, of in optimizer.items() for k, v in of.items()
    )


def test_the_rate_falls_over_all_steps_wherever_a_run_ends_and_never_below_zero() -> None:
    whole, cut = linear_schedule(0.1, 100, 100), linear_schedule(0.1, 100, 50)
    assert [whole(1.0), whole(0.8), whole(0.0), whole(-0.2)] == pytest.approx([0.1, 0.08, 0.0, 0.0])
    assert [cut(1.0), cut(0.6), cut(-0.2)] == pytest.approx([0.1, 0.08, 0.04]), "after 0, 20 and 60 steps"


class ChooseOne(gym.Env):
    """Episodes of one step: action 1 is rewarded."""

    observation_space, action_space = gym.spaces.Box(0, 1, (1,)), gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.zeros(1, np.float32), float(action), True, False, {}


def test_a_training_ends_with_a_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    envs = VecMonitor(DummyVecEnv([ChooseOne] * 2))
    ppo = PPO("MlpPolicy", envs, 0.02, n_steps=32, batch_size=32, seed=0, device="cpu", tensorboard_log=str(tmp_path))
    saver = CheckpointCallback(lambda steps: None, 10**6, 0)
    learn(ppo, saver, 640)
    (verdict,) = capsys.readouterr().out.splitlines()
    assert verdict.startswith(f"{tmp_path}: the policy improved: the mean return was 0.")
    learn(ppo, saver, 1280)
    assert capsys.readouterr().out == "", "its first episodes were not in this run"


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_that_is_cut_makes_the_updates_of_a_single_go(script: str, tmp_path: Path, trail: Trail) -> None:
    """Exact up to the cut; from there on its steps, its rates and its optimizer's count are those of a single go, but
    what it plays is not, for the environments begin again."""
    run: Callable[..., None] = SCRIPTS[script]
    run(out=tmp_path / "whole")
    whole = dict(trail)
    assert [rate for rate, *_ in whole.values()] == sorted((rate for rate, *_ in whole.values()), reverse=True)
    assert whole[160][0] > whole[200][0] == 0.0
    assert holds(tmp_path / "whole", *whole[200][1:])
    trail.clear()
    run(out=tmp_path / "cut", stop_at_step=70)
    assert list(trail) == [40, 80], "the rollout in which it ends is learned from"
    assert read_checkpoint(tmp_path / "cut").progress == {"steps": 80}
    assert holds(tmp_path / "cut", *whole[80][1:])
    trail.clear()
    run(out=tmp_path / "cut")
    assert list(trail) == [120, 160, 200]
    for steps, (rate, weights, optimizer) in trail.items():
        assert rate == pytest.approx(whole[steps][0])
        assert optimizer[0]["step"] == whole[steps][2][0]["step"]
        assert any((weights[k] != whole[80][1][k]).any() for k in weights)
    assert holds(tmp_path / "cut", *trail[200][1:])


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_complete_run_goes_on_for_more_steps(script: str, tmp_path: Path, trail: Trail) -> None:
    """Its learning rate falls along the line to the new end; a run that is not complete keeps its own end."""
    run: Callable[..., None] = SCRIPTS[script]
    run(out=tmp_path, stop_at_step=40)
    with pytest.raises(UserError, match=r"total_timesteps = 170, but 400 was asked for"):
        run(out=tmp_path, total_timesteps=400)
    run(out=tmp_path)
    trail.clear()
    run(out=tmp_path, total_timesteps=400)
    rate = 1e-3 if script == "pusher" else 3e-4
    assert {steps: now for steps, (now, *_) in trail.items()} == pytest.approx(
        {steps: rate * (1 - steps / 400) for steps in (240, 280, 320, 360, 400)}
    )
    assert read_checkpoint(tmp_path).progress == {"steps": 400}


@pytest.mark.parametrize("every", [1, 1000])
@pytest.mark.parametrize("moment", ["playing", "updating"])
def test_an_interrupted_run_keeps_whole_updates(
    moment: str, every: int, tmp_path: Path, trail: Trail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C amid the second round: 20 plays of two bins and 40 steps of Adam are one."""
    owner, name, last = {"playing": (CheckpointCallback, "_on_step", 30), "updating": (torch.optim.Adam, "step", 60)}[
        moment
    ]
    usual, calls = getattr(owner, name), iter(range(1, 100))

    def stopping(*args: Any, **kwargs: Any) -> Any:
        done = usual(*args, **kwargs)
        if next(calls) == last:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(owner, name, stopping)
    with pytest.raises(KeyboardInterrupt):
        SCRIPTS["pusher"](out=tmp_path, save_every=every)
    assert list(trail) == [40]
    assert read_checkpoint(tmp_path).progress == {"steps": 40}
    assert holds(tmp_path, *trail[40][1:])


def test_an_update_that_makes_a_weight_infinite_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weight is one that actions do not depend on, so nothing else would notice."""
    train = PPO.train

    def diverging(ppo: PPO) -> None:
        train(ppo)
        if ppo.num_timesteps == 80:
            ppo.policy.value_net.bias.data.fill_(torch.inf)

    monkeypatch.setattr(PPO, "train", diverging)
    with pytest.raises(UserError, match="the policy diverged within 80 steps; run again with a lower --learning-rate"):
        SCRIPTS["pusher"](out=tmp_path, save_every=1)
    assert read_checkpoint(tmp_path).progress == {"steps": 40}


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before(
    tmp_path: Path, trail: Trail, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a run that was cut there, byte for byte."""
    SCRIPTS["pusher"](out=tmp_path / "cut", stop_at_step=40, save_every=1)
    SCRIPTS["pusher"](out=tmp_path / "cut", save_every=1)
    SCRIPTS["pusher"](out=tmp_path / "run", stop_at_step=80, save_every=1)
    data = (tmp_path / "run" / CHECKPOINT_FILE).read_bytes()
    (tmp_path / "run" / CHECKPOINT_FILE).write_bytes(data[:-1])
    trail.clear()
    capsys.readouterr()
    SCRIPTS["pusher"](out=tmp_path / "run", save_every=1)
    assert "previous-1.safetensors, which came before it, is used" in capsys.readouterr().err
    assert list(trail) == [80, 120, 160, 200]
    for name in (CHECKPOINT_FILE, "previous-1.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
