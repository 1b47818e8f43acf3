"""The dream as Gymnasium and Stable-Baselines3 see it, on the toy world."""

from __future__ import annotations

import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import envs  # noqa: F401 - registers
from worldmodel.utils.errors import UserError


@pytest.fixture
def env(toy_run: Path) -> gym.Env:
    return gym.make("VideoGPTDream-v0", model=toy_run)


def play(env: gym.Env, seed: int, steps: int = 12) -> list[tuple]:
    frame, _ = env.reset(seed=seed)
    trail: list[tuple] = [(frame,)]
    for action in np.random.default_rng(0).integers(3, size=steps):
        frame, reward, terminated, truncated, info = env.step(int(action))
        trail.append((frame, reward, terminated, truncated, info))
        if terminated or truncated:
            frame, _ = env.reset()
            trail.append((frame,))
    return trail


def same(a: list[tuple], b: list[tuple]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x[0], y[0]) and x[1:] == y[1:] for x, y in zip(a, b, strict=True))


def test_both_checkers_are_content(env: gym.Env) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings(
            "ignore", message="The minimal resolution for an image is 36x36"
        )  # the toy world's is 16
        check_env_sb3(env.unwrapped)


def test_spaces_are_those_of_the_recorded_world(env: gym.Env) -> None:
    assert env.action_space == gym.spaces.Discrete(3)
    assert env.observation_space == gym.spaces.Box(0, 255, (16, 16, 3), np.uint8)
    assert env.metadata["render_fps"] == 5.0


def test_seeds_decide(env: gym.Env) -> None:
    assert same(play(env, 3), play(env, 3))
    assert not same(play(env, 3), play(env, 4))


def test_information_of_a_step(env: gym.Env) -> None:
    env.reset(seed=0)
    _, _, _, _, info = env.step(1)
    assert set(info) == {"COLUMN", "expected_COLUMN", "done_prob", "expected_reward", "log_likelihood", "entropy"}
    assert info["log_likelihood"] <= 0 <= info["entropy"]
    assert 0 < info["done_prob"] < 1


def test_time_limit_truncates_and_the_end_is_drawn(toy_run: Path) -> None:
    env = gym.make("VideoGPTDream-v0", model=toy_run, horizon=5).unwrapped
    ends = []
    for seed in range(40):
        env.reset(seed=seed)
        for t in range(1, 6):
            *_, terminated, truncated, _ = env.step(0)
            assert not (terminated and truncated)
            assert truncated == (t == 5 and not terminated)
            if terminated or truncated:
                ends.append(terminated)
                break
    assert 0 < sum(ends) < len(ends), "one toy episode in sixty ends at each step"


def test_a_dream_without_ends_is_the_same_dream_and_goes_on(toy_run: Path) -> None:
    past, kinds = 0, {"horizon": 12, "temperature": 3.0}
    for seed in range(20):
        env, other = (
            gym.make("VideoGPTDream-v0", model=toy_run, sample_done=e, **kinds).unwrapped for e in (True, False)
        )
        env.reset(seed=seed)
        other.reset(seed=seed)
        over = False
        for t in range(1, 13):
            frame, reward, terminated, truncated, info = other.step(0)
            assert (terminated, truncated) == (False, t == 12)
            if not over:
                also, same, over, _, told = env.step(0)
                assert np.array_equal(frame, also)
                assert info == told
                assert over or reward == same
            past += over
    assert past > 0, "some went on past an end"


def test_snapshots_fork_a_dream(toy_run: Path) -> None:
    env = gym.make("VideoGPTDream-v0", model=toy_run, temperature=3.0).unwrapped
    env.reset(seed=0)
    for action in (0, 1, 2):
        env.step(action)
    snapshot = env.snapshot()
    futures = []
    for actions in ([1] * 6, [2] * 6, [1] * 6):
        env.restore(snapshot)
        futures.append(np.stack([env.step(a)[0] for a in actions]))
    assert np.array_equal(futures[0], futures[2])
    assert not np.array_equal(futures[0], futures[1])


def test_contexts_by_number_and_ones_own(env: gym.Env) -> None:
    first, info = env.reset(seed=0, options={"context": 1})
    assert set(info) == {"COLUMN"}
    again, _ = env.reset(seed=9, options={"context": 1})
    assert np.array_equal(first, again)
    own = np.full((4, 16, 16, 3), 40, np.uint8)
    own[:, 4:12, 8:12] = (250, 200, 60)
    frame, _ = env.reset(options={"frames": own, "actions": [0, 0, 0], "variables": [2.0]})
    assert np.abs(frame.astype(int) - own[-1]).mean() < 20


def test_pictures_and_video(toy_run: Path, tmp_path: Path) -> None:
    env = gym.make("VideoGPTDream-v0", model=toy_run, render_mode="rgb_array", horizon=8)
    env.reset(seed=0)
    picture = env.render()
    assert picture.shape == (64, 64, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # moviepy's own
        recorder = gym.wrappers.RecordVideo(env, str(tmp_path), disable_logger=True)
        play(recorder, seed=0, steps=10)
        recorder.close()
    assert [p.stat().st_size > 1000 for p in tmp_path.glob("*.mp4")].count(True) >= 1


def test_a_window_for_people(toy_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = gym.make("VideoGPTDream-v0", model=toy_run, render_mode="human").unwrapped
    env.viewer.fps = 1000
    frame, _ = env.reset(seed=0)
    import pygame

    shown = pygame.surfarray.array3d(env.viewer.window).swapaxes(0, 1)
    assert np.array_equal(shown[:: 480 // 16, :: 480 // 16], frame)
    env.close()


def test_ppo_trains_in_it_without_a_special_case(env: gym.Env) -> None:
    ppo = PPO("MlpPolicy", env, n_steps=50, batch_size=25, n_epochs=1, seed=0)
    before = [p.clone() for p in ppo.policy.parameters()]
    ppo.learn(100)
    assert ppo.num_timesteps == 100
    assert any(not (a == b).all() for a, b in zip(before, ppo.policy.parameters(), strict=True))


def test_mistakes_are_told_in_a_sentence(env: gym.Env, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pretrained model is named 'nowhere'"):
        gym.make("VideoGPTDream-v0", world="nowhere")
    with pytest.raises(UserError, match=r"there is no folder .*vqvae; train it first"):
        gym.make("VideoGPTDream-v0", model=tmp_path)
    with pytest.raises(UserError, match="reset the dream before stepping it"):
        env.unwrapped.step(0)
    env.reset(seed=0)
    with pytest.raises(UserError, match=r"action 7 is outside Discrete\(3\)"):
        env.unwrapped.step(7)
    with pytest.raises(UserError, match="context must be from 0 to 3, not 99"):
        env.reset(options={"context": 99})
    with pytest.raises(UserError, match="both frames and the actions"):
        env.reset(options={"frames": np.zeros((2, 16, 16, 3), np.uint8)})
    with pytest.raises(UserError, match="reset has no option 'contxt'"):
        env.reset(options={"contxt": 1})
