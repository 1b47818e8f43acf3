"""The environment that a world was recorded from, made again.

A run folder is data from anywhere, and the id in it is a program: Gymnasium imports the module before a colon, and
what an id stands for may do anything. So only ids of this package are made, and others for a person who says so.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from worldmodel.data.env_spec import EnvSpec
from worldmodel.utils.errors import UserError, one_line

from . import ENVIRONMENTS


def make_recorded_env(env_spec: EnvSpec, trusted: bool = False) -> gym.Env[Any, Any]:
    """The environment of a world; `trusted` is for ids that are not of this package."""
    if not env_spec.env_id:
        raise UserError(f"{env_spec.name} does not say which environment it was recorded from; there is no engine")
    if not trusted and env_spec.env_id not in tuple(ENVIRONMENTS):
        raise UserError(
            f"{env_spec.name} was recorded from {env_spec.env_id!r}, which is not of this project and would run "
            "code of its "
            "own; give --trust-env if you know who made this run"
        )
    try:
        return gym.make(env_spec.env_id, **env_spec.env_kwargs)
    except UserError:
        raise
    except Exception as error:  # each environment has errors of its own
        raise UserError(
            f"{env_spec.env_id} cannot be made with {env_spec.env_kwargs}: {one_line(error)}; install it, or mend "
            "the run"
        ) from None
