"""Maps actions to the buttons of the ViZDoom engine.

Plain scenarios press one button at a time. Their space is `Discrete`: action 0 does nothing, then come the buttons
from the last to the first, as in ViZDoom's own wrapper. A delta button (in degrees, like TURN_LEFT_RIGHT_DELTA) adds
one action per direction.

Factored scenarios press several buttons at once. Their space is `MultiDiscrete` with one factor for each pair of
opposite buttons (neither, one, the other), each single button (off, on) and each delta button (11 values from -10 to 10
degrees per tic). For Battle2 this gives the factors 3 + 3 + 2 + 2 + 11 of Sample Factory (Petrenko et al., 2020).
Their one-hot width is 21; over 15 steps this is the action size 315 of the paper's Table 9.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from worldmodel.utils.extras import extra

with extra("vizdoom"):
    import vizdoom as vzd

DEGREES = np.linspace(-10, 10, 11)
OPPOSITE = {
    "MOVE_FORWARD": "MOVE_BACKWARD",
    "MOVE_RIGHT": "MOVE_LEFT",
    "TURN_RIGHT": "TURN_LEFT",
    "SELECT_NEXT_WEAPON": "SELECT_PREV_WEAPON",
}


class Buttons:
    """The action space of a scenario (`space`), and the conversion of an action to button values (`press`).

    Args:
        available: Buttons of the scenario, in the engine's order.
        factored: Several buttons at once.
    """

    def __init__(self, available: Sequence[vzd.Button], factored: bool) -> None:
        self.names = [button.name for button in available]
        self.degrees = [name for name, button in zip(self.names, available, strict=True) if vzd.is_delta_button(button)]
        factors = self._factored() if factored else [self._one_at_a_time()]
        self.factors = [np.stack(options) for options in factors]
        sizes = [len(options) for options in self.factors]
        self.space: spaces.Space = spaces.MultiDiscrete(sizes) if factored else spaces.Discrete(sizes[0])

    def press(self, action: Any) -> np.ndarray:
        """The value of each button (buttons,) for an action: (), or (factors,) in a factored space."""
        indices = np.atleast_1d(action)
        return np.sum([options[i] for options, i in zip(self.factors, indices, strict=True)], axis=0)

    def _value(self, **buttons: float) -> np.ndarray:
        return np.array([buttons.get(name, 0.0) for name in self.names])

    def _one_at_a_time(self) -> list[np.ndarray]:
        keys = [self._value(**{name: 1}) for name in reversed(self.names) if name not in self.degrees]
        turns = [self._value(**{name: float(by)}) for name in self.degrees for by in (DEGREES[0], DEGREES[-1])]
        return [self._value(), *keys, *turns]

    def _factored(self) -> list[list[np.ndarray]]:
        factors, taken = [], set()
        for name in self.names:
            if name in self.degrees:
                factors.append([self._value(**{name: float(by)}) for by in DEGREES])
            elif name not in taken:
                other = self._opposite(name)
                factors.append([self._value(), *(self._value(**{n: 1}) for n in (name, other) if n)])
                taken.add(other)
        return factors

    def _opposite(self, name: str) -> str | None:
        """The opposite button, or None if the scenario does not have it."""
        both = OPPOSITE | {b: a for a, b in OPPOSITE.items()}
        return both[name] if both.get(name) in self.names else None
