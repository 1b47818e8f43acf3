"""Appending episodes to a store, each atomically; see `commit_mark` for the commit record.

A commit rewrites the last shard of each array, so episodes wait until they fill about two shards: in memory, and in a
folder also in files (see `waiting`). One process writes to a store at a time; several stores can be used as one data
set. A folder is locked. In a bucket a writer reads the commit record before it commits, and stops if it is not its own.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from worldmodel.data.commit_mark import (
    EPISODE_ENDS,
    ArrayContents,
    Commit,
    CommitMark,
    extend_crc32c,
    json_digest,
    to_attributes,
)
from worldmodel.data.env_spec import EnvSpec
from worldmodel.data.storage import (
    local_folder,
    one_writer,
    open_storage,
    read_object,
    sync_folders,
    write_object,
    writing_errors,
)
from worldmodel.data.waiting import WaitingEpisodes
from worldmodel.data.zarr_format import SHARD, create_array, metadata_of, open_array, open_root, read_rows
from worldmodel.utils.compatibility import config_difference
from worldmodel.utils.errors import UserError, one_line

Episode = dict[str, np.ndarray]
"""Arrays by name, all with the same first dimension."""


class StoreWriter:
    """A store opened for appending; it is created if it does not exist.

    Episodes are committed whenever two shards are full, by `commit`, and at the end of the `with` block. If the process
    is killed, a store in a folder keeps all appended episodes, and the next writer commits them. A store in a bucket
    keeps the committed ones.
    """

    def __init__(
        self,
        path: str | Path,
        env_spec: EnvSpec,
        settings: dict[str, Any],
        split_seed: int = 0,
        cure: str = "use another folder or the same settings",
        wait_in_files: bool = True,
    ) -> None:
        """Create a store, or continue one with the same environment, settings and seed.

        Args:
            path: A folder, or any URL that fsspec can write.
            env_spec: The environment that is recorded.
            settings: How it is recorded, as JSON.
            split_seed: Seed of the split into train, valid and test.
            cure: What to do if there is a store with other settings; the error message says it.
            wait_in_files: In a folder, also keep episodes that wait for a commit in files. Turn it off for data that is
                quickly made again.

        Raises:
            UserError: If there is something else, it cannot be written, or another process is writing to it.
        """
        self.path, self.env_spec, self._cure = str(path), env_spec, cure
        self._buffer: list[dict[str, np.ndarray]] = []
        self._progress: Any = None
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._layout: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        self._storage = open_storage(self.path, write=True)
        folder = local_folder(self.path)
        self._waiting = None if folder is None else WaitingEpisodes(folder)
        self._wait_in_files = wait_in_files
        with contextlib.ExitStack() as held:
            held.enter_context(one_writer(self.path))
            with writing_errors(self.path):
                self._open(CommitMark(world=env_spec, settings=settings, split_seed=split_seed, commit=Commit()))
            self._lock = held.pop_all()

    def _open(self, wanted: CommitMark) -> None:
        if read_object(self._storage, "zarr.json") is None:
            self._write_mark(wanted)
        self._root, self._mark = open_root(self.path, write=True)
        self._tried = self._mark
        self._roll_back()
        if self._waiting:
            self._commit_waiting(self._waiting)
        differs = config_difference(replace(self._mark, commit=Commit()).to_json(), wanted.to_json())
        if differs and self._mark.commit.episodes:
            raise UserError(f"{self.path} was recorded with {differs}; {self._cure}")
        if differs:  # nothing was recorded with the other settings
            self._write_mark(wanted)
            self._mark = self._tried = wanted

    def _commit_waiting(self, waiting: WaitingEpisodes) -> None:
        """Commit the episodes that a killed writer left in files."""
        for episode, progress in waiting.read(self.n_episodes):
            self._layout = self._layout or _layout(episode)
            self._buffer.append(episode)
            self._progress = progress
        self.commit()
        waiting.delete()  # also one that was damaged

    def _roll_back(self) -> None:
        """Delete rows and arrays that the commit record does not cover, such as those of an interrupted append."""
        commit = self._mark.commit
        if not commit.episodes:  # `create_array` deletes what an interrupted first commit has left
            self._arrays = {}
            return
        for name, contents in commit.arrays.items():
            rows = commit.episodes if name == EPISODE_ENDS else commit.rows
            array = self._arrays[name] = open_array(self._root, self.path, name, rows, contents)
            read_rows(array, self.path, name, rows - 1, rows)  # appending rewrites this shard: is it intact?
            if array.shape[0] > rows:
                array.resize((rows, *array.shape[1:]))
            if name != EPISODE_ENDS:
                self._layout[name.removeprefix("data/")] = array.shape[1:], array.dtype

    @property
    def n_episodes(self) -> int:
        """Number of episodes, committed and waiting."""
        return self._mark.commit.episodes + len(self._buffer)

    @property
    def n_rows(self) -> int:
        """Number of rows, committed and waiting."""
        return self._mark.commit.rows + self._n_waiting_rows()

    @property
    def progress(self) -> Any:
        """The `progress` of the last committed episode."""
        return self._mark.commit.progress

    def _n_waiting_rows(self) -> int:
        return sum(len(next(iter(episode.values()))) for episode in self._buffer)

    def append(self, episode: Mapping[str, np.ndarray], progress: Any = None) -> None:
        """Add an episode.

        Args:
            episode: Arrays (rows, ...) by name; every episode of a store has the same names, types and row shapes.
            progress: JSON that is committed with the episode, from which a recorder can resume.

        Raises:
            UserError: If the arrays do not fit the store, or the disk is full.
        """
        self._check(episode)
        if self._waiting and self._wait_in_files:
            with _safe_so_far(self.path):
                self._waiting.write(self.n_episodes, episode, progress)
        self._buffer.append({name: np.array(array) for name, array in episode.items()})
        self._progress = progress
        if self._n_waiting_rows() >= 2 * SHARD:
            self.commit()

    def _check(self, episode: Mapping[str, np.ndarray]) -> None:
        layout = _layout(episode)
        lengths = {name: len(array) if array.ndim else 0 for name, array in episode.items()}
        if not episode or len(set(lengths.values())) > 1 or 0 in lengths.values():
            raise UserError(f"the arrays of an episode must have one length of at least 1, but have {lengths}")
        if objects := [name for name, (_, dtype) in layout.items() if dtype.hasobject]:
            raise UserError(f"{', '.join(objects)} holds Python objects; give arrays of numbers")
        if "frames" in layout and layout["frames"] != (self.env_spec.frame_shape, np.uint8):
            shape, dtype = layout["frames"]
            raise UserError(
                f"frames of {self.env_spec.name} are uint8 {self.env_spec.frame_shape}, but these are {dtype} {shape}; "
                "convert them"
            )
        self._layout = self._layout or layout
        for name in sorted(layout.keys() | self._layout.keys()):
            if layout.get(name) != self._layout.get(name):
                raise UserError(
                    f"{self.path} holds {_describe(name, self._layout)}, but this episode has "
                    f"{_describe(name, layout)}; "
                    "give every episode the same arrays, or use another folder"
                )

    def commit(self) -> None:
        """Write the waiting episodes, then the commit record; Ctrl-C is delayed until both are written.

        Raises:
            UserError: If they cannot be written; earlier commits are safe.
        """
        if not self._buffer:
            return
        with _safe_so_far(self.path), _uninterrupted():
            self._reread()
            self._roll_back()  # an earlier commit may have failed halfway
            if self._buffer:
                self._write()

    def _reread(self) -> None:
        """Read the commit record again: a failed write may have stored it after all, or another process may have."""
        there = open_root(self.path)[1]
        if _same(there, self._tried):
            del self._buffer[: there.commit.episodes - self._mark.commit.episodes]
        elif not _same(there, self._mark):
            raise UserError(
                f"{self.path} was also written by another process; stop all but one, and run the same command again"
            )
        self._mark = there

    def _write(self) -> None:
        commit = self._mark.commit
        for name, (shape, dtype) in self._layout.items():
            if f"data/{name}" not in self._arrays:
                self._arrays[f"data/{name}"] = create_array(self._root, f"data/{name}", shape, dtype)
        if EPISODE_ENDS not in self._arrays:
            self._arrays[EPISODE_ENDS] = create_array(self._root, EPISODE_ENDS, (), np.dtype(np.int64))
        lengths = [len(next(iter(episode.values()))) for episode in self._buffer]
        new = {f"data/{name}": np.concatenate([e[name] for e in self._buffer]) for name in sorted(self._layout)}
        new[EPISODE_ENDS] = commit.rows + np.cumsum(lengths, dtype=np.int64)
        contents = {}
        for name, values in new.items():
            self._arrays[name].append(values)
            before = commit.arrays[name].crc32c if name in commit.arrays else 0
            contents[name] = ArrayContents(metadata=metadata_of(self._root, name), crc32c=extend_crc32c(before, values))
        sync_folders(self._storage, ("data", "meta", *new))
        done = Commit(episodes=self.n_episodes, rows=self.n_rows, arrays=contents, progress=self._progress)
        self._tried = replace(self._mark, commit=done)
        self._write_mark(self._tried)
        self._mark = self._tried
        self._buffer.clear()
        if self._waiting:
            with contextlib.suppress(OSError):  # the next writer ignores them
                self._waiting.delete()

    def _write_mark(self, mark: CommitMark) -> None:
        """Write a commit record, and wait until it is on the disk or in the bucket."""
        document = {"zarr_format": 3, "node_type": "group", "attributes": to_attributes(mark)}
        write_object(self._storage, "zarr.json", (json.dumps(document, indent=2) + "\n").encode())
        sync_folders(self._storage, [""])

    def close(self) -> None:
        """Commit the waiting episodes and release the store."""
        try:
            self.commit()
        finally:
            self._lock.close()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def _safe_so_far(path: str) -> Iterator[None]:
    """Raise the errors of adding to a store as `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{path} could not be written ({one_line(error)}), but what was committed is safe; free some space or "
            "make it writable, and run the same command again"
        ) from error


def _layout(episode: Mapping[str, np.ndarray]) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    return {name: (array.shape[1:], array.dtype) for name, array in episode.items()}


def _describe(name: str, layout: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> str:
    shape, dtype = layout.get(name, (None, "no"))
    return f"{dtype} {name}" + (f" {shape}" if shape is not None else "")


def _same(a: CommitMark, b: CommitMark) -> bool:
    """Whether two commit records are written as the same JSON."""
    return json_digest(a.to_json()) == json_digest(b.to_json())


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM: Zarr writes in another thread, which they would not stop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []
    both = (signal.SIGINT, signal.SIGTERM)
    usual = {number: signal.signal(number, lambda received, _: pending.append(received)) for number in both}
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
        if pending:
            signal.raise_signal(pending[0])
