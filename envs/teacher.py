"""A scripted expert for Battle2 with privileged information: the engine's object labels, depth and position.

It turns to the largest visible monster, approaches it, and shoots when it is centered. Otherwise it collects medikits
and clips that it needs, avoids walls, turns around when an unseen monster hurts it, and turns aside when it is stuck.
`train/imitate.py` trains a policy on frames to imitate its actions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from worldmodel.utils.errors import UserError
from worldmodel.utils.extras import extra

from .buttons import DEGREES
from .vizdoom import VizdoomFrames

with extra("vizdoom"):
    import vizdoom as vzd

AHEAD, LEFT, RIGHT = (slice(40, 70), slice(65, 95)), (slice(40, 70), slice(20, 60)), (slice(40, 70), slice(100, 140))
"""Regions of the 120x160 screen."""
NEAR = 7
"""Depth, in the engine's units of 0 to 255, below which a wall blocks the way."""
REFILLS = {"Health": ("HEALTH", 100.0), "Ammo": ("AMMO2", 60.0)}
"""Object category -> the variable that it refills, and the value that is enough."""
APPROACH_HEIGHT, STUCK_DISTANCE, TURN_STEPS = 25, 10.0, 9
"""Pixel height below which a monster is approached; distance in 6 steps below which the player is stuck; steps of a
turn."""


class Teacher:
    """The expert of one engine. It switches on the engine's labels and depth, so make it before the first reset."""

    def __init__(self, env: VizdoomFrames, rng: np.random.Generator) -> None:
        if env.env_spec.name != "battle2":
            raise UserError(f"the expert only plays battle2, not {env.env_spec.name}; use --scenario battle2")
        self.env, self.rng = env, rng
        env.game.set_labels_buffer_enabled(True)
        env.game.set_depth_buffer_enabled(True)
        self.reset()

    def reset(self) -> None:
        """Forget the last episode."""
        self.health, self.turns_left, self.turn_direction = 100.0, 0, 1
        self.recent_positions: deque[np.ndarray] = deque(maxlen=6)

    def act(self) -> np.ndarray:
        """The action (5,) for the current state of the engine."""
        state = self.env.game.get_state()
        assert state is not None and state.labels is not None and state.depth_buffer is not None
        monsters = [label for label in state.labels if label.object_category == "Monster"]
        hurt, self.health = self._variable("HEALTH") < self.health - 1, self._variable("HEALTH")
        if monsters and self._variable("AMMO2") > 0:
            self.turns_left = 0
            return self._shoot(largest(monsters))
        self._check_hurt_or_stuck(hurt)
        if self.turns_left:
            self.turns_left -= 1
            return self._action(turn=40 * self.turn_direction)
        if wanted := [label for label in state.labels if self._wants(label)]:
            return self._walk(angle_to(largest(wanted)))
        return self._wander(state.depth_buffer)

    def _check_hurt_or_stuck(self, hurt: bool) -> None:
        """Start to turn around when hurt, and to turn aside when stuck."""
        here = (vzd.GameVariable.POSITION_X, vzd.GameVariable.POSITION_Y)
        self.recent_positions.append(np.array([self.env.game.get_game_variable(v) for v in here]))
        if hurt:
            self.turns_left, self.turn_direction = TURN_STEPS, 1
        elif (
            not self.turns_left
            and len(self.recent_positions) == 6
            and np.abs(self.recent_positions[0] - self.recent_positions[-1]).max() < STUCK_DISTANCE
        ):
            self.turns_left, self.turn_direction = int(self.rng.integers(2, 7)), int(self.rng.choice([-1, 1]))
            self.recent_positions.clear()

    def _variable(self, name: str) -> float:
        return float(self.env.variable_values[self.env.variables.index(name)])

    def _wants(self, label: vzd.Label) -> bool:
        name, enough = REFILLS.get(label.object_category, ("HEALTH", 0.0))
        return self._variable(name) < enough and label.object_name != "Poison"

    def _shoot(self, monster: vzd.Label) -> np.ndarray:
        off = angle_to(monster)
        aimed = abs(off) <= np.degrees(np.arctan(monster.width / 160))
        return self._action(forward=abs(off) < 15 and monster.height < APPROACH_HEIGHT, fire=aimed, turn=off)

    def _wander(self, depth: np.ndarray) -> np.ndarray:
        if depth[AHEAD].mean() <= NEAR:
            return self._action(turn=40 * self.turn_direction)
        if self.rng.random() < 0.05:
            self.turn_direction = -self.turn_direction
        left, right = depth[LEFT].mean(), depth[RIGHT].mean()
        return self._walk(0.0 if min(left, right) > 2 * NEAR else 8.0 if right > left else -8.0)

    def _walk(self, off: float) -> np.ndarray:
        return self._action(forward=True, sprint=abs(off) < 20, turn=off)

    def _action(self, forward: bool = False, fire: bool = False, sprint: bool = False, turn: float = 0.0) -> np.ndarray:
        """An action (5,); `turn` is in degrees to the right, rounded to the nearest option of one step."""
        return np.array([forward, 0, fire, sprint, np.abs(DEGREES * self.env.frame_skip - turn).argmin()], int)


def angle_to(label: vzd.Label) -> float:
    """Angle of an object in degrees to the right of the screen's center; the field of view is 90 degrees."""
    return float(np.degrees(np.arctan((label.x + label.width / 2 - 80) / 80)))


def largest(labels: Sequence[vzd.Label]) -> vzd.Label:
    """The label that covers the largest part of the screen."""
    return max(labels, key=lambda label: label.width * label.height)
