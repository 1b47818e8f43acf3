"""Keys against the engine's own buttons."""

from __future__ import annotations

import contextlib

import pytest

from envs.keys import KEYS, keys_to_actions
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


def test_other_worlds_have_digits() -> None:
    env_spec = EnvSpec(name="x", frame_shape=(16, 16, 3), action=ActionSpec(kind="Discrete", nvec=(3,)))
    assert keys_to_actions(env_spec) == {"0": 0, "1": 1, "2": 2}
