"""The keyword arguments that `DreamEnv` and `DreamVectorEnv` share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from worldmodel.generation.sampling import SamplingConfig
from worldmodel.utils.errors import UserError
from worldmodel.utils.hardware import Precision, check_device
from worldmodel.utils.settings import Count, short_repr, suggestion


@dataclass(frozen=True, kw_only=True)
class DreamConfig(SamplingConfig):
    """Which model a dream uses, and how it is sampled."""

    model: str = ""
    """Run folder, or `hf://owner/name`; by default the pretrained model of `world`."""
    world: str = "health_gathering_supreme"
    """Name of the pretrained model; used if `model` is empty."""
    horizon: Count | None = None
    """Steps until `truncated`. None uses the time limit of the recorded environment, 0 sets no limit."""
    sample_done: bool = True
    """Sample `terminated`. If False, an episode never terminates and `info["done_prob"]` has the probability."""
    precision: Precision = "float32"
    """Precision of the models. bfloat16 is faster for many lanes on hardware that supports it; auto uses it only
    there."""
    device: Any = "cpu"
    """Device of the models: cpu or cuda."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_device(self.device)

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(**{field.name: getattr(self, field.name) for field in fields(SamplingConfig)})

    @classmethod
    def of(cls, settings: dict[str, Any]) -> DreamConfig:
        """A config from keyword arguments.

        Raises:
            UserError: A name is not a field, or a value is invalid.
        """
        known = [field.name for field in fields(cls)]
        if unknown := [name for name in settings if name not in known]:
            raise UserError(f"unknown setting {short_repr(unknown[0])} of a dream; {suggestion(unknown[0], known)}")
        return cls(**settings)
