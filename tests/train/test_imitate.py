"""A scripted teacher that kills, and a policy that learns what it does."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces

from envs.policies import load_player, load_policy
from envs.teacher import Teacher, angle_to
from envs.vizdoom import VizdoomFrames
from rollout.episodes import play_episode
from train import imitate
from worldmodel.utils.checkpoint import read_checkpoint
from worldmodel.utils.errors import UserError


def test_the_teacher_kills_more_than_a_random_player() -> None:
    killed = []
    with contextlib.closing(VizdoomFrames("battle2")) as env:
        teacher = Teacher(env, np.random.default_rng(0))
        for seed in range(4):
            env.reset(seed=seed)
            teacher.reset()
            reward, over = 0.0, False
            while not over:
                _, gained, terminated, truncated, _ = env.step(teacher.act())
                reward, over = reward + gained, terminated or truncated
            killed.append(reward)
    assert np.mean(killed) > 3, f"a random player kills 1.3 on average, the teacher {killed}"


def test_angles_and_turns() -> None:
    middle, right = (SimpleNamespace(x=x, width=20) for x in (70, 150))
    assert angle_to(middle) == 0  # type: ignore[arg-type]
    assert angle_to(right) == pytest.approx(45)  # type: ignore[arg-type]
    with contextlib.closing(VizdoomFrames("battle2")) as env:
        teacher = Teacher(env, np.random.default_rng(0))
        assert teacher._action(fire=True, turn=17).tolist() == [0, 0, 1, 0, 7]  # 2 x 2 degrees x 4 tics
        assert teacher._action(forward=True, sprint=True, turn=-90).tolist() == [1, 0, 0, 1, 0]


def test_the_teacher_plays_battle2_only() -> None:
    with (
        contextlib.closing(VizdoomFrames("basic")) as env,
        pytest.raises(UserError, match="only plays battle2, not basic"),
    ):
        Teacher(env, np.random.default_rng(0))


def test_a_run_leaves_a_policy_that_loads_and_depends_on_the_seed_alone(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        how = {
            "n_rounds": 2,
            "steps_per_round": 24,
            "n_epochs": 1,
            "batch_size": 8,
            "num_envs": 2,
            "features_dim": 16,
            "n_stack": 2,
        }
        imitate.main(imitate.Args(out=tmp_path / name, seed=seed, **how))  # type: ignore[arg-type]
    a, b, c = (load_policy(tmp_path / name).state_dict() for name in "abc")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)
    assert not a["value_net.weight"].any(), "PPO would begin with values that mean nothing"
    assert read_checkpoint(tmp_path / "a").progress == {"steps": 48}


def test_what_is_learned_is_what_the_teacher_does() -> None:
    """Of two views, two actions: after some passes their likelihood is high."""
    args = imitate.Args(batch_size=8, n_epochs=60, features_dim=16, n_stack=1)
    torch.manual_seed(0)
    policy = imitate.make_policy(args, (64, 64, 3), spaces.MultiDiscrete([3, 3, 2, 2, 11]))
    views = np.zeros((16, 64, 64, 3), np.uint8)
    views[8:, 32:] = 255
    advice = np.array([[1, 0, 0, 1, 5]] * 8 + [[0, 2, 1, 0, 10]] * 8)
    assert imitate.train_policy(policy, [(views, advice)], args, np.random.default_rng(0)) < 0.1


def test_nonsense_is_refused() -> None:
    with pytest.raises(UserError, match="stack must be from 1 to 4, not 5"):
        imitate.Args(n_stack=5)
    with pytest.raises(UserError, match="at least num_envs"):
        imitate.Args(steps_per_round=1)


def test_the_policy_that_ships_kills_more_than_twice_as_often_as_a_random_one() -> None:
    with contextlib.closing(VizdoomFrames("battle2")) as env:
        players = (load_player("battle2", env.env_spec), load_player("random", env.env_spec))
        ours, random = (np.mean([play_episode(env, player, 0, i)[1] for i in range(6)]) for player in players)
    assert ours > 2 * random, f"{ours} kills against {random}"
