"""Rows of steps that others recorded: the last step, the space of the actions, and the split of few episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collect.images import frames_of, is_picture
from collect.steps import action_spec, cut_in_time, lacks_split, make_rows, too_few
from worldmodel.data.env_spec import NO_ACTION, ActionSpec
from worldmodel.utils.errors import UserError

BOX = ActionSpec(kind="Box", low=(-1.0,), high=(1.0,))


def frames(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)


def test_the_reward_and_end_of_a_step_without_a_next_frame_go_to_the_step_before() -> None:
    rows = make_rows(frames(4), np.ones((4, 1)), BOX, np.array([0, 0, 1, 5.0]), np.array([0, 0, 0, 1]))
    assert rows["action"].tolist() == [[1], [1], [1], [0]]
    assert rows["reward"].tolist() == [0, 0, 6, 0]
    assert rows["terminated"].tolist() == [False, False, True, False]
    assert not rows["truncated"].any()


def test_with_one_more_frame_than_actions_every_step_is_kept() -> None:
    rows = make_rows(frames(4), np.ones(3), BOX, np.array([0, 0, 1]), np.array([1, 0, 0]))
    assert rows["reward"].tolist() == [0, 0, 1, 0]
    assert rows["terminated"].tolist() == [False] * 4, "a flag in the midst ends nothing"
    assert rows["truncated"].tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"actions": np.zeros((6, 1))}, "it has 4 frames and 6 actions"),
        ({"rewards": np.zeros(3)}, "it has 4 actions, but 3 rewards"),
        ({"terminals": np.zeros(5)}, "it has 4 actions, but 5 terminals"),
        ({"variables": np.zeros((3, 1))}, "it has 4 frames, but 3 rows of variables"),
        ({"variables": np.full((4, 1), np.nan)}, "variables is not finite in row 0"),
        ({"rewards": np.full(4, 1e39)}, "reward is not finite in row 0"),
        ({"actions": np.full((4, 1), 2.0)}, "action 2.0 is outside Box"),
        ({"actions": np.zeros((4, 2))}, "has shape"),
        ({"actions": np.full((4, 1), 1e39)}, "action inf is outside Box"),
    ],
)
def test_what_does_not_fit_is_said(parts: dict[str, np.ndarray], why: str) -> None:
    with pytest.raises(UserError, match=why):
        make_rows(frames(4), **{"actions": np.zeros((4, 1)), "spec": BOX} | parts)


def test_the_space_follows_from_the_actions() -> None:
    def spec(*arrays: np.ndarray, **bounds: Any) -> ActionSpec:
        return action_spec(arrays, Path("data"), **bounds)

    assert spec(np.array([0, 2]), np.array([[1]])) == ActionSpec(kind="Discrete", nvec=(3,))
    assert spec(np.array([[0, 2], [1, 0]])) == ActionSpec(kind="MultiDiscrete", nvec=(2, 3))
    assert spec(np.array([True, False])) == ActionSpec(kind="Discrete", nvec=(2,))
    assert spec(np.array([-1, 2])) == ActionSpec(kind="Box", low=(-1,), high=(2,))
    assert spec(np.array([0, 70000])).kind == "Box"
    floats = np.array([[0.5, -1], [np.nan, 9], [1, 3]])
    assert spec(floats, np.zeros((0, 2)), np.zeros((3, 5)), np.array(["a"])) == ActionSpec(
        kind="Box", low=(0.5, -1), high=(1, 3)
    )
    assert spec(floats, low_bound=(-2,), high_bound=(4, 5)) == ActionSpec(kind="Box", low=(-2, -2), high=(4, 5))
    assert spec(floats, np.array([[1e39, 0]])) == spec(floats), "what float32 does not hold is refused later"
    odd = np.zeros((9, 1))
    assert spec(odd, floats, floats) == spec(floats), "the width of most episodes"
    assert spec() == NO_ACTION, "what cannot be read is named later"
    with pytest.raises(UserError, match="low has 3 numbers, but an action has 2; give one, or 2"):
        spec(floats, low_bound=(1, 2, 3))
    with pytest.raises(UserError, match="data has no actions that are finite numbers"):
        spec(np.full(3, np.nan))


def test_few_episodes_are_cut_by_time() -> None:
    assert lacks_split(2, 0) and not lacks_split(10, 0) and not too_few(0, 0, "episodes")
    rows = make_rows(frames(200), np.linspace(-1, 1, 200), BOX, np.ones(200), np.arange(200) == 199)
    parts = cut_in_time(rows)
    assert [int(part["split"][0]) for part in parts] == [0, 1, 0, 2]
    assert [int(part["frames"][0, 0, 0, 0]) for part in parts] == [0, 100, 120, 180]
    assert [len(part["frames"]) for part in parts] == [100, 20, 60, 20]
    assert [bool(part["truncated"][-2]) for part in parts] == [True, True, True, False]
    assert parts[-1]["terminated"][-2]
    assert all(not part["action"][-1].any() and not part["reward"][-1] for part in parts)
    short = make_rows(frames(50), np.zeros(50), BOX)
    assert [int(part["split"][0]) for part in cut_in_time(short)] == [0, 1, 2], "three blocks"
    tiny = make_rows(frames(40), np.zeros(40), BOX)
    assert [int(part["split"][0]) for part in cut_in_time(tiny)] == [0], "too short for three blocks of 16 frames"


def test_pictures_of_any_layout_side_by_side() -> None:
    one = np.zeros((2, 3, 4, 6), np.uint8)  # channels first
    one[:, 0] = 255
    grey = np.full((2, 4, 5), 7, np.uint8)
    both = frames_of([one, grey], 0)
    assert both.shape == (2, 4, 11, 3)
    assert both[0, 0, 0].tolist() == [255, 0, 0] and both[0, 0, 6].tolist() == [7, 7, 7]
    assert frames_of([one, grey], 8).shape == (2, 8, 16, 3)
    with pytest.raises(UserError, match=r"have heights \[4, 9\]; give a --size"):
        frames_of([one, np.zeros((2, 9, 4, 3), np.uint8)], 0)
    assert [is_picture(s, np.dtype(np.uint8)) for s in ((4, 4), (4, 4, 3), (1, 4, 4), (4, 4, 4), (0, 4), (4,))] == [
        *(True, True, True, False, False, False)
    ]
    assert not is_picture((4, 4, 3), np.dtype(np.float32))
