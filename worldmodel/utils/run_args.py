"""Flags that every script of a run has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from worldmodel.utils.settings import Settings

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, kw_only=True)
class RunArgs(Settings):
    """The run folder and the device."""

    run: Path = Path("runs/health_gathering_supreme")
    """Run folder. It has the data, the models and everything else that belongs to one world model."""
    device: str = DEVICE
    """Device to compute on: cpu or cuda. The default is cuda if it is available."""


@dataclass(frozen=True, kw_only=True)
class StageArgs(RunArgs):
    """Flags of every training stage."""

    restart: bool = False
    """Start over and overwrite what the stage wrote, instead of resuming it."""


@dataclass(frozen=True, kw_only=True)
class DreamArgs(Settings):
    """Arguments of the scripts that open a dream."""

    run: str = ""
    """Run folder of the dream, or hf://owner/name; by default the pretrained model of `world`."""
    world: str = "health_gathering_supreme"
    """Name of the pretrained model; used without a run folder."""
