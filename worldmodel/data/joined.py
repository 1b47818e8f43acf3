"""Several stores that are read as one: a folder, or a URL, with a manifest that names them.

    data.zarr/manifest.json     {"stores": ["0", "1", "s3://bucket/more.zarr"]}
    data.zarr/0                 a store, and data.zarr/1 another

`open_store` opens either kind, so `data.zarr` may be one store or many. Recording with several processes of torchrun
writes such a folder, and so does train/loop.py, one store for each round. Relative names are relative to this folder.

The episodes follow one another in the order of the manifest. An episode keeps the split that it has in its own store,
so a store that is added at the end moves no episode into another split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.data.commit_mark import extend_crc32c
from worldmodel.data.store import Store
from worldmodel.utils.errors import UserError

MANIFEST = "manifest.json"


class JoinedStore(Store):
    """Stores of one environment, read as one."""

    def __init__(self, path: str, parts: Sequence[Store]) -> None:
        """Join stores.

        Args:
            path: Where the manifest is.
            parts: The stores, at least one.

        Raises:
            UserError: If they are of different environments, or have different arrays.
        """
        first = parts[0]
        for part in parts[1:]:
            for what, ours, theirs in (
                ("environment", first.env_spec, part.env_spec),
                ("arrays", first.array_names, part.array_names),
            ):
                if ours != theirs:
                    raise UserError(
                        f"{part.path} does not have the {what} of {first.path}, so they cannot be read as one; give "
                        "stores of one environment"
                    )
        self.path, self.parts = path, tuple(parts)
        self.folder = None if any(part.folder is None for part in parts) else Path(path)
        self.env_spec, self.array_names, self.split_seed = first.env_spec, first.array_names, first.split_seed
        # only the last store may grow: rows added to another one would move those of all that follow
        complete = [{"rows": part.n_rows, "settings": part.settings} for part in parts[:-1]]
        self.settings: dict[str, Any] = {"stores": [*complete, parts[-1].settings]}
        self.first_rows = np.cumsum([0, *(part.n_rows for part in parts)])
        self.n_rows = int(self.first_rows[-1])
        ends = [part.episode_ends + row for part, row in zip(parts, self.first_rows[:-1], strict=True)]
        self.episode_ends = np.concatenate(ends)
        self.decoded, self._split = {}, None

    def episode_splits(self) -> np.ndarray:
        """The split of each episode, as each store has it."""
        if self._split is None:
            self._split = np.concatenate([part.episode_splits() for part in self.parts])
        return self._split

    def missing_split(self, split: str) -> UserError:
        """The error that no store has episodes of a split."""
        return UserError(f"no store of {self.path} has episodes in split {split!r}; collect more into one of them")

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start .. stop of an array, counted over all stores; see `Store.read`."""
        return read_across(lambda i, first, last: self.parts[i].read(name, first, last), self.first_rows, start, stop)

    def array_layout(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape of an array over all stores, and its type."""
        (_, *shape), dtype = self.parts[0].array_layout(name)
        return (self.n_rows, *shape), dtype

    def crc32c(self, name: str) -> int:
        """CRC-32C of the stores' own CRC-32Cs of an array."""
        return extend_crc32c(0, np.array([part.crc32c(name) for part in self.parts], np.uint32))


class JoinedRows:
    """Decoded arrays that follow one another, read as if they were one; a store that is read alone has one array."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self.arrays, self.first_rows = arrays, np.cumsum([0, *map(len, arrays)])

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Read `length` rows from each start on: (len(starts), length, ...).

        Clips are short and many, so the arrays are found for all of them at once.
        """
        within = self.first_rows[1:-1].searchsorted(starts, "right")
        places = zip(within.tolist(), (starts - self.first_rows[within]).tolist(), strict=True)
        rows = np.concatenate([self.arrays[i][first : first + length] for i, first in places])
        if len(rows) == len(starts) * length:
            return rows.reshape(len(starts), length, *rows.shape[1:])
        read = lambda i, start, stop: self.arrays[i][start:stop]  # noqa: E731 - some windows go over an array's end
        return np.stack([read_across(read, self.first_rows, start, start + length) for start in starts.tolist()])


def read_across(
    read: Callable[[int, int, int], np.ndarray], first_rows: np.ndarray, start: int, stop: int
) -> np.ndarray:
    """Rows start .. stop of arrays that follow one another.

    Args:
        read: Reads rows of an array: its number, the first row, and the row after the last.
        first_rows: The first row of each array, and then the total number of rows.
        start: First row.
        stop: Row after the last, at most as many as there are.
    """
    stop = min(stop, int(first_rows[-1]))
    first = int(np.searchsorted(first_rows[1:-1], start, side="right"))
    last = max(first, int(np.searchsorted(first_rows[1:-1], stop, side="left")))
    parts = [
        read(i, max(start - int(first_rows[i]), 0), min(stop, int(first_rows[i + 1])) - int(first_rows[i]))
        for i in range(first, last + 1)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
