"""Dreams of worlds whose actions are several choices or numbers: Battle2's five factors, the robot's four numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs  # noqa: F401 - registers
from rollout import controllability
from train import outcome, prior, tokens, vqvae
from worldmodel.data.env_spec import ActionSpec, EnvSpec, random_actions
from worldmodel.data.writer import StoreWriter
from worldmodel.utils.checkpoint import read_checkpoint

BATTLE2 = ActionSpec(kind="MultiDiscrete", nvec=(3, 3, 2, 2, 11))
PUSHING = ActionSpec(kind="Box", low=(-0.1, -0.1, 0.0, 0.0), high=(0.1, 0.1, 4.0, 4.0))
SPACES = {
    "MultiDiscrete": (BATTLE2, gym.spaces.MultiDiscrete([3, 3, 2, 2, 11])),
    "Box": (PUSHING, gym.spaces.Box(np.float32(PUSHING.low), np.float32(PUSHING.high))),
}


@pytest.fixture(params=SPACES)
def run(request: pytest.FixtureRequest, tmp_path: Path, toy_stages: Callable) -> Path:
    """A run folder named by its kind of space."""
    spec = SPACES[request.param][0]
    env_spec = EnvSpec(name="x", frame_shape=(16, 16, 3), action=spec, variables=("x",), max_episode_steps=20)
    return trained_on_noise(tmp_path / request.param, env_spec, toy_stages)


def trained_on_noise(folder: Path, env_spec: EnvSpec, toy_stages: Callable, recurrent: bool = False) -> Path:
    """A run folder of a few steps on noise: what is dreamed does not matter."""
    spec, rng = env_spec.action, np.random.default_rng(0)
    with StoreWriter(folder / "data.zarr", env_spec, {}) as writer:
        for _ in range(20):
            zeros = np.zeros(21, bool)
            writer.append(
                {
                    "frames": rng.integers(256, size=(21, 16, 16, 3), dtype=np.uint8),
                    "action": random_actions(spec, 21, rng).astype(spec.dtype) * (np.arange(21) < 20)[:, None],
                    "reward": zeros.astype(np.float32),
                    "terminated": zeros,
                    "truncated": np.arange(21) == 19,
                    "variables": rng.random((21, len(env_spec.variables)), np.float32),
                }
            )
    stages = toy_stages(folder, steps=4, recurrent=recurrent)
    short = {vqvae: {"n_eval_frames": 20}, outcome: {"n_latent_frames": 8}}
    for stage, args in zip((vqvae, tokens, prior, outcome), stages, strict=True):
        stage.main(replace(args, **short.get(stage, {})))
    return folder


def test_a_single_frame_has_no_actions_whatever_their_shape(run: Path) -> None:
    env = gym.make("VideoGPTDream-v0", model=run)
    frame = np.zeros((1, 16, 16, 3), np.uint8)
    for actions in ([], np.zeros((0, *env.action_space.shape), env.action_space.dtype)):
        env.reset(seed=0, options={"frames": frame, "actions": actions})
        assert env.step(env.action_space.sample())[0].shape == (16, 16, 3)


def test_the_dream_has_the_spaces_that_were_recorded_and_its_actions_are_read_back(run: Path) -> None:
    env = gym.make("VideoGPTDream-v0", model=run)
    assert env.action_space == SPACES[run.name][1]
    check_env(env.unwrapped, skip_render_check=True)
    frames = []
    for seed in (0, 0, 1):
        env.action_space.seed(seed)
        env.reset(seed=0)
        frames.append(np.stack([env.step(env.action_space.sample())[0] for _ in range(4)]))
    np.testing.assert_array_equal(frames[0], frames[1])
    lanes = gym.make_vec("VideoGPTDream-v0", num_envs=3, model=run)
    lanes.reset(seed=0)
    assert lanes.step(lanes.action_space.sample())[0].shape == (3, 16, 16, 3)
    controllability.main(controllability.Args(run=run, n_clips=4, context_frames=4, steps=4, train_steps=4))
    told = json.loads((run / "evaluation" / "controllability.json").read_text())
    assert 0 <= told["inverse_dynamics"]["real frames"]["mean"] <= 1
    scale = read_checkpoint(run / "prior").config["model"]["condition_scale"]
    assert (len(scale), all(scale)) == (4 if run.name == "Box" else 0, True)
