"""Reading scalars from a TensorBoard log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worldmodel.utils.extras import extra

with extra("tensorboard"):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read_scalars(log: Path, name: str) -> list[Any]:
    """The events of a scalar, each with `step`, `value` and `wall_time`; none if it was not logged."""
    events = EventAccumulator(str(log))
    if log.is_dir():
        events.Reload()
    return events.Scalars(name) if name in events.Tags()["scalars"] else []
