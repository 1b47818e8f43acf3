"""A world's environment is made again, unless its id would run code that nobody asked for."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from envs import ENVIRONMENTS
from envs.pushing import Pushing
from envs.recorded_env import make_recorded_env
from envs.vizdoom import make_engine
from rollout.planning.visual_foresight import robot_of
from tests.conftest import TOY
from worldmodel.data.env_spec import EnvSpec
from worldmodel.utils.errors import UserError


def world(env_id: Any, /, **env_kwargs: Any) -> EnvSpec:
    return replace(TOY, env_id=env_id, env_kwargs=env_kwargs)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that leaves a trace where it is imported, and registers an environment."""
    monkeypatch.syspath_prepend(tmp_path)
    made = """
import gymnasium, pathlib
pathlib.Path(__file__).with_name("imported").touch()
gymnasium.register("Foreign-v0", entry_point="envs.pushing:Pushing")
"""
    (tmp_path / "foreign_module.py").write_text(made)
    monkeypatch.delitem(sys.modules, "foreign_module", raising=False)
    return tmp_path / "imported"


def test_a_module_that_a_run_names_is_imported_only_for_who_trusts_it(
    module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.registry))
    with pytest.raises(UserError, match=r"toy was recorded from 'foreign_module:Foreign-v0'.*give --trust-env"):
        make_recorded_env(world("foreign_module:Foreign-v0"))
    assert not module.exists()
    with pytest.raises(UserError, match=r"toy was recorded from 'foreign_module:Foreign-v0'.*give --trust-env"):
        make_recorded_env(world("GymFrames-v0", env_id="foreign_module:Foreign-v0"))
    inside = {"env_id": "foreign_module:Foreign-v0"}
    with pytest.raises(UserError, match=r"toy was recorded from 'GymFrames-v0'.*give --trust-env"):
        make_recorded_env(world("GymFrames-v0", env_id="GymFrames-v0", env_kwargs=inside))
    for wrappers in (["foreign_module:Foreign"], "foreign_module:Foreign"):
        with pytest.raises(UserError, match=r"toy was recorded from 'foreign_module:Foreign'.*give --trust-env"):
            make_recorded_env(world("GymFrames-v0", env_id="VizdoomFrames-v0", wrappers=wrappers))
    assert not module.exists()
    made = make_recorded_env(world("foreign_module:Foreign-v0", size=8), trusted=True)
    assert module.exists()
    assert isinstance(made.unwrapped, Pushing)
    assert made.unwrapped.size == 8


@pytest.mark.parametrize("env_id", ["CartPole-v1", "this:X-v0", "envs:VizdoomFrames-v0", "VizdoomFrames-v1"])
def test_other_ids_are_refused(env_id: str) -> None:
    with pytest.raises(UserError, match="which is not part of this project"):
        make_recorded_env(world(env_id))


@pytest.mark.parametrize("wrong", [{"env_id": 3}, {"env_id": ["a"]}, {"env_kwargs": "x"}])
def test_a_world_holds_what_it_declares(wrong: Any) -> None:
    with pytest.raises(UserError, match=r"should be of type (str|dict), not"):
        replace(TOY, **wrong)


def test_ids_of_this_project_are_made() -> None:
    assert {"VizdoomFrames-v0", "BAIRPushing-v0", "GymFrames-v0", "VideoGPTDream-v0"} == set(ENVIRONMENTS)
    robot = robot_of(world("BAIRPushing-v0", size=16, horizon=3))
    assert (robot.size, robot.env_spec.max_episode_steps) == (16, 3)
    engine = make_engine(world("VizdoomFrames-v0", scenario="basic", frame_skip=2))
    assert (engine.env_spec.name, engine.frame_skip) == ("basic", 2)
    engine.close()


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (world(""), "toy was not recorded from a Gymnasium environment, so there is no engine"),
        (world("VizdoomFrames-v0", cheat=1), "VizdoomFrames-v0 cannot be made with {'cheat': 1}: .*cheat"),
        (world("VizdoomFrames-v0", id="other"), "cannot be made"),
        (world("VizdoomFrames-v0", scenario="../../evil"), "there is no scenario '../../evil'"),
    ],
)
def test_what_cannot_be_made_is_one_sentence(made: EnvSpec, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        make_recorded_env(made)
    assert "\n" not in str(error.value)


def test_who_has_no_engine_is_told() -> None:
    with pytest.raises(UserError, match="toy was not recorded from VizdoomFrames-v0"):
        make_engine(world("BAIRPushing-v0"))
