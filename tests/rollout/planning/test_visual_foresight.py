"""Planning by pixels: what is followed, where points lie on the picture, and plans in a dream that is the simulator."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from envs.pusher import Task
from envs.pushing import Pushing
from envs.pushing_scene import HIGH, LOW
from rollout import plan
from rollout.planning.cem import CEMConfig, cross_entropy_method
from rollout.planning.planner import Planner
from rollout.planning.visual_foresight import GOAL_HEIGHT, PushGoal, PushValue, track
from tests.envs.test_spaces_of_dreams import trained_on_noise
from worldmodel.data.env_spec import ActionSpec
from worldmodel.utils.errors import UserError

BOX = ActionSpec(kind="Box", low=(-1.0, 0.0), high=(1.0, 4.0))


def test_numbers_move_to_where_the_worth_is() -> None:
    goal = np.array([[0.5, 2.0], [-0.8, 0.0]])
    how = CEMConfig(n_candidates=128, n_elite=16, n_rounds=12, horizon=4, hold_steps=2, momentum=0.1)
    plan = cross_entropy_method(
        BOX, how, lambda a: -((a - goal.repeat(2, 0)) ** 2).sum((1, 2)), np.random.default_rng(0)
    )
    assert (plan.shape, plan.dtype) == ((4, 2), np.float32)
    np.testing.assert_allclose(plan, goal.repeat(2, 0), atol=0.1)
    np.testing.assert_array_equal(plan[0], plan[1])


def test_numbers_that_are_not_planned_do_nothing() -> None:
    seen: list[np.ndarray] = []
    plan = cross_entropy_method(
        BOX, CEMConfig(n_dims=1), lambda a: seen.append(a) or np.zeros(len(a)), np.random.default_rng(0)
    )
    assert all(not a[..., 1].any() and a[..., 0].any() for a in [*seen, plan])


def test_several_choices_a_step_are_refused() -> None:
    with pytest.raises(UserError, match=r"not MultiDiscrete\(3, 2\)"):
        cross_entropy_method(
            ActionSpec(kind="MultiDiscrete", nvec=(3, 2)), CEMConfig(), lambda a: a, np.random.default_rng(0)
        )


def test_an_object_is_followed_by_its_colour_and_stays_where_it_hides() -> None:
    frames = np.full((3, 32, 32, 3), 120, np.uint8)
    frames[0, 10:14, 8:12] = frames[1, 13:17, 9:13] = (200, 20, 30)
    frames[:, 20:24, 8:12] = (20, 40, 220)  # another one
    places = track(frames, np.tile([12.0, 10.0], (3, 1)), np.array([200.0, 20, 30]))
    np.testing.assert_allclose(places, [[12, 10], [15, 11], [12, 10]], atol=0.4)


@pytest.fixture
def env() -> Iterator[Pushing]:
    with contextlib.closing(Pushing()) as env:
        yield env


def test_points_lie_where_the_picture_shows_them(env: Pushing) -> None:
    frame, _ = env.reset(seed=3)
    for place, body in zip(env.project(env.robot.objects), env.robot.bodies, strict=True):
        row, column = place.astype(int)
        colour = env.robot.model.geom_rgba[env.robot.model.body_geomadr[body], :3] * 255
        shown = frame[row, column].astype(float)
        alike = np.dot(shown - shown.mean(), colour - colour.mean())
        assert alike / np.linalg.norm(shown - shown.mean()) / np.linalg.norm(colour - colour.mean()) > 0.9


def test_a_pixel_is_the_point_that_it_shows(env: Pushing) -> None:
    env.reset(seed=4)
    points = np.array([[*LOW[:2], GOAL_HEIGHT], [*HIGH[:2], GOAL_HEIGHT], [*(LOW + HIGH)[:2] / 2, GOAL_HEIGHT]])
    for point, pixel in zip(points, env.project(points), strict=True):
        np.testing.assert_allclose(env.unproject(pixel, GOAL_HEIGHT), point[:2], atol=1e-9)


def test_an_object_and_a_goal_may_be_asked_for(env: Pushing) -> None:
    frame, _ = env.reset(seed=5)
    task = Task(env.robot, np.random.default_rng(0))
    PushGoal(object=2, goal=(40, 30)).apply_to(env, task)
    aim = PushValue(env, frame, task)
    np.testing.assert_allclose(aim.position, env.project(env.robot.objects[2][None])[0])
    np.testing.assert_allclose(aim.goal, (40.5, 30.5))
    drawn = task.object, task.goal.copy()
    PushGoal().apply_to(env, task)
    assert (task.object, task.goal.tolist()) == (drawn[0], drawn[1].tolist())
    with pytest.raises(UserError, match=r"this bin has objects 0 to \d+, not 12; choose 0 to 7"):
        PushGoal(object=12).apply_to(env, task)
    with pytest.raises(UserError, match=r"cannot reach pixel \(2, 2\); choose a goal within rows \d+ to \d+"):
        PushGoal(goal=(2, 2)).apply_to(env, task)


class Simulated:
    """A dream that is the simulator itself: futures are copies of it."""

    def __init__(self, env: Pushing) -> None:
        self.env, self.frames = env, env._observe()[0][None]

    def fork(self, n: int, seed: int) -> Simulated:
        future = Simulated(self.env)
        future.robots = [copy.copy(self.env.robot) for _ in range(n)]
        for robot in future.robots:
            robot.data, robot.hand_target = copy.copy(self.env.robot.data), self.env.robot.hand_target.copy()
        return future

    def step_lanes(self, actions: np.ndarray) -> None:
        frames, hands = [], []
        kept = self.env.robot
        for robot, action in zip(self.robots, actions, strict=True):
            self.env.robot = robot
            robot.act(action)
            frames.append(self.env._observe()[0])
            hands.append(robot.hand)
        self.env.robot = kept
        self.frames, self.variables = np.stack(frames), np.stack(hands)


def test_with_a_perfect_dream_a_plan_brings_the_object_nearer(env: Pushing) -> None:
    frame, _ = env.reset(seed=1)
    task, rng = Task(env.robot, np.random.default_rng(1)), np.random.default_rng(0)
    aim, first = PushValue(env, frame, task), task.goal_distance
    how = CEMConfig(n_candidates=16, n_elite=4, n_rounds=2, horizon=6, hold_steps=2)
    for _ in range(6):
        worth = partial(aim.value, Simulated(env), seed=0)  # type: ignore[arg-type]
        fit = cross_entropy_method(env.env_spec.action, how, worth, rng)
        for action in fit[:2]:
            frame = env.step(action)[0]
            aim.observe(frame)
    assert task.goal_distance < first - 0.05


@pytest.mark.parametrize("recurrent", [False, True])
def test_the_command_scores_all_three_from_the_same_beginnings(
    recurrent: bool, tmp_path: Path, toy_stages: Callable, capsys: pytest.CaptureFixture
) -> None:
    with contextlib.closing(Pushing(size=16)) as env:
        run = trained_on_noise(tmp_path / "run", env.env_spec, toy_stages, recurrent)
    how = CEMConfig(n_candidates=4, n_elite=2, n_rounds=1, horizon=3, hold_steps=1, n_dims=2)
    plan.main(
        plan.Args(run=str(run), world="pushing", episodes=2, context_frames=4, cem=how, out=tmp_path / "plan.json")
    )
    scores = json.loads((tmp_path / "plan.json").read_text())["scores"]
    off = scores.pop("pixels_off")
    assert all(0 <= pixels < 16 for pixels in (*off["frames"], *off["reconstructions"], *off["still"]))
    assert off["frames"] != off["reconstructions"], "this VQ-VAE knows noise only"
    first = {name: [ways[0] for ways in episodes] for name, episodes in scores.items()}
    assert first["random"] == first["pusher"] == first["planned"]
    assert np.mean([ways[1] for ways in scores["pusher"]]) < np.mean(first["pusher"]) - 0.1, "it knows where things are"
    assert "distance to goal, m" in capsys.readouterr().out
    with pytest.raises(UserError, match="leave --value-policy out"):
        plan.main(plan.Args(run=str(run), value_policy="health_gathering_supreme", cem=how))
    with pytest.raises(UserError, match=r"this bin has objects 0 to .*, not 20"):
        plan.main(plan.Args(run=str(run), object=20, cem=how))


def test_what_cannot_be_planned_is_told_before_anybody_plays(toy_run: Path) -> None:
    with pytest.raises(UserError, match="toy has nothing to push; leave --object and --goal out"):
        plan.main(plan.Args(run=str(toy_run), object=1))
    with pytest.raises(UserError, match="no pretrained model is named 'push'"):
        plan.main(plan.Args(world="push"))


def test_a_single_frame_is_context_enough() -> None:
    planner = Planner(None, None, replan_every=2, context_frames=1, cem=CEMConfig())  # type: ignore[arg-type]
    planner.planned = [np.array(1), np.array(2)]
    rng = np.random.default_rng(0)
    assert [int(planner.act(np.zeros((2, 2, 3)), [], rng)) for _ in range(2)] == [1, 2]
