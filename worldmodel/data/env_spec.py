"""The recorded environment as plain data, without an engine: shapes, action space, variables, clock.

An `EnvSpec` is passed on as JSON from the environment to the store, and from there to the codes, the models and the
dream. The dream therefore has the spaces of the environment it was trained on, and this package does not need
Gymnasium.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import numpy as np

from worldmodel.utils.errors import UserError
from worldmodel.utils.json_schema import from_json
from worldmodel.utils.settings import Channels, Count, Pixels, Range, Settings, as_array, short_repr

CURE = "update the toolkit, or make it again"
Choices = Annotated[int, Range(1, 2**16)]
"""Number of choices of one factor of an action, which is encoded one-hot."""


@dataclass(frozen=True, kw_only=True)
class ActionSpec(Settings):
    """An action space as plain data.

    `Discrete`: `nvec` has one entry, actions are integers of shape (). `MultiDiscrete`: integers of shape (len(nvec),).
    `Box`: floats of shape (len(low),) between `low` and `high`; length 0, as in `NO_ACTION`, for videos without
    actions.
    """

    kind: Literal["Discrete", "MultiDiscrete", "Box"]
    nvec: tuple[Choices, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "Box":
            if len(self.low) != len(self.high):
                raise UserError(f"a Box needs equally many low and high values, not {self.low} and {self.high}")
            if any(low > high for low, high in zip(self.low, self.high, strict=True)):
                raise UserError(f"low = {self.low} of a Box must not be above high = {self.high}")
        elif not self.nvec or (self.kind == "Discrete" and len(self.nvec) > 1):
            raise UserError(f"a {self.kind} space cannot have nvec = {self.nvec}")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one action."""
        return {"Discrete": (), "MultiDiscrete": (len(self.nvec),), "Box": (len(self.low),)}[self.kind]

    @property
    def dtype(self) -> str:
        """The numpy type of actions."""
        return "float32" if self.kind == "Box" else "int64"

    @property
    def encoded_dim(self) -> int:
        """The length of an encoded action: 4 for HGS, 3+3+2+2+11 = 21 for Battle2, 4 for BAIR."""
        return len(self.low) if self.kind == "Box" else sum(self.nvec)

    def check(self, actions: np.ndarray) -> np.ndarray:
        """Check actions.

        Args:
            actions: (..., *shape).

        Returns:
            The actions as an array of `dtype`.

        Raises:
            UserError: If they have another shape, or one is outside the space; the message names the first.
        """
        array = as_array(actions)
        if array.dtype == object:
            raise UserError(f"an action of {self} consists of numbers of at most 64 bits, not {short_repr(actions)}")
        if array.shape[array.ndim - len(self.shape) :] != self.shape:
            raise UserError(f"an action of {self} has shape {self.shape}, but these have shape {array.shape}")
        if self.kind == "Box":
            outside = ~((array >= np.array(self.low)) & (array <= np.array(self.high)))
        else:
            whole = np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.bool_)
            bound = np.array(self.nvec if self.kind == "MultiDiscrete" else self.nvec[0])
            outside = (array < 0) | (array >= bound) if whole else np.ones_like(array, bool)
        if outside.any():
            raise UserError(f"action {array[outside].flat[0]} is outside {self}")
        return array.astype(self.dtype)

    def encode(self, actions: np.ndarray) -> np.ndarray:
        """Encode actions (..., *shape) as float32 (..., encoded_dim): one-hot for integers, unchanged for a Box.

        Raises:
            UserError: As `check`.
        """
        array = self.check(actions)
        if self.kind == "Box":
            return array
        if self.kind == "Discrete":
            array = array[..., None]
        parts = [(array[..., i, None] == np.arange(n)).astype(np.float32) for i, n in enumerate(self.nvec)]
        return np.concatenate(parts, axis=-1)

    def encode_led(self, actions: np.ndarray) -> np.ndarray:
        """The encoded action that led into each of n + 1 frames, (..., n + 1, encoded_dim); zeros for the first.

        Args:
            actions: The actions between the frames (..., n, *shape).

        Raises:
            UserError: As `check`.
        """
        encoded = self.encode(actions)
        return np.concatenate([np.zeros((*encoded.shape[:-2], 1, self.encoded_dim), np.float32), encoded], axis=-2)

    @staticmethod
    def from_json(data: Any, place: str) -> ActionSpec:
        """Build from JSON; `UserError` names `place` if a value is wrong."""
        return from_json(ActionSpec, data, place, CURE)

    def __str__(self) -> str:
        inside = f"{self.low}..{self.high}" if self.kind == "Box" else ", ".join(map(str, self.nvec))
        return f"{self.kind}({inside})"


NO_ACTION = ActionSpec(kind="Box")
"""Action space of videos without actions; their stores have no action array."""


def random_actions(spec: ActionSpec, n: int, rng: np.random.Generator) -> np.ndarray:
    """n uniformly random actions (n, *shape)."""
    if spec.kind == "Box":
        return rng.uniform(spec.low, spec.high, (n, len(spec.low))).astype(np.float32)
    return rng.integers(spec.nvec, size=(n, len(spec.nvec))).reshape(n, *spec.shape)


@dataclass(frozen=True, kw_only=True)
class EnvSpec(Settings):
    """The environment a store was recorded from, as plain data."""

    name: str
    """Short name, e.g. health_gathering_supreme."""
    env_id: str = ""
    """Gymnasium id that makes the real environment; empty if there is none."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of `gymnasium.make` for this id."""
    frame_shape: tuple[Pixels, Pixels, Channels] = (64, 64, 3)
    """Height, width and channels of a frame, which is uint8."""
    action: ActionSpec = NO_ACTION
    """Action space."""
    variables: tuple[str, ...] = ()
    """Names of the recorded game variables, e.g. HEALTH."""
    classes: tuple[str, ...] = ()
    """Names of the classes that label the episodes, if any."""
    fps: Annotated[float, Range(1e-6, 1e6)] = 10.0
    """Environment steps per second of simulated time (35 / frame_skip for Doom)."""
    max_episode_steps: Count = 0
    """The recorded environment's time limit in steps; 0 means none."""

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON; `classes` is left out if empty, so that older runs and stores stay valid."""
        return {name: value for name, value in asdict(self).items() if name != "classes" or value}

    @staticmethod
    def from_json(data: Any, place: str) -> EnvSpec:
        """Build from JSON; `UserError` names `place` if a value is wrong."""
        return from_json(EnvSpec, data, place, CURE)
