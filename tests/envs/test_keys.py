"""Keys against the engine's own buttons."""

from __future__ import annotations

import contextlib

import pytest
import vizdoom as vzd

from envs.buttons import Buttons
from envs.keys import KEYS, controls, keys_to_actions
from envs.spaces import to_action_spec
from envs.vizdoom import VizdoomFrames
from worldmodel.data.env_spec import ActionSpec, EnvSpec

MEANING = {"w": "MOVE_FORWARD", "a": ("TURN_LEFT", "MOVE_LEFT"), "d": ("TURN_RIGHT", "MOVE_RIGHT")}


@pytest.mark.parametrize("scenario", KEYS)
def test_each_key_presses_the_button_that_people_expect(scenario: str) -> None:
    with contextlib.closing(VizdoomFrames(scenario)) as env:
        for key, action in keys_to_actions(env.env_spec).items():
            if key in MEANING:
                pressed = [b for b, on in zip(env.buttons.names, env.buttons.press(action), strict=True) if on]
                assert len(pressed) == 1
                assert pressed[0] in MEANING[key]


def test_battle2_is_played_with_several_keys_at_once() -> None:
    """Its map is not needed: the buttons of its configuration are."""
    names = ("MOVE_FORWARD", "MOVE_BACKWARD", "MOVE_RIGHT", "MOVE_LEFT", "ATTACK", "SPEED", "TURN_LEFT_RIGHT_DELTA")
    buttons = Buttons([getattr(vzd.Button, name) for name in names], factored=True)
    found = controls(EnvSpec(name="battle2", frame_shape=(16, 16, 3), action=to_action_spec(buttons.space)))
    pressed = {}
    for key, (i, choice) in found["keys"].items():
        action = list(found["rest"])
        action[i] = choice
        values = buttons.press(action)
        pressed[key] = [(name, float(value)) for name, value in zip(names, values, strict=True) if value]
    assert not buttons.press(found["rest"]).any()
    assert pressed["w"] == pressed["arrowup"] == [("MOVE_FORWARD", 1)] and pressed["s"] == [("MOVE_BACKWARD", 1)]
    assert pressed["d"] == [("MOVE_RIGHT", 1)] and pressed["a"] == pressed["arrowleft"] == [("MOVE_LEFT", 1)]
    assert pressed["f"] == [("ATTACK", 1)] and pressed["r"] == [("SPEED", 1)]
    assert pressed["q"] == [("TURN_LEFT_RIGHT_DELTA", -6)] and pressed["e"] == [("TURN_LEFT_RIGHT_DELTA", 6)]


def test_sliders_rest_where_nothing_is_done_and_keys_reach_their_ends() -> None:
    box = ActionSpec(kind="Box", low=(-1.0, 0.5), high=(1.0, 2.0))
    found = controls(EnvSpec(name="x", frame_shape=(16, 16, 3), action=box))
    assert (found["kind"], found["low"], found["high"], found["rest"]) == ("Box", [-1, 0.5], [1, 2], [0, 0.5])
    keys = {"a": (0, -1), "d": (0, 1), "s": (1, 0.5), "w": (1, 2)}
    arrows = {"arrowleft": (0, -1), "arrowright": (0, 1), "arrowdown": (1, 0.5), "arrowup": (1, 2)}
    assert found["keys"] == keys | arrows
    several = ActionSpec(kind="MultiDiscrete", nvec=(3, 2))
    found = controls(EnvSpec(name="x", frame_shape=(16, 16, 3), action=several))
    assert (found["high"], found["rest"]) == ([2, 1], [0, 0])
    assert found["keys"] == {"1": (0, 1), "2": (0, 2), "q": (1, 1)}


def test_other_worlds_have_digits() -> None:
    env_spec = EnvSpec(name="x", frame_shape=(16, 16, 3), action=ActionSpec(kind="Discrete", nvec=(3,)))
    assert keys_to_actions(env_spec) == {"0": 0, "1": 1, "2": 2}


def test_letters_follow_the_digits() -> None:
    """All 18 actions of Atari; arrow keys do nothing, since they stand for letters that mean something else."""
    env_spec = EnvSpec(name="x", frame_shape=(16, 16, 3), action=ActionSpec(kind="Discrete", nvec=(18,)))
    found = controls(env_spec)["keys"]
    assert list(found) == [*"0123456789", *"qertyuio"]
    assert list(found.values()) == [(0, action) for action in range(18)]
