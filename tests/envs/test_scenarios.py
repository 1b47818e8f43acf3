"""Every scenario opens and plays; Battle2's map is the right one or none."""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import vizdoom as vzd
from gymnasium import spaces

from envs import scenarios
from envs.buttons import Buttons
from envs.vizdoom import VizdoomFrames
from worldmodel.data.env_spec import random_actions
from worldmodel.utils.errors import UserError


def test_all_that_ships_is_known() -> None:
    shipped = {path.stem for path in Path(vzd.scenarios_path).glob("*.cfg")}
    assert set(scenarios.scenario_names()) >= shipped - {"doom", "doom2"}, (
        "only those whose maps are sold may be missing"
    )
    assert "battle2" in scenarios.scenario_names()


@pytest.mark.parametrize("name", scenarios.scenario_names())
def test_ten_steps_of_each_scenario_and_another_episode(name: str) -> None:
    with contextlib.closing(VizdoomFrames(name)) as env:
        frame, info = env.reset(seed=0)
        for action in random_actions(env.env_spec.action, 10, np.random.default_rng(0)):
            after, reward, terminated, truncated, info = env.step(action)
            assert (after.shape, after.dtype) == ((64, 64, 3), np.uint8)
            assert after.std() > 5, "a picture, not a colour"
            assert np.isfinite(reward)
            assert set(info) == set(env.variables)
            assert not truncated
            assert env.env_spec.max_episode_steps or name == "defend_the_line", "which ends by death"
            if terminated:
                env.reset()
        assert not np.array_equal(after, frame)
        np.testing.assert_array_equal(env.reset(seed=0)[0], frame)


def test_battle2_has_the_factors_of_table_9() -> None:
    with contextlib.closing(VizdoomFrames("battle2")) as env:
        assert env.action_space == spaces.MultiDiscrete([3, 3, 2, 2, 11])
        assert env.env_spec.action.encoded_dim * 15 == 315
        assert env.variables == ("AMMO2", "HEALTH", "USER2")
        assert env.env_spec.max_episode_steps == 525
        first = env.reset(seed=1)[1]
        told = [env.step(np.array([0, 0, 1, 0, 5]))[4] for _ in range(10)]  # the trigger, and no turn
        assert told[-1]["AMMO2"] < first["AMMO2"]


def test_buttons_that_are_pressed_together() -> None:
    names = ("MOVE_BACKWARD", "ATTACK", "MOVE_FORWARD", "TURN_LEFT_RIGHT_DELTA", "SPEED")
    buttons = Buttons([getattr(vzd.Button, name) for name in names], factored=True)
    assert buttons.space == spaces.MultiDiscrete([3, 2, 11, 2])
    assert buttons.press([0, 0, 5, 0]).tolist() == [0, 0, 0, 0, 0]
    assert buttons.press([1, 1, 0, 1]).tolist() == [1, 1, 0, -10, 1]
    assert buttons.press([2, 0, 8, 0]).tolist() == [0, 0, 1, 6, 0]


def test_buttons_one_at_a_time() -> None:
    names = ("ATTACK", "TURN_LEFT_RIGHT_DELTA", "MOVE_LEFT")
    buttons = Buttons([getattr(vzd.Button, name) for name in names], factored=False)
    assert buttons.space == spaces.Discrete(5)
    pressed = [buttons.press(action).tolist() for action in range(5)]
    assert pressed == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [0, -10, 0], [0, 10, 0]]


def test_a_scenario_whose_map_is_sold_says_which() -> None:
    with pytest.raises(UserError, match=r"no scenario 'doom2' without doom2.wad in .*; choose one of .*freedoom2"):
        scenarios.find_scenario("doom2")


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("BATTLE2_WAD", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "worldmodel" / "battle2.wad"


def fake_pip(
    monkeypatch: pytest.MonkeyPatch, returncode: int, content: bytes = b"", member: str = scenarios.MEMBER
) -> None:
    """A pip that leaves a wheel with this map, or fails."""

    def run(command: list[str], **_: object) -> CompletedProcess[str]:
        if not returncode:
            folder = Path(command[command.index("-d") + 1])
            with zipfile.ZipFile(folder / "sample_factory-2.1.1-py3-none-any.whl", "w") as wheel:
                wheel.writestr(member, content)
        return CompletedProcess(command, returncode, "", "noise\nERROR: no network")

    monkeypatch.setattr(scenarios.subprocess, "run", run)


def test_without_a_network_one_sentence(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, returncode=1)
    with pytest.raises(UserError, match=r"could not be downloaded \(ERROR: no network\); .* or set BATTLE2_WAD"):
        scenarios.battle2()
    assert not empty_cache.exists()


def test_another_map_is_refused_and_not_kept(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, returncode=0, content=b"PWAD")
    with pytest.raises(UserError, match=r"is not Battle2's map: its sha256 is .*; set BATTLE2_WAD"):
        scenarios.battle2()
    fake_pip(monkeypatch, returncode=0, member="another.wad")
    with pytest.raises(UserError, match=r"any.whl does not contain Battle2's map \(.*\); set BATTLE2_WAD"):
        scenarios.battle2()
    assert not empty_cache.exists()


def test_a_cache_that_cannot_hold_the_map(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, returncode=0, content=b"PWAD")
    monkeypatch.setattr(scenarios, "SHA256", hashlib.sha256(b"PWAD").hexdigest())
    empty_cache.parent.write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot be written to .*worldmodel .*; set BATTLE2_WAD"):
        scenarios.battle2()
    empty_cache.parent.unlink()
    assert scenarios.battle2().read_bytes() == b"PWAD"


def test_a_path_goes_before_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy.wad"
    copy.write_bytes(scenarios.battle2().read_bytes())
    monkeypatch.setenv("BATTLE2_WAD", str(copy))
    assert scenarios.battle2() == copy
    monkeypatch.chdir(tmp_path)
    for relative in ("copy.wad", "~/copy.wad"):  # the engine begins in a folder of its own
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("BATTLE2_WAD", relative)
        assert scenarios.battle2() == copy
    monkeypatch.setenv("BATTLE2_WAD", str(tmp_path / "none.wad"))
    with pytest.raises(UserError, match=r"none.wad is not a file; set BATTLE2_WAD to the path of a copy"):
        scenarios.battle2()
