"""What was recorded, in a form that needs no engine: shapes, action space, variables, clock.

A `EnvSpec` travels as JSON from the environment into the store, from there into the codes, the models
and the dream. The dream therefore has the spaces of the environment it learned from, and this
package never has to import Gymnasium to say what they are.
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
"""Of one factor of an action, which are encoded one-hot."""


@dataclass(frozen=True, kw_only=True)
class ActionSpec(Settings):
    """An action space as plain data.

    `Discrete`: `nvec` has one entry, actions are integers (). `MultiDiscrete`: integers (len(nvec),).
    `Box`: floats (len(low),) between `low` and `high`; of length 0, as in `NO_ACTION`, for videos that nobody steers.
    """

    kind: Literal["Discrete", "MultiDiscrete", "Box"]
    nvec: tuple[Choices, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "Box":
            if len(self.low) != len(self.high):
                raise UserError(f"a Box has a low and a high for each number, not {self.low} and {self.high}")
            if any(low > high for low, high in zip(self.low, self.high, strict=True)):
                raise UserError(f"no number of a Box lies between low = {self.low} and high = {self.high}")
        elif not self.nvec or (self.kind == "Discrete" and len(self.nvec) > 1):
            raise UserError(f"a {self.kind} space cannot have {self.nvec} choices")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one action."""
        return {"Discrete": (), "MultiDiscrete": (len(self.nvec),), "Box": (len(self.low),)}[self.kind]

    @property
    def dtype(self) -> str:
        return "float32" if self.kind == "Box" else "int64"

    @property
    def encoded_dim(self) -> int:
        """The length of an encoded action: 4 for HGS, 3+3+2+2+11 = 21 for Battle2, 4 for BAIR."""
        return len(self.low) if self.kind == "Box" else sum(self.nvec)

    def check(self, actions: np.ndarray) -> np.ndarray:
        """The actions as an array (..., *shape), or a `UserError` naming the first one outside the space."""
        array = as_array(actions)
        if array.dtype == object:
            raise UserError(f"an action of {self} is made of numbers, not {short_repr(actions)}")
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
        """(..., *shape) -> (..., width) float32: one-hot for integers, as they are for a Box."""
        array = self.check(actions)
        if self.kind == "Box":
            return array
        if self.kind == "Discrete":
            array = array[..., None]
        parts = [np.eye(n, dtype=np.float32)[array[..., i]] for i, n in enumerate(self.nvec)]
        return np.concatenate(parts, axis=-1)

    @staticmethod
    def from_json(data: Any, place: str) -> ActionSpec:
        return from_json(ActionSpec, data, place, CURE)

    def __str__(self) -> str:
        inside = f"{self.low}..{self.high}" if self.kind == "Box" else ", ".join(map(str, self.nvec))
        return f"{self.kind}({inside})"


NO_ACTION = ActionSpec(kind="Box")
"""Of a video that nobody steers; its store has no actions."""


def random_actions(spec: ActionSpec, n: int, rng: np.random.Generator) -> np.ndarray:
    """Uniformly random actions (n, ...)."""
    if spec.kind == "Box":
        return rng.uniform(spec.low, spec.high, (n, len(spec.low))).astype(np.float32)
    return rng.integers(spec.nvec, size=(n, len(spec.nvec))).reshape(n, *spec.shape)


@dataclass(frozen=True, kw_only=True)
class EnvSpec(Settings):
    """The environment a store was recorded from, as plain data."""

    name: str
    """Short name, e.g. health_gathering_supreme."""
    env_id: str = ""
    """Gymnasium id that makes the real environment again, or empty where there is none."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    frame_shape: tuple[Pixels, Pixels, Channels] = (64, 64, 3)
    """Height, width, channels of a frame of uint8."""
    action: ActionSpec = NO_ACTION
    variables: tuple[str, ...] = ()
    """Names of the recorded game variables, e.g. HEALTH."""
    classes: tuple[str, ...] = ()
    """Names of the classes that label its episodes, if any."""
    fps: Annotated[float, Range(1e-6, 1e6)] = 10.0
    """Environment steps per second of the world's own time (35 / frame_skip for Doom)."""
    max_episode_steps: Count = 0
    """The recorded environment's time limit in steps; 0 means none."""

    def to_json(self) -> dict[str, Any]:
        """Without the classes if there are none, as before there could be any: older runs and stores go on."""
        return {name: value for name, value in asdict(self).items() if name != "classes" or value}

    @staticmethod
    def from_json(data: Any, place: str) -> EnvSpec:
        return from_json(EnvSpec, data, place, CURE)
