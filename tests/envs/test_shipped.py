"""The worlds that ship, as a new user opens them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs  # noqa: F401 - registers
from envs.policies import load_policy
from worldmodel.generation.context import Context
from worldmodel.models.loading import PRETRAINED
from worldmodel.utils.checkpoint import read_checkpoint

WORLDS = sorted(folder.parent.name for folder in PRETRAINED.glob("*/prior"))


def test_no_argument_opens_health_gathering_supreme_without_a_network(tmp_path: Path) -> None:
    """In an empty home, where nothing may be connected to: whatever is needed came with the package."""
    script = (
        "import socket\n"
        "def refuse(*_): raise OSError('no network here')\n"
        "socket.socket.connect = refuse\n"
        "import gymnasium, envs\n"
        "env = gymnasium.make('VideoGPTDream-v0')\n"
        "frame, info = env.reset(seed=0)\n"
        "print(env.unwrapped.env_spec.name, frame.shape, 0 < info['HEALTH'] <= 100)\n"
    )
    home = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=home, cwd=tmp_path)
    assert done.stdout.split("\n")[0] == "health_gathering_supreme (64, 64, 3) True", done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("world", WORLDS)
def test_a_world_is_whole(world: str) -> None:
    env = gym.make("VideoGPTDream-v0", world=world).unwrapped
    check_env(env, skip_render_check=True)
    contexts = Context.load(PRETRAINED / world)
    assert len(contexts) >= 24
    assert len({c.tobytes() for c in contexts.codes.numpy()}) == len(contexts), "each begins elsewhere"
    load_policy(world if (PRETRAINED / f"{world}_policy").is_dir() else f"{world}_dream", env.env_spec)
    assert read_checkpoint(PRETRAINED / world / "vqvae").config["exported_from"]
    size = sum(path.stat().st_size for path in (PRETRAINED / world).rglob("*") if path.is_file())
    assert size < 25e6, "models and contexts together"
    assert f"## {world}\n" in (PRETRAINED / "README.md").read_text(), "no model without its card"


def test_a_shipped_dream_obeys_and_lets_time_cost_health() -> None:
    """Turning moves the picture more than standing still does, and health falls, as in the engine."""
    env = gym.make_vec("VideoGPTDream-v0", num_envs=16)
    still, turning = (np.full(16, a) for a in (0, 2))
    change, lost = {}, {}
    for name, actions in (("still", still), ("turning", turning)):
        frames, infos = env.reset(seed=0)
        begin, health = frames.astype(int), infos["HEALTH"]
        for _ in range(12):
            frames, _, _, _, infos = env.step(actions)
        change[name], lost[name] = np.abs(frames - begin).mean(), (health - infos["HEALTH"]).mean()
    assert change["turning"] > 1.3 * change["still"]
    assert 3 < lost["still"] < 30


def test_everything_that_ships_is_small() -> None:
    """Worlds and policies together."""
    assert sum(path.stat().st_size for path in PRETRAINED.rglob("*") if path.is_file()) < 60e6
