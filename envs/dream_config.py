"""How a dream is opened: the keyword arguments that `DreamEnv` and `DreamVectorEnv` share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from worldmodel.generation.sampling import SamplingConfig
from worldmodel.utils.errors import UserError
from worldmodel.utils.hardware import Precision, check_device
from worldmodel.utils.settings import Count, short_repr, suggestion


@dataclass(frozen=True, kw_only=True)
class DreamConfig(SamplingConfig):
    """Which dream, and how it is sampled."""

    model: str = ""
    """Run folder; by default the model that ships for `world`."""
    world: str = "health_gathering_supreme"
    """World of the model that ships."""
    horizon: Count | None = None
    """Steps until `truncated`; the recorded limit if None, 0 for none."""
    sample_done: bool = True
    """Sample ends. Without, nothing is `terminated`, and `info["done_prob"]` says how likely an end was."""
    precision: Precision = "float32"
    """bfloat16 is faster for many lanes on hardware that multiplies it; auto takes it there only."""
    device: Any = "cpu"
    """cpu or cuda."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_device(self.device)

    @property
    def sampling(self) -> SamplingConfig:
        return SamplingConfig(**{field.name: getattr(self, field.name) for field in fields(SamplingConfig)})

    @classmethod
    def of(cls, settings: dict[str, Any]) -> DreamConfig:
        """From keyword arguments; `UserError` for one that is none of these."""
        known = [field.name for field in fields(cls)]
        if unknown := [name for name in settings if name not in known]:
            raise UserError(f"a dream has no setting {short_repr(unknown[0])}; {suggestion(unknown[0], known)}")
        return cls(**settings)
