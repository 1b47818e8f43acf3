"""Stages with faults, for the campaign to find; where a process is forked, it imports them from here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from tests.worldmodel.training.split_fits import train
from worldmodel.training import trainer


def repeats(run: Path) -> None:
    """Writes again what it has written before."""
    for _ in range(3):
        with open(run / "out", "ab") as file:
            file.write(b"x")


def gives_up(run: Path) -> None:
    """Does not go on where it was killed."""
    if (run / "out").exists():
        raise ValueError("it is there already")
    repeats(run)


def forgets_its_lanes(kind: str, out: Path, *args: Any, **settings: Any) -> None:
    """Goes on with other lanes than those that its checkpoint has."""
    usual = trainer.resume

    def resume(model: Any, folder: Path, config: Any, state: dict[str, Tensor]) -> Any:
        found = usual(model, folder, config, state)
        for tensor in state.values():
            tensor.zero_()
        return found

    trainer.resume = resume
    train(kind, out, *args, steps=12, save_every=3, **settings)
