"""Keys against the engine's own buttons."""

from __future__ import annotations

import contextlib

import pytest

from envs.keys import KEYS, keys
from envs.vizdoom import VizdoomFrames
from worldmodel.world import ActionSpec, World

MEANING = {"w": "MOVE_FORWARD", "a": ("TURN_LEFT", "MOVE_LEFT"), "d": ("TURN_RIGHT", "MOVE_RIGHT")}


@pytest.mark.parametrize("scenario", KEYS)
def test_each_key_presses_the_button_that_people_expect(scenario: str) -> None:
    with contextlib.closing(VizdoomFrames(scenario)) as env:
        for key, action in keys(env.world).items():
            if key in MEANING:
                pressed = [b for b, on in zip(env.buttons.names, env.buttons.press(action), strict=True) if on]
                assert len(pressed) == 1
                assert pressed[0] in MEANING[key]


def test_other_worlds_have_digits() -> None:
    world = World(name="x", frame_shape=(16, 16, 3), action=ActionSpec(kind="Discrete", nvec=(3,)))
    assert keys(world) == {"0": 0, "1": 1, "2": 2}
