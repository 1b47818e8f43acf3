"""Many lanes of the dream at once: each is the lane it would be alone, whenever it begins again."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3 import PPO

import envs  # noqa: F401 - registers
from envs.sb3 import SB3VecEnv
from envs.vector import DreamVectorEnv
from worldmodel.utils.errors import UserError

LANES, STEPS = 5, 40


def make(run: Path, mode: str = "NextStep", **kwargs: object) -> DreamVectorEnv:
    return gym.make_vec("VideoGPTDream-v0", num_envs=LANES, model=run, autoreset_mode=mode, **kwargs)


def actions() -> np.ndarray:
    return np.random.default_rng(0).integers(3, size=(STEPS, LANES))


def equal(a: object, b: object) -> bool:
    """Same values, whatever of dicts and arrays they are in; floats, and so the last bit of a pixel, to rounding."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, np.ndarray) and a.dtype == object:
        return isinstance(b, np.ndarray) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    if a is None or b is None:
        return a is b
    rounding = 1.0 if np.asarray(a).dtype == np.uint8 else 1e-3
    return np.allclose(np.asarray(a, float), np.asarray(b, float), rtol=1e-3, atol=rounding)


def test_it_is_made_without_warnings_and_has_gymnasiums_spaces(toy_run: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = make(toy_run)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert env.action_space == gym.spaces.MultiDiscrete([3] * LANES)
    frames, infos = env.reset(seed=0)
    assert env.observation_space.contains(frames)
    assert set(infos) == {"COLUMN", "_COLUMN"}
    frames, rewards, terminated, truncated, infos = env.step(actions()[0])
    assert env.observation_space.contains(frames)
    assert rewards.shape == terminated.shape == truncated.shape == (LANES,)
    assert (infos["log_likelihood"] < 0).all()
    assert (infos["entropy"] > 0).all()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_lanes_are_single_environments_with_the_same_seeds(toy_run: Path, mode: AutoresetMode) -> None:
    """Gymnasium's own way to put single environments together is the reference, through a dozen ends."""
    single = [lambda: gym.make("VideoGPTDream-v0", model=toy_run, horizon=12)] * LANES
    reference, env = SyncVectorEnv(single, autoreset_mode=mode), make(toy_run, mode, horizon=12)
    trails = []
    for e in (reference, env):
        trail: list[tuple] = [e.reset(seed=3)]
        trails.append([*trail, *(e.step(a) for a in actions())])
    ends = 0
    for t, (a, b) in enumerate(zip(*trails, strict=True)):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert equal(x, y), f"step {t}, output {i}"
        ends += int(a[2].sum() + a[3].sum()) if t else 0
    assert ends >= 12


def test_disabled_autoreset_waits_for_a_reset_by_mask(toy_run: Path) -> None:
    env = make(toy_run, "Disabled", horizon=1)
    env.reset(seed=1)
    env.step(np.zeros(LANES, int))
    with pytest.raises(UserError, match=r"lanes \[0, 1, 2, 3, 4\] have ended; reset them"):
        env.step(np.zeros(LANES, int))
    before = env.frames.copy()
    frames, infos = env.reset(options={"reset_mask": np.array([True, False, True, False, False])})
    assert infos["_COLUMN"].tolist() == [True, False, True, False, False]
    assert np.array_equal(frames[[1, 3, 4]], before[[1, 3, 4]])
    with pytest.raises(UserError, match=r"lanes \[1, 3, 4\] have ended"):
        env.step(np.zeros(LANES, int))


def test_a_fork_dreams_on_as_its_lane_would_and_with_a_seed_otherwise(toy_run: Path) -> None:
    env = gym.make("VideoGPTDream-v0", model=toy_run, temperature=3.0, horizon=0).unwrapped

    def lives(seed: int, actions: tuple[int, ...]) -> bool:
        env.reset(seed=seed)
        return not any(env.step(a)[2] for a in actions)

    first, then = (0, 1, 2), (1,) * 6
    seed = next(seed for seed in range(50) if lives(seed, first + then))
    assert lives(seed, first)
    exact, lucky = env.fork(4), env.fork(4, seed=1)
    column = np.array([1, 1, 2, 2])
    futures = np.stack([exact.step_lanes(column) and exact.frames for _ in range(6)])
    others = np.stack([lucky.step_lanes(column) and lucky.frames for _ in range(6)])
    mine = np.stack([env.step(a)[0] for a in then])
    assert np.array_equal(futures[:, 0], mine)
    assert np.array_equal(futures[:, 1], mine), "a fork leaves its origin alone"
    assert not np.array_equal(futures[:, 2], mine), "under other actions"
    assert not np.array_equal(others[:, 0], others[:, 1]), "with other luck"
    pairs = make(toy_run)
    pairs.reset(seed=0)
    assert np.array_equal(pairs.fork(2).frames, pairs.frames.repeat(2, 0))


def test_a_snapshot_brings_every_lane_back(toy_run: Path) -> None:
    env = make(toy_run, temperature=3.0, horizon=7)
    env.reset(seed=0)
    for a in actions()[:5]:
        env.step(a)
    snapshot = env.snapshot()
    futures = []
    for _ in range(2):
        env.restore(snapshot)
        futures.append([env.step(a) for a in actions()[5:20]])
    for a, b in zip(*futures, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_equal(x, y)


@pytest.mark.parametrize("world", ["health_gathering_supreme", "take_cover"])
def test_a_snapshot_brings_back_another_environment_of_the_same_models(world: str) -> None:
    """Even from a file. What ships has convolutions along time, in the VQ-VAE or in the outcome model."""
    one, other = (DreamVectorEnv(2, world=world) for _ in range(2))
    one.reset(seed=0)
    one.step(np.array([1, 2]))
    kept = pickle.dumps(one.snapshot())
    other.reset(seed=5)
    other.step(np.array([0, 0]))
    other.restore(pickle.loads(kept))
    for choices in ([1, 0], [2, 1], [0, 2]):
        for mine, theirs in zip(one.step(np.array(choices)), other.step(np.array(choices)), strict=True):
            np.testing.assert_equal(mine, theirs)


def test_a_snapshot_of_another_dream_is_refused(toy_run: Path) -> None:
    env, shipped = make(toy_run), DreamVectorEnv(LANES)
    for dream in (env, shipped):
        dream.reset(seed=0)
    with pytest.raises(UserError, match=r"taken from another dream: it has outcome = \w+, but \w+ was asked for"):
        env.restore(shipped.snapshot())
    for nothing in ({}, None):
        with pytest.raises(UserError, match=r"this is not a snapshot; give what snapshot\(\) returned"):
            env.restore(nothing)  # type: ignore[arg-type]


def test_contexts_for_each_lane(toy_run: Path) -> None:
    env = make(toy_run)
    frames, _ = env.reset(seed=0, options={"context": np.array([0, 1, 2, 3, 0])})
    assert np.array_equal(frames[0], frames[4])
    assert len(np.unique(frames.reshape(LANES, -1), axis=0)) > 1
    own = {"frames": np.full((4, 16, 16, 3), 40, np.uint8), "actions": [0, 0, 0], "variables": [2.0]}
    frames, _ = env.reset(options=own)
    assert (frames == frames[0]).all()


def test_stable_baselines_gets_what_it_expects(toy_run: Path) -> None:
    env = SB3VecEnv(make(toy_run, "SameStep", horizon=6))
    env.seed(3)
    env.reset()
    reference = make(toy_run, "SameStep", horizon=6)
    reference.reset(seed=3)
    ended = 0
    for a in actions():
        frames, rewards, done, infos = env.step(a)
        expected, r, terminated, truncated, info = reference.step(a)
        assert np.array_equal(frames, expected)
        assert np.allclose(rewards, r)
        assert np.array_equal(done, terminated | truncated)
        for i in np.flatnonzero(done):
            ended += 1
            assert infos[i]["TimeLimit.truncated"] == truncated[i]
            assert np.array_equal(infos[i]["terminal_observation"], info["final_obs"][i])
            assert infos[i]["COLUMN"] == info["final_info"]["COLUMN"][i]
            assert env.reset_infos[i]["COLUMN"] == info["COLUMN"][i]
    assert ended > 20
    ppo = PPO("MlpPolicy", env, n_steps=20, batch_size=50, n_epochs=1, seed=0)
    ppo.learn(200)
    assert ppo.num_timesteps == 200


def test_sb3_shows_all_lanes_and_forgets_options_that_it_refused(toy_run: Path) -> None:
    env = SB3VecEnv(make(toy_run, "SameStep", render_mode="rgb_array"))
    env.set_options([{"context": 0}] + [{}] * (LANES - 1))
    with pytest.raises(UserError, match="give all of them the same options"):
        env.reset()
    frames = env.reset()
    assert np.array_equal(np.stack(env.get_images()), frames)
    shown = env.render()
    assert shown is not None
    assert shown.ndim == 3
    assert np.array_equal(shown[:16, :16], frames[0])
    hidden = SB3VecEnv(make(toy_run, "SameStep"))
    hidden.reset()
    assert hidden.get_images() == [None] * LANES


def test_mistakes_are_told_in_a_sentence(toy_run: Path) -> None:
    env = make(toy_run)
    with pytest.raises(UserError, match="reset the dream before stepping it"):
        env.step_lanes(np.zeros(LANES, int))
    with pytest.raises(UserError, match="the first reset must include all lanes"):
        env.reset(options={"reset_mask": np.array([True, False, True, False, False])})
    env.reset(seed=0)
    with pytest.raises(UserError, match="reset_mask must be 5 booleans"):
        env.reset(options={"reset_mask": [True]})
    with pytest.raises(UserError, match="5 lanes need 5 seeds, not 2"):
        env.reset(seed=[1, 2])
    with pytest.raises(UserError, match=r"5 lanes take actions of shape \(5,\), not \(2,\)"):
        env.step(np.zeros(2, int))
    with pytest.raises(UserError, match="snapshot has 10 lanes, not 5"):
        env.restore(env.fork(2).snapshot())
    with pytest.raises(UserError, match="a lane needs at least 1 copy, not 0"):
        env.fork(0)
    for wrong in (0, 1.5):
        with pytest.raises(UserError, match="num_envs must be a whole number of at least 1"):
            DreamVectorEnv(wrong, toy_run)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="reset the dream before rendering it"):
        make(toy_run, render_mode="rgb_array").render()
    for wrong in (0, None, np.zeros((LANES, 1), int)):
        with pytest.raises(UserError, match=r"5 lanes take actions of shape \(5,\)"):
            env.step(wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match='autoreset_mode="SameStep"'):
        SB3VecEnv(env)


def test_what_a_batch_is_made_with_is_refused_in_a_sentence_or_taken(toy_run: Path) -> None:
    for wrong, sentence in (
        ({"autoreset_mode": "Sometimes"}, "must be one of NextStep, SameStep, Disabled, not 'Sometimes'"),
        ({"horizon": -5}, "horizon must be at least 0, not -5"),
        ({"horizon": 2.5}, "horizon should be of type int, not 2.5"),
        ({"device": "foo"}, "'foo' is not a device; choose cpu or cuda"),
        ({"temperature": float("nan")}, "temperature must be a finite number of at least 0, not nan"),
        ({"render_mode": "human"}, "render_mode must be rgb_array, or not given, not 'human'"),
    ):
        with pytest.raises(UserError, match=sentence):
            DreamVectorEnv(2, toy_run, **wrong)  # type: ignore[arg-type]
    env = gym.make_vec("VideoGPTDream-v0", num_envs=2, model=toy_run, render_mode="rgb_array")
    frames, _ = env.reset(seed=np.int64(3))  # type: ignore[arg-type]
    again, _ = env.reset(seed=np.array([3, 4]))  # type: ignore[arg-type]
    assert np.array_equal(frames, again)
    assert np.array_equal(np.stack(env.render()), frames)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="1 frames have 0 actions between them, but none are given"):
        env.reset(options={"frames": frames[:1], "actions": 0})
