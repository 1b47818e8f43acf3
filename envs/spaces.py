"""Converts between Gymnasium's spaces and the plain `ActionSpec` that is stored with the data."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from worldmodel.data.env_spec import ActionSpec
from worldmodel.utils.errors import UserError


def to_action_spec(space: spaces.Space) -> ActionSpec:
    """The spec of a Discrete, MultiDiscrete or flat Box space.

    Raises:
        UserError: Any other space, or a Box with infinite bounds.
    """
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return ActionSpec(kind="Discrete", nvec=(int(space.n),))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1 and not space.start.any():
        return ActionSpec(kind="MultiDiscrete", nvec=tuple(int(n) for n in space.nvec))
    if isinstance(space, spaces.Box) and len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating):
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)  # actions are stored as float32
        if not np.isfinite([low, high]).all():
            raise UserError(f"{space} cannot be recorded; wrap it so that its bounds are finite")
        return ActionSpec(kind="Box", low=tuple(low.tolist()), high=tuple(high.tolist()))
    wanted = "a Discrete or MultiDiscrete space from 0, or a flat Box of floats"
    raise UserError(f"{space} cannot be recorded; wrap the environment to have {wanted}")


def to_gym_space(spec: ActionSpec) -> spaces.Space:
    """The Gymnasium space of a spec."""
    if spec.kind == "Discrete":
        return spaces.Discrete(spec.nvec[0])
    if spec.kind == "MultiDiscrete":
        return spaces.MultiDiscrete(np.array(spec.nvec))
    return spaces.Box(np.array(spec.low, np.float32), np.array(spec.high, np.float32), dtype=np.float32)
