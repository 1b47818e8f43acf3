"""Keys of the keyboard for the actions of a world, for people who play."""

from __future__ import annotations

from worldmodel.world import World

KEYS = {"health_gathering_supreme": ("", "w", "d", "a"), "take_cover": ("", "d", "a")}
"""A key for each action, in the engine's order of buttons; the first action is to do nothing."""


def keys(world: World) -> dict[str, int]:
    """Key -> action: letters where the world is known, and always the action's own digit."""
    n = world.action.nvec[0] if world.action.kind == "Discrete" else 0
    letters = {key: a for a, key in enumerate(KEYS.get(world.name, ())) if key}
    return letters | {str(a): a for a in range(min(n, 10))}
