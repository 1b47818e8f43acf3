"""Keys of the keyboard for the actions of a world, for people who play."""

from __future__ import annotations

from worldmodel.data.env_spec import EnvSpec

KEYS = {"health_gathering_supreme": ("", "w", "d", "a"), "take_cover": ("", "d", "a")}
"""A key for each action, in the engine's order of buttons; the first action is to do nothing."""


def keys_to_actions(env_spec: EnvSpec) -> dict[str, int]:
    """Key -> action: letters where the world is known, and always the action's own digit."""
    n = env_spec.action.nvec[0] if env_spec.action.kind == "Discrete" else 0
    letters = {key: a for a, key in enumerate(KEYS.get(env_spec.name, ())) if key}
    return letters | {str(a): a for a in range(min(n, 10))}
