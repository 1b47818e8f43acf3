"""Stages with faults, for the campaign to find; where a process is forked, it imports them from here."""

from __future__ import annotations

from pathlib import Path


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
