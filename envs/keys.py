"""How a person plays an environment: with keys, and with sliders for numbers that keys cannot set."""

from __future__ import annotations

from typing import Any

from worldmodel.data.env_spec import ActionSpec, EnvSpec

Binding = tuple[int, float]
"""The index of a number of an action, and the value that a key gives it."""

KEYS = {"health_gathering_supreme": ("", "w", "d", "a"), "take_cover": ("", "d", "a")}
"""One key per action of a Discrete space; the first action does nothing."""
BATTLE2: dict[str, Binding] = {
    **{"w": (0, 1), "s": (0, 2), "d": (1, 1), "a": (1, 2), "f": (2, 1), "r": (3, 1)},
    **{"q": (4, 2), "e": (4, 8)},  # a turn by 6 degrees a tic
}
CHOICES = "0123456789qertyuiopfghjklzxcvbnm"
"""Keys of the actions of a Discrete space, in order. Letters that arrow keys stand for are left out."""
ROWS = ("1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm")
"""Keys of the factors of a MultiDiscrete space. The first key of a row is choice 1; with no key pressed it is 0."""
PAIRS = ("ad", "sw", "fr", "gt", "hy", "ju")
"""Keys of the numbers of a Box: the lowest and the highest value."""
ARROWS = {"arrowleft": "a", "arrowright": "d", "arrowup": "w", "arrowdown": "s"}
"""Arrow keys that do the same as letters."""


def keys_to_actions(env_spec: EnvSpec) -> dict[str, int]:
    """Key -> action of a Discrete space, for its first 32 actions; other letters for the environments in `KEYS`."""
    n = env_spec.action.nvec[0] if env_spec.action.kind == "Discrete" else 0
    letters = {key: a for a, key in enumerate(KEYS.get(env_spec.name, ())) if key}
    return letters | dict(zip(CHOICES, range(n), strict=False))


def controls(env_spec: EnvSpec) -> dict[str, Any]:
    """What the page of `rollout/play.py` needs to know of an environment's actions.

    Returns:
        `kind` of the space; `low`, `high` and `rest` of each number of an action, where `rest` does nothing or is
        nearest to 0; and `keys`, key -> (index, value).
    """
    spec = env_spec.action
    low = list(spec.low) if spec.kind == "Box" else [0] * len(spec.nvec)
    high = list(spec.high) if spec.kind == "Box" else [n - 1 for n in spec.nvec]
    rest = [min(max(0, a), b) for a, b in zip(low, high, strict=True)]
    if env_spec.name == "battle2":
        rest[4] = 5  # no turn
    keys = BATTLE2 if env_spec.name == "battle2" else _bindings(env_spec)
    arrows = {arrow: keys[key] for arrow, key in ARROWS.items() if key in keys}
    return {"kind": spec.kind, "low": low, "high": high, "rest": rest, "keys": keys | arrows}


def _bindings(env_spec: EnvSpec) -> dict[str, Binding]:
    """The keys of an environment, without arrows."""
    spec: ActionSpec = env_spec.action
    if spec.kind == "Discrete":
        return {key: (0, action) for key, action in keys_to_actions(env_spec).items()}
    if spec.kind == "MultiDiscrete":
        rows = zip(ROWS, spec.nvec, strict=False)
        return {key: (i, choice) for i, (row, n) in enumerate(rows) for choice, key in enumerate(row[: n - 1], 1)}
    bounds = zip(PAIRS, spec.low, spec.high, strict=False)
    return {key: (i, value) for i, (pair, *ends) in enumerate(bounds) for key, value in zip(pair, ends, strict=True)}
