"""Policies come back from disk as they were, without a pickle, and only into the world they were made for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticCnnPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

from envs.policies import MAX_STACKED_FRAMES, load_player, load_policy, sample_actions, save_policy, stack_frames
from worldmodel.data.env_spec import ActionSpec, EnvSpec
from worldmodel.utils.checkpoint import CHECKPOINT_FILE, read_checkpoint, replace_config
from worldmodel.utils.errors import UserError

WORLD = EnvSpec(name="toy", frame_shape=(64, 64, 3), action=ActionSpec(kind="Discrete", nvec=(4,)))


@pytest.fixture
def policy() -> ActorCriticCnnPolicy:
    torch.manual_seed(0)
    image = spaces.Box(0, 255, (3, 64, 64), np.uint8)
    policy = ActorCriticCnnPolicy(image, spaces.Discrete(4), lr_schedule=lambda _: 1e-3)
    torch.nn.init.normal_(policy.action_net.weight)  # SB3 begins with all but equal chances
    return policy


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (200, 64, 64, 3), dtype=np.uint8)


def test_a_saved_policy_acts_as_before(tmp_path: Path, policy: ActorCriticCnnPolicy, frames: np.ndarray) -> None:
    save_policy(tmp_path, policy, {"gamma": 0.99}, {"steps": 5})
    loaded = load_policy(tmp_path, WORLD)
    for deterministic in (True, False):
        torch.manual_seed(1)
        expected = policy.predict(frames, deterministic=deterministic)[0]
        torch.manual_seed(1)
        np.testing.assert_array_equal(loaded.predict(frames, deterministic=deterministic)[0], expected)
        assert len(set(expected.tolist())) > 1
    assert read_checkpoint(tmp_path).config["training"] == {"gamma": 0.99}


def test_no_pickle_is_written(tmp_path: Path, policy: ActorCriticCnnPolicy) -> None:
    save_policy(tmp_path, policy, {}, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == [CHECKPOINT_FILE, "config.json"]
    data = (tmp_path / CHECKPOINT_FILE).read_bytes()
    assert data[8:9] == b"{"  # safetensors: eight bytes of length, then JSON
    assert b"stable_baselines3" not in data
    assert b"cloudpickle" not in data


def test_a_policy_of_another_world_is_refused(tmp_path: Path, policy: ActorCriticCnnPolicy) -> None:
    save_policy(tmp_path, policy, {}, {})
    for change in ({"frame_shape": (32, 32, 3)}, {"action": ActionSpec(kind="Discrete", nvec=(5,))}):
        with pytest.raises(UserError, match=r"was trained on 64x64 frames with actions Discrete\(4\), but toy has"):
            load_policy(tmp_path, dataclasses.replace(WORLD, **change))
    with pytest.raises(UserError, match=r"named nowhere; give a folder, or one of: battle2, .*take_cover_dream"):
        load_policy("nowhere")
    with pytest.raises(UserError, match=r"there is no folder .*nowhere; train it first"):
        load_policy(tmp_path / "nowhere")
    with pytest.raises(UserError, match="https://a/b is a URL, but models are read from local folders; copy it here"):
        load_policy("https://a/b")


def test_a_policy_of_an_older_version_is_refused_with_how_to_train_it_again(
    tmp_path: Path, policy: ActorCriticCnnPolicy
) -> None:
    save_policy(tmp_path, policy, {}, {})
    config = read_checkpoint(tmp_path).config
    del config["features_dim"]
    replace_config(tmp_path, config)
    with pytest.raises(UserError, match=r"by another version \(KeyError: .*\); train it again with train/policy\.py$"):
        load_policy(tmp_path)


def test_act_samples_the_policy_and_explores(policy: ActorCriticCnnPolicy, frames: np.ndarray) -> None:
    policy.set_training_mode(False)
    one = np.repeat(frames[:1], 1500, axis=0)
    with torch.no_grad():
        chances = policy.get_distribution(policy.obs_to_tensor(frames[:1])[0]).distribution.probs[0].numpy()
    for epsilon in (0.0, 0.5, 1.0):
        expected = (1 - epsilon) * chances + epsilon / 4
        actions = sample_actions(policy, one, epsilon, np.random.default_rng(0))
        counts = np.bincount(actions, minlength=4)
        spread = np.sqrt(1500 * expected * (1 - expected))
        assert (abs(counts - 1500 * expected) <= 5 * spread + 1e-3).all()
    again = sample_actions(policy, one[:100], 0.5, np.random.default_rng(0))
    np.testing.assert_array_equal(again, sample_actions(policy, one[:100], 0.5, np.random.default_rng(0)))
    assert chances.max() > 0.4  # else the three would look alike


def test_numbers_are_drawn_from_the_policys_normal_distribution_and_kept_in_the_box(frames: np.ndarray) -> None:
    torch.manual_seed(0)
    low, high = np.float32([-0.5, 0.0]), np.float32([0.5, 4.0])
    image = spaces.Box(0, 255, (3, 64, 64), np.uint8)
    policy = ActorCriticCnnPolicy(image, spaces.Box(low, high), lr_schedule=lambda _: 1e-3)
    torch.nn.init.constant_(policy.action_net.bias, 1.0)
    policy.set_training_mode(False)
    one = np.repeat(frames[:1], 1500, axis=0)
    with torch.no_grad():
        mean = policy.get_distribution(policy.obs_to_tensor(frames[:1])[0]).distribution.mean[0].numpy()
    actions = sample_actions(policy, one, 0.0, np.random.default_rng(0))
    assert actions.shape == (1500, 2) and actions.dtype == np.float32
    assert (actions >= low).all() and (actions <= high).all()
    deviation = 1  # SB3 starts with it
    expected = np.clip(np.random.default_rng(1).normal(mean, deviation, (100_000, 2)), low, high)
    np.testing.assert_allclose(actions.mean(0), expected.mean(0), atol=0.1)
    np.testing.assert_allclose(actions.std(0), expected.std(0), atol=0.1)
    random = sample_actions(policy, one, 1.0, np.random.default_rng(0))
    np.testing.assert_allclose(random.mean(0), [0, 2], atol=0.15)


def test_stacked_frames_are_those_of_stable_baselines() -> None:
    class Counting(gym.Env):
        observation_space, action_space = spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.Discrete(2)

        def reset(self, **_: object) -> tuple:  # type: ignore[override]
            self.t = 10
            return self._frame(), {}

        def step(self, _: object) -> tuple:
            self.t += 1
            return self._frame(), 0.0, False, False, {}

        def _frame(self) -> np.ndarray:
            return np.full((8, 8, 3), self.t, np.uint8)

    env, seen = VecFrameStack(DummyVecEnv([Counting]), 3), []
    expected = [env.reset()] + [env.step(np.zeros(1, int))[0] for _ in range(5)]
    for t, want in enumerate(expected):
        seen.append(np.full((1, 8, 8, 3), 10 + t, np.uint8))
        np.testing.assert_array_equal(stack_frames(np.stack(seen[-MAX_STACKED_FRAMES:]), 3), want)


def test_a_player_gives_its_policy_as_many_frames_as_it_was_trained_on(tmp_path: Path) -> None:
    image = spaces.Box(0, 255, (6, 64, 64), np.uint8)
    policy = ActorCriticCnnPolicy(image, spaces.Discrete(4), lr_schedule=lambda _: 1e-3)
    save_policy(tmp_path, policy, {}, {})
    player = load_player(str(tmp_path), WORLD)
    frames = np.random.default_rng(1).integers(0, 256, (4, 5, 64, 64, 3), dtype=np.uint8)
    policy.set_training_mode(False)
    for given in (frames, frames[:1]):
        before = np.zeros_like(given[-1]) if len(given) == 1 else given[-2]
        pair = np.concatenate([before, given[-1]], -1)
        expected = sample_actions(policy, pair, 0.0, np.random.default_rng(3))
        np.testing.assert_array_equal(player(given, np.random.default_rng(3)), expected)


def test_a_cycle_plays_its_actions_blindly_and_begins_anew_with_an_episode() -> None:
    player, rng = load_player("cycle:1x2,3x1", WORLD), np.random.default_rng(0)

    def episode(steps: int) -> list[list[int]]:
        seen = np.zeros((MAX_STACKED_FRAMES, 2, 8, 8, 3), np.uint8)
        return [player(seen[: min(t + 1, MAX_STACKED_FRAMES)], rng).tolist() for t in range(steps)]

    assert episode(5) == [[1, 1], [1, 1], [3, 3], [1, 1], [1, 1]]
    assert episode(5) == [[1, 1], [1, 1], [3, 3], [1, 1], [1, 1]]


@pytest.mark.parametrize("name", ["cycle:", "cycle:1", "cycle:1x0", "cycle:4x2", "cycle:-1x2", "cycle:axb"])
def test_a_cycle_that_cannot_be_played_says_what_one_looks_like(name: str) -> None:
    with pytest.raises(UserError, match=r"is not a script of actions of toy, .*; write .*, such as cycle:0x20,1x20"):
        load_player(name, WORLD)


def test_a_cycle_needs_single_actions() -> None:
    with pytest.raises(UserError, match="which has"):
        load_player("cycle:0x2", dataclasses.replace(WORLD, action=ActionSpec(kind="MultiDiscrete", nvec=(2, 2))))
