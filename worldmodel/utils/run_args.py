"""The flags that every stage of a run has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from worldmodel.utils.settings import Settings

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, kw_only=True)
class RunArgs(Settings):
    """Where a run is, and what computes."""

    run: Path = Path("runs/health_gathering_supreme")
    """Run folder."""
    device: str = DEVICE
    """cpu or cuda; the GPU by default, where there is one."""


@dataclass(frozen=True, kw_only=True)
class StageArgs(RunArgs):
    """What every stage of training has."""

    restart: bool = False
    """Begin anew, and overwrite a run of other settings."""
