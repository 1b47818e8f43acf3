"""The simulated robot: what its actions do, what holds objects in, and that a seed is an episode."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import envs  # noqa: F401 - registers
from envs import offscreen
from envs.pushing import Pushing
from envs.pushing_robot import ACTION, Robot, bair_actions
from envs.pushing_scene import GRIPPER_GAP, HIGH, LOW, MARGIN, SHOULDER, UPPER_ARM
from worldmodel.utils.errors import UserError

NOTHING = np.zeros(4, np.float32)


@pytest.fixture(scope="module")
def env() -> Iterator[Pushing]:
    env = Pushing()
    yield env
    env.close()


def robot(seed: int = 0) -> Robot:
    return Robot(np.random.default_rng(seed))


def play(env: Pushing, seed: int, steps: int = 12) -> tuple[np.ndarray, list[tuple[object, ...]]]:
    frames, told = [env.reset(seed=seed)[0]], []
    for action in bair_actions(ACTION, steps, np.random.default_rng(seed)):
        frame, *rest = env.step(action)
        frames.append(frame)
        told.append(tuple(rest))
    return np.stack(frames), told


def test_checkers_of_gymnasium_and_stable_baselines_are_content(env: Pushing) -> None:
    """Metres and steps, as BAIR has them, are not the -1..1 that both recommend; scaled to it, nothing is amiss."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scaled = gym.wrappers.RescaleAction(env, np.float32(-1), np.float32(1))
        check_env_sb3(scaled)
        warnings.filterwarnings("ignore", ".*symmetric and normalized")
        check_env(env, skip_render_check=True)
        check_env_sb3(env)


def test_gymnasium_makes_it_by_its_id() -> None:
    with gym.make("envs:BAIRPushing-v0", size=32, horizon=3, render_mode="rgb_array") as env:
        frame, _ = env.reset(seed=0)
        assert frame.shape == (32, 32, 3)
        assert env.render().shape == (64, 64, 3)  # type: ignore[union-attr]
        assert [env.step(NOTHING)[2:4] for _ in range(3)] == [(False, False)] * 2 + [(False, True)]


def test_the_same_seed_gives_the_same_episode_and_another_seed_another(env: Pushing) -> None:
    (frames, told), (other, _), (again, told_again) = play(env, 1), play(env, 2), play(env, 1)
    np.testing.assert_array_equal(frames, again)
    assert told == told_again
    assert (frames[0] != other[0]).mean() > 0.1
    assert env.reset()[0].tolist() != env.reset()[0].tolist()


def test_what_is_seen_and_told(env: Pushing) -> None:
    frames, told = play(env, 3)
    assert (frames.dtype, frames.shape[1:]) == (np.uint8, (64, 64, 3))
    assert len(np.unique(frames[0].reshape(-1, 3), axis=0)) > 200  # colours
    assert (frames[0] != frames[-1]).mean() > 0.02
    kept = frames[0].copy()
    env.step(NOTHING)
    np.testing.assert_array_equal(frames[0], kept)
    for reward, terminated, _, info in told:
        assert (reward, terminated, list(info)) == (0.0, False, ["x", "y", "z"])


def test_objects_of_a_seed_are_many_and_varied() -> None:
    for seed in range(8):
        model = robot(seed).model
        geoms = [g for g in range(model.ngeom) if model.body(model.geom_bodyid[g]).name.startswith("object")]
        assert len(geoms) >= 8
        assert len(set(model.geom_type[geoms])) == 5
        for what in (model.geom_size, model.geom_rgba):
            assert len(np.unique(what[geoms], axis=0)) == len(geoms)


def test_actions_move_the_hand_by_what_they_say() -> None:
    """In an empty spot, lifted: by dx and dy metres, until the side of the workspace, to the centimetre."""
    one = robot()
    one.act(np.array([0, 0, 0, 4]))
    before = one.hand
    assert before[2] == pytest.approx(HIGH[2], abs=0.01)
    towards = np.sign((LOW + HIGH)[:2] / 2 - before[:2])
    one.act(np.array([*0.05 * towards, 0, 0]))
    np.testing.assert_allclose((one.hand - before)[:2], 0.05 * towards, atol=0.01)
    for _ in range(6):
        one.act(np.array([0.1, -0.1, 0, 1]))
    np.testing.assert_allclose(one.hand[:2], [HIGH[0], LOW[1]], atol=0.005)


def test_lifting_and_closing_last_as_many_steps_as_commanded() -> None:
    one = robot()
    heights, gaps = [], []
    for t in range(8):
        one.act(np.array([0, 0, 3 if t == 1 else 0, 2 if t == 2 else 0]))
        heights.append(one.hand[2])
        gaps.append(GRIPPER_GAP - one.data.qpos[3])
    assert [h > 0.29 for h in heights] == [False, False, True, True, False, False, False, False]
    assert [gap < 0.01 for gap in gaps] == [False, True, True, True, False, False, False, False]


def test_an_object_in_the_way_is_pushed_and_the_others_stay() -> None:
    """The hand goes up, behind an object that has room ahead, down, and along x."""
    one = robot(5)
    before = one.objects
    inside = (before[:, :2] > LOW[:2] + 0.12).all(1) & (before[:, 0] < HIGH[0] - 0.1)
    target = int(np.flatnonzero(inside)[0])
    spot = before[target, :2] - np.array([one.radii[target] + 0.03, GRIPPER_GAP])
    for _ in range(6):
        one.act(np.array([*np.clip(spot - one.hand[:2], -0.1, 0.1), 0, 1]))
    one.act(NOTHING)
    for _ in range(4):
        one.act(np.array([0.05, 0, 0, 0]))
    moved = one.objects - before
    assert moved[target, 0] > 0.05
    assert (np.linalg.norm(moved, axis=1) < 1e-3).any()


def test_without_a_touch_nothing_moves() -> None:
    one = robot(1)
    before = one.objects
    for action in bair_actions(ACTION, 20, np.random.default_rng(0)):
        one.act(np.array([*action[:2], action[2], 4]))
    assert np.abs(one.objects - before)[:, :2].max() < 0.01


def test_walls_hold_objects_in() -> None:
    """Ten episodes of the wildest sweeps, the hand always down."""
    low, high = LOW[:2] - MARGIN, HIGH[:2] + MARGIN
    for seed in range(10):
        one, rng = robot(seed), np.random.default_rng(seed)
        for _ in range(10):
            sweep = rng.choice([-0.1, 0.1], 2)
            for _ in range(4):
                one.act(np.array([*sweep, 0, 0]))
        assert (one.objects[:, :2] > low).all() and (one.objects[:, :2] < high).all()
        assert (one.objects[:, 2] > 0).all()


def test_the_arm_ends_at_the_hand() -> None:
    one = robot(2)
    for action in bair_actions(ACTION, 10, np.random.default_rng(2)):
        one.act(action)
        upper, fore = (one.data.mocap_pos[link] for link in one.links)
        np.testing.assert_allclose(upper, SHOULDER)
        assert np.linalg.norm(fore - SHOULDER) == pytest.approx(UPPER_ARM, abs=1e-6)
        end = one.data.body("fore").xmat.reshape(3, 3)[:, 0] * 0.46 + fore
        np.testing.assert_allclose(end, one.hand + np.array([0, 0, 0.05]), atol=0.01)


def test_the_robots_own_actions_are_as_often_commands_as_bairs() -> None:
    actions = bair_actions(ACTION, 20_000, np.random.default_rng(0))
    ACTION.check(actions)
    np.testing.assert_allclose((actions[:, 2:] == 0).mean(0), [0.8, 0.9], atol=0.01)
    assert set(actions[:, 2]) == set(actions[:, 3]) == {0, 1, 2, 3, 4}
    assert np.abs(actions[:, :2]).max() > 0.099


@pytest.mark.parametrize("action", [[0.2, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 5], [0, 0, 0], [np.nan, 0, 0, 0]])
def test_actions_outside_the_space_are_refused(env: Pushing, action: list[float]) -> None:
    env.reset(seed=0)
    with pytest.raises(UserError):
        env.step(np.array(action))


def test_where_nothing_can_draw_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def none(name: str) -> None:
        tried.append(name)
        raise ImportError("Unable to load EGL library")

    monkeypatch.setattr(offscreen, "importlib", SimpleNamespace(import_module=none))
    monkeypatch.setattr(offscreen, "reset_opengl", lambda: None)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    with pytest.raises(UserError, match=r"no offscreen renderer works .*apt-get install libegl1 or libosm") as error:
        Pushing().reset(seed=0)
    assert "\n" not in str(error.value)
    assert tried == ["mujoco.egl", "mujoco.egl", "mujoco.osmesa", "mujoco.osmesa"]
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(UserError):
        Pushing().reset(seed=0)
    assert tried[4:] == ["mujoco.osmesa", "mujoco.osmesa"]


@pytest.mark.parametrize(("name", "says"), [("glfw", "MUJOCO_GL=glfw cannot render without a window"), ("foo", "=foo")])
def test_a_backend_that_cannot_be_is_named_with_the_cure(name: str, says: str, tmp_path: Path) -> None:
    """In a process of its own: MuJoCo reads the variable when it is imported. Who draws nothing is not stopped."""
    code = "from envs.pusher import PushTask; PushTask().reset(seed=0); print('reset', flush=True)"
    code += "; from worldmodel.__main__ import main; main()"
    words = ["collect", "pushing", "--episodes", "1", "--num-workers", "1", "--out", str(tmp_path / "out")]
    root, broken = Path(__file__).parents[2], os.environ | {"MUJOCO_GL": name}
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=root, env=broken, capture_output=True, text=True)
    assert done.stdout.startswith("reset\n"), done.stderr
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert says in last
    assert "apt-get install libegl1" in last
    assert "Traceback" not in done.stderr


def test_what_is_asked_of_no_episode_or_too_large_is_refused() -> None:
    with pytest.raises(UserError, match="call reset first"):
        Pushing().step(np.zeros(4, np.float32))
    with pytest.raises(UserError, match="size must be from 1 to 256"):
        Pushing(size=257)


def test_what_failed_first_does_not_stand_in_the_way_of_the_next() -> None:
    """In a process of its own: PyOpenGL remembers the first platform that it was asked for."""
    code = """
import os, envs.offscreen as o, sys
o.BACKENDS = ("osmesa", "egl")
from envs.pushing import Pushing
print(Pushing().reset(seed=0)[0].std() > 10)
"""
    importlib.invalidate_caches()
    clean = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr[-500:]
