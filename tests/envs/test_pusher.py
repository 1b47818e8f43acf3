"""The task of pushing, by hand calculation, and the policy that ships for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from stable_baselines3.common.env_checker import check_env

from envs.pusher import (
    GOAL_RADIUS,
    KIND,
    MIN_GOAL_DISTANCE,
    OBSERVATION_DIM,
    Pusher,
    PushTask,
    Task,
    load_pusher,
    make_policy,
)
from envs.pushing_robot import ACTION, Robot
from envs.pushing_scene import HIGH, LOW, MARGIN
from worldmodel.models.loading import PRETRAINED
from worldmodel.utils.checkpoint import save_checkpoint
from worldmodel.utils.errors import UserError


def task(seed: int = 0) -> Task:
    rng = np.random.default_rng(seed)
    return Task(Robot(rng), rng)


def test_goals_are_far_from_their_objects_and_within_reach() -> None:
    for seed in range(20):
        one = task(seed)
        assert np.linalg.norm(one.goal - one.robot.objects[one.object, :2]) > MIN_GOAL_DISTANCE
        assert (one.goal >= LOW[:2]).all() and (one.goal <= HIGH[:2]).all()


def test_ahead_is_towards_the_goal_and_left_is_to_its_left() -> None:
    one = task()
    one.goal = one.object_position + np.array([0, 0.3])  # along y: left of it is against x
    np.testing.assert_allclose(one.env_action(np.array([1, 0, 0])), [0, 0.1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(one.env_action(np.array([0, 0.5, 0])), [-0.05, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(one.env_action(np.array([0, 0, 0.6])), [0, 0, 0, 1], atol=1e-6)
    one.goal = one.object_position + np.array([0.3, 0.3])  # a side of the box of actions is met first
    np.testing.assert_allclose(one.env_action(np.array([1, -1, 0])), [0.1, 0, 0, 0], atol=1e-6)


def test_actions_are_bairs_and_within_their_bounds() -> None:
    one, rng = task(), np.random.default_rng(0)
    for done in rng.normal(size=(100, 3)) * 3:
        ACTION.check(one.env_action(done))


def test_what_is_seen_of_a_push_does_not_depend_on_its_direction() -> None:
    """Object from hand, turned: a hand right behind the object, on the way from the goal, is straight behind it."""
    one = task()
    for angle in np.linspace(0, 6, 7):
        ahead = np.array([np.cos(angle), np.sin(angle)])
        one.goal = one.robot.hand[:2] + 5 * (one.object_position - one.robot.hand[:2])
        gap = np.linalg.norm(one.object_position - one.robot.hand[:2])
        np.testing.assert_allclose(one.observation()[:2], [gap / 0.15, 0], atol=1e-5)
        one.goal = one.object_position + 0.3 * ahead
        np.testing.assert_allclose(one.observation()[7:9], ahead, atol=1e-6)
        assert one.observation()[6] == pytest.approx(2)
    assert one.observation().shape == (OBSERVATION_DIM,)


def test_the_reward_is_ten_for_a_metre_of_progress_and_three_for_the_way_to_the_spot() -> None:
    one = task()
    one.goal = one.object_position + np.array([0.2, 0])
    spot = one.object_position - np.array([one.robot.radii[one.object] + 0.03, 0])
    way = np.linalg.norm(one.robot.hand[:2] - spot)
    assert one.potential() == pytest.approx(-10 * 0.2 - 3 * way)


def test_a_solved_task_gives_way_to_another() -> None:
    env = PushTask()
    check_env(env)
    env.reset(seed=0)
    env.task.goal = env.task.object_position + GOAL_RADIUS / 2
    goal = env.task.goal
    _, reward, terminated, truncated, _ = env.step(np.zeros(3, np.float32))
    assert env.task.goal_distance > MIN_GOAL_DISTANCE and not np.array_equal(env.task.goal, goal)
    assert abs(reward) < 0.5 and not terminated and not truncated  # the new goal's distance is no loss


def test_the_same_seed_gives_the_same_numbers() -> None:
    def played(seed: int) -> list[float]:
        env = PushTask()
        env.reset(seed=seed)
        rng = np.random.default_rng(0)
        return [env.step(rng.uniform(-1, 1, 3).astype(np.float32))[1] for _ in range(29)]

    assert played(3) == played(3)
    assert played(3) != played(4)


def test_a_policy_comes_back_as_it_was_written(tmp_path: Path) -> None:
    policy = make_policy(16)
    save_checkpoint(tmp_path, policy, {"kind": KIND, "training": {"hidden_dim": 16}})
    seen = np.random.default_rng(0).normal(size=(5, OBSERVATION_DIM)).astype(np.float32)
    expected, _ = policy.predict(seen, deterministic=True)
    np.testing.assert_array_equal(load_pusher(str(tmp_path)).predict(seen, deterministic=True)[0], expected)
    save_checkpoint(tmp_path, policy, {"kind": KIND, "training": {"width": 16}})
    with pytest.raises(UserError, match=r"by another version \(KeyError: .*\); train it again with train/pusher\.py$"):
        load_pusher(str(tmp_path))
    with pytest.raises(UserError, match="not a pusher"):
        load_pusher("health_gathering_supreme")


def test_the_pusher_takes_another_object_in_another_bin() -> None:
    pusher, rng = Pusher(make_policy(16), noise=0.3), np.random.default_rng(0)
    robot = Robot(rng)
    first = pusher.act(robot, rng)
    assert first.dtype == np.float32
    assert not np.array_equal(first, pusher.act(robot, rng))  # noise
    before = pusher.task
    pusher.act(Robot(rng), rng)
    assert pusher.task is not before


def test_what_ships_is_small_and_says_how_it_was_made() -> None:
    folder = PRETRAINED / "pushing_policy"
    assert sum(p.stat().st_size for p in folder.iterdir()) < 200_000
    assert json.loads((folder / "config.json").read_text())["training"]["total_timesteps"] > 0


def test_no_object_is_shot_out_of_the_bin() -> None:
    """What the hand wedges in comes free at a speed that there is: at 0.01 s a step of physics it did not."""
    pusher, low, high = Pusher(load_pusher("pushing"), 0.2), LOW[:2] - MARGIN, HIGH[:2] + MARGIN
    for seed in range(60):
        rng = np.random.default_rng([7, seed])
        robot = Robot(rng)
        for _ in range(29):
            robot.act(pusher.act(robot, rng))
            assert (robot.objects[:, :2] > low).all() and (robot.objects[:, :2] < high).all()
        assert not any(warning.number for warning in robot.data.warning)
