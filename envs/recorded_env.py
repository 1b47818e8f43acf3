"""Makes the environment that a store was recorded from.

A run folder may come from anyone, and making an environment from its id can run code: Gymnasium imports the module that
the id names before a colon. So by default only ids of this package are made, without wrappers. All others need an
explicit `trusted`, even inside GymFrames-v0.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from worldmodel.data.env_spec import EnvSpec
from worldmodel.utils.errors import UserError, one_line

from . import ENVIRONMENTS

FRAMES = "GymFrames-v0"
TRUSTED = tuple(name for name in ENVIRONMENTS if name != FRAMES)
"""Ids that run no code but this project's."""


def recorded_id(env_spec: EnvSpec) -> Any:
    """The id of the environment itself, even if GymFrames-v0 made its frames. Untrusted: a run may come from anyone."""
    return env_spec.env_kwargs.get("env_id") if env_spec.env_id == FRAMES else env_spec.env_id


def make_recorded_env(env_spec: EnvSpec, trusted: bool = False) -> gym.Env[Any, Any]:
    """Make the recorded environment.

    Args:
        env_spec: Spec of the recorded environment.
        trusted: Also make ids that are not of this package.

    Raises:
        UserError: The spec has no id, the id is not trusted, or the environment cannot be made.
    """
    if not env_spec.env_id:
        raise UserError(
            f"{env_spec.name} was not recorded from a Gymnasium environment, so there is no engine to run; use a run "
            "that was recorded from one"
        )
    wrappers = env_spec.env_kwargs.get("wrappers") or []
    made = [recorded_id(env_spec), *(wrappers if isinstance(wrappers, list) else [wrappers])]
    if not trusted and (foreign := [name for name in made if name not in TRUSTED]):
        raise UserError(
            f"{env_spec.name} was recorded from {foreign[0]!r}, which is not part of this project and may run "
            "any code; give --trust-env if you trust the author of this run"
        )
    try:
        return gym.make(env_spec.env_id, **env_spec.env_kwargs)
    except UserError:
        raise
    except Exception as error:  # environments raise errors of any type
        raise UserError(
            f"{env_spec.env_id} cannot be made with {env_spec.env_kwargs}: {one_line(error)}; install it, or use "
            "another run"
        ) from None
