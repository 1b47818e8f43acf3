"""Keyboard keys for the actions of an environment."""

from __future__ import annotations

from worldmodel.data.env_spec import EnvSpec

KEYS = {"health_gathering_supreme": ("", "w", "d", "a"), "take_cover": ("", "d", "a")}
"""One key per action; the first action does nothing."""


def keys_to_actions(env_spec: EnvSpec) -> dict[str, int]:
    """Key -> action: the digit of each action, and letters for the environments in `KEYS`."""
    n = env_spec.action.nvec[0] if env_spec.action.kind == "Discrete" else 0
    letters = {key: a for a, key in enumerate(KEYS.get(env_spec.name, ())) if key}
    return letters | {str(a): a for a in range(min(n, 10))}
