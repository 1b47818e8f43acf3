"""Appending episodes to a store, each atomically; see `commit_mark` for the commit record.

An append rewrites the last shard of each array, so episodes wait in memory until they fill about two shards. One
process writes to a store at a time; several stores can be used as one data set.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from filelock import FileLock, Timeout

from worldmodel.data.commit_mark import EPISODE_ENDS, ArrayContents, Commit, CommitMark, extend_crc32c, to_attributes
from worldmodel.data.env_spec import EnvSpec
from worldmodel.data.zarr_format import SHARD, create_array, metadata_of, open_array, open_root, read_rows
from worldmodel.utils.checkpoint import write_json
from worldmodel.utils.compatibility import config_difference
from worldmodel.utils.errors import UserError, is_url, one_line

Episode = dict[str, np.ndarray]
"""Arrays by name, all with the same first dimension."""


class StoreWriter:
    """A store in a local folder, opened for appending; it is created if it does not exist.

    Episodes are safe on disk once they are committed: whenever two shards are full, by `commit`, and at the end of the
    `with` block.
    """

    def __init__(
        self,
        path: str | Path,
        env_spec: EnvSpec,
        settings: dict[str, Any],
        split_seed: int = 0,
        cure: str = "use another folder or the same settings",
    ) -> None:
        """Create a store, or continue one with the same environment, settings and seed.

        Args:
            path: Local folder.
            env_spec: The environment that is recorded.
            settings: How it is recorded, as JSON.
            split_seed: Seed of the split into train, valid and test.
            cure: What to do if the folder has a store with other settings, for the message.

        Raises:
            UserError: If the folder has something else, cannot be written, or is being written by another process.
        """
        if is_url(path):
            raise UserError(f"{path} is not a local folder; write to a local folder and copy the finished store there")
        self.path, self.env_spec, self._cure = Path(path), env_spec, cure
        self._buffer: list[dict[str, np.ndarray]] = []
        self._progress: Any = None
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._layout: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        self._lock = _acquire_lock(self.path)
        try:
            self._open(CommitMark(world=env_spec, settings=settings, split_seed=split_seed, commit=Commit()))
        except BaseException as error:
            self._lock.close()
            if isinstance(error, OSError):
                raise _unwritable(self.path, error) from None
            raise

    def _open(self, wanted: CommitMark) -> None:
        if not (self.path / "zarr.json").exists():
            self._write_mark(wanted)
        self._root, self._mark = open_root(str(self.path), write=True)
        differs = config_difference(replace(self._mark, commit=Commit()).to_json(), wanted.to_json())
        if differs:
            raise UserError(f"{self.path} was recorded with {differs}; {self._cure}")
        for pattern in ("*.part", "data/**/*.part", "meta/**/*.part"):
            for leftover in self.path.glob(pattern):
                leftover.unlink()
        self._roll_back()

    def _roll_back(self) -> None:
        """Delete rows and arrays that the commit record does not cover, such as those of an interrupted append."""
        commit = self._mark.commit
        if not commit.episodes:  # arrays of an interrupted first commit
            self._arrays = {}
            for folder in ("data", "meta"):
                shutil.rmtree(self.path / folder, ignore_errors=True)
            return
        for name, contents in commit.arrays.items():
            rows = commit.episodes if name == EPISODE_ENDS else commit.rows
            array = self._arrays[name] = open_array(self._root, str(self.path), name, rows, contents)
            read_rows(array, str(self.path), name, rows - 1, rows)  # appending rewrites this shard: is it intact?
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
        self._buffer.append({name: np.array(array) for name, array in episode.items()})
        self._progress = progress
        if self._n_waiting_rows() >= 2 * SHARD:
            self.commit()

    def _check(self, episode: Mapping[str, np.ndarray]) -> None:
        layout = {name: (array.shape[1:], array.dtype) for name, array in episode.items()}
        lengths = {name: len(array) if array.ndim else 0 for name, array in episode.items()}
        if not episode or len(set(lengths.values())) > 1 or 0 in lengths.values():
            raise UserError(f"the arrays of an episode must have one length of at least 1, but have {lengths}")
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
        try:
            with _uninterrupted():
                self._roll_back()  # an earlier commit may have failed halfway
                self._write()
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"{self.path} could not be written ({one_line(error)}), but what was committed is safe; "
                "free some space or repair it, and run the same command again"
            ) from error

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
        for name in ("data", "meta", *new):
            _sync(self.path / name)
        done = Commit(episodes=self.n_episodes, rows=self.n_rows, arrays=contents, progress=self._progress)
        self._mark = self._write_mark(replace(self._mark, commit=done))
        self._buffer.clear()

    def _write_mark(self, mark: CommitMark) -> CommitMark:
        """Write a commit record; returns it once it is on the disk."""
        write_json(self.path / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": to_attributes(mark)})
        _sync(self.path)
        return mark

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


def _describe(name: str, layout: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> str:
    shape, dtype = layout.get(name, (None, "no"))
    return f"{dtype} {name}" + (f" {shape}" if shape is not None else "")


def _sync(folder: Path) -> None:
    """Wait until the file names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _acquire_lock(path: Path) -> contextlib.ExitStack:
    """Lock a store until it is closed or this process ends, however it ends."""
    if path.is_file() or (path.is_dir() and not (path / "zarr.json").exists() and _has_other_files(path)):
        raise UserError(f"{path} holds something other than a store; use another folder")
    lock, holder = FileLock(path / "writer.lock", thread_local=False), path / "writer.pid"
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
        holder.write_text(str(os.getpid()))
    except Timeout:
        process = holder.read_text(errors="replace").strip() if holder.is_file() else ""
        raise UserError(f"{path} is being written by process {process or '?'}; wait for it, or stop it") from None
    except OSError as error:
        lock.release()
        raise _unwritable(path, error) from None
    held = contextlib.ExitStack()
    held.callback(lock.release)
    held.callback(holder.unlink, missing_ok=True)
    return held


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} cannot be written ({one_line(error)}); fix that, or use another folder")


def _has_other_files(path: Path) -> bool:
    """Whether a folder without a commit record has files that a writer killed at its start would not leave."""
    ours = ("writer.lock", "writer.pid")
    return any(p.name not in ours and not ("zarr.json" in p.name and p.suffix == ".part") for p in path.iterdir())


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
