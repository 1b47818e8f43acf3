"""The engine's environment keeps Gymnasium's contract and tells time running out from dying."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import envs  # noqa: F401 - registers
from envs.vizdoom import VizdoomFrames
from worldmodel.utils.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VizdoomFrames]:
    monkeypatch.chdir(tmp_path)
    env = VizdoomFrames()
    yield env
    env.close()
    assert not list(tmp_path.iterdir()), "something was written into the working directory"
    assert not Path(env.folder).exists()


def play(env: VizdoomFrames, seed: int, steps: int = 12) -> tuple[np.ndarray, list[tuple[object, ...]]]:
    frames, told = [env.reset(seed=seed)[0]], []
    for action in np.random.default_rng(seed).integers(4, size=steps):
        frame, *rest = env.step(int(action))
        frames.append(frame)
        told.append(tuple(rest))
    return np.stack(frames), told


def test_checkers_of_gymnasium_and_stable_baselines_are_content(env: VizdoomFrames) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env, skip_render_check=True)
        check_env_sb3(env)


def test_gymnasium_makes_it_by_its_id() -> None:
    with gym.make("envs:VizdoomFrames-v0", scenario="basic", size=32) as env:
        assert env.reset(seed=0)[0].shape == (32, 32, 3)


def test_what_is_seen(env: VizdoomFrames) -> None:
    frame, info = env.reset(seed=0)
    assert (frame.shape, frame.dtype, info) == ((64, 64, 3), np.uint8, {"HEALTH": 92.0})
    assert frame.std() > 10
    before = frame.copy()
    after = env.step(2)[0]
    np.testing.assert_array_equal(frame, before)  # a frame that was handed out stays as it was
    assert (after != frame).mean() > 0.2  # turning moves the picture
    assert env.env_spec.frame_shape == (64, 64, 3)
    assert env.env_spec.max_episode_steps == 2100 // 4
    assert env.env_spec.fps == 35 / 4


def test_the_same_seed_gives_the_same_episode_and_another_seed_another(env: VizdoomFrames) -> None:
    (frames, told), (other, _), (again, told_again) = play(env, 1), play(env, 2), play(env, 1)
    np.testing.assert_array_equal(frames, again)
    assert told == told_again
    assert not np.array_equal(frames[0], other[0])


def test_a_timeout_is_truncated_and_shows_the_last_frame() -> None:
    env, longer = VizdoomFrames(horizon=10), VizdoomFrames(horizon=0)
    frames, told = play(env, seed=3, steps=10)
    expected, told_longer = play(longer, seed=3, steps=10)
    np.testing.assert_array_equal(frames, expected)
    assert [(terminated, truncated) for _, terminated, truncated, _ in told] == [(False, False)] * 9 + [(False, True)]
    assert not told_longer[-1][2]
    env.close()
    longer.close()


def test_an_action_that_is_held_beyond_the_time_limit_still_ends_the_episode() -> None:
    with contextlib.closing(VizdoomFrames("basic", frame_skip=301)) as env:  # whose episodes have 300 tics
        assert env.env_spec.max_episode_steps == 1


def test_the_engines_own_timeout_is_never_met() -> None:
    """`basic` stops after 300 tics by itself; here 75 steps of 4 tics are truncated, and could go on."""
    env, longer = VizdoomFrames("basic"), VizdoomFrames("basic", horizon=0)
    for instance, limit in ((env, 75), (longer, 80)):
        instance.reset(seed=0)
        for step in range(1, limit + 1):
            frame, _, terminated, truncated, _ = instance.step(0)
            assert not terminated
            assert truncated == (instance is env and step == 75)
            assert frame.std() > 10
        instance.close()


def test_death_is_terminated_and_shows_no_black_frame(env: VizdoomFrames) -> None:
    env.reset(seed=0)
    rewards, terminated, frame = [], False, np.zeros(0)
    while not terminated:
        frame, reward, terminated, truncated, info = env.step(0)  # standing on acid
        rewards.append(reward)
        assert not truncated
        assert info["HEALTH"] > 0  # of the last frame that was seen
    assert set(rewards[:-1]) == {4.0}
    assert rewards[-1] <= -96
    assert frame.std() > 10


@pytest.mark.parametrize("action", [4, -1, 1.5])
def test_actions_outside_the_space_are_refused(env: VizdoomFrames, action: object) -> None:
    env.reset(seed=0)
    with pytest.raises(UserError, match=r"outside Discrete\(4\)"):
        env.step(action)


def test_an_unknown_scenario_is_named_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"no scenario 'doom9'; choose one of .*health_gathering_supreme"):
        VizdoomFrames("doom9")


def test_a_ctrl_c_that_ends_the_engine_too_is_a_ctrl_c() -> None:
    code = """
import signal
from envs.vizdoom import VizdoomFrames
signal.signal(signal.SIGINT, signal.default_int_handler)
env = VizdoomFrames("basic")
env.reset(seed=0)
print("ready", flush=True)
while True:
    if any(env.step(0)[2:4]):
        env.reset()
"""
    for _ in range(3):  # which of the two is told first is chance
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=PIPE, stderr=PIPE, text=True, start_new_session=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert error.splitlines()[-1] == "KeyboardInterrupt"
