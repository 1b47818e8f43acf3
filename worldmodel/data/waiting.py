"""Episodes that wait for a commit, as files in the store's folder, so that a killed process loses none of them.

A commit rewrites the last shard of each array, which is too slow after every episode. So an episode is first written to
`<store>/waiting/<number>.npz`, where number counts the episodes of the store. The next writer commits these files. They
are not synced to the disk, so they survive a killed process, but perhaps not a power cut.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

PROGRESS = "progress"
DATA = "data/"
"""Prefix of the names of the episode's arrays in a file."""


class WaitingEpisodes:
    """The waiting episodes of one store, by their numbers."""

    def __init__(self, store: Path) -> None:
        self._folder = store / "waiting"

    def _file(self, number: int) -> Path:
        return self._folder / f"{number}.npz"

    def write(self, number: int, episode: Mapping[str, np.ndarray], progress: Any) -> None:
        """Write an episode and the progress that belongs to it; another file of this number is replaced."""
        self._folder.mkdir(parents=True, exist_ok=True)
        part = self._folder / f"{number}.part"
        content: dict[str, Any] = {DATA + name: array for name, array in episode.items()}
        content[PROGRESS] = np.array(json.dumps(progress).encode())
        with part.open("wb") as file:
            np.savez(file, **content)
        part.replace(self._file(number))

    def read(self, first: int) -> Iterator[tuple[dict[str, np.ndarray], Any]]:
        """Yield episodes `first`, `first` + 1, ... and their progress, up to the first that is missing or damaged."""
        number = first
        while self._file(number).exists():
            try:
                with np.load(self._file(number)) as file:
                    arrays = {name: file[name] for name in file.files}
                progress = json.loads(arrays.pop(PROGRESS).item())
            except (EOFError, ValueError, KeyError, zipfile.BadZipFile):
                return  # cut short by a power cut; the episode is recorded again
            yield {name.removeprefix(DATA): array for name, array in arrays.items()}, progress
            number += 1

    def delete(self) -> None:
        """Delete all files, once their episodes are committed."""
        if self._folder.exists():
            for file in self._folder.iterdir():
                file.unlink()
            self._folder.rmdir()
