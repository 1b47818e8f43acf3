"""Fills a store from published files: in parallel, in order, and resumable.

A reader is a list of items (a file and its labels) and a function that makes episodes of an item. A file that cannot be
read is skipped, counted, and named with the reason in `<store>/skipped.txt`; it never stops the reader. Each commit of
episodes includes the position of the item and the number of its episodes in the store, so the same command resumes and
ends with the same store. Readers that write more files (`collect/tgif.py`) also commit the item of each episode, since
it cannot be derived by counting: any item may be skipped.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from collect.pool import WorkerPool
from worldmodel.data.env_spec import EnvSpec
from worldmodel.data.storage import write_beside
from worldmodel.data.writer import Episode, StoreWriter
from worldmodel.utils.errors import UserError, one_line, printable
from worldmodel.utils.progress import Progress
from worldmodel.utils.settings import Address, Seed, Settings, Workers

SKIPPED_FILE = "skipped.txt"
Item = TypeVar("Item")
Read = Callable[[Item], Sequence[Episode]]
"""Makes the episodes of an item, or raises `BrokenFile`."""


class BrokenFile(Exception):
    """A file that cannot be read. The message starts with the file's name and gives the reason."""


@dataclass(frozen=True, kw_only=True)
class ReaderArgs(Settings):
    """Settings of all readers of files."""

    source: Path
    """Folder of the data as published."""
    out: Address
    """Store to write, a folder or a URL; an unfinished one resumes."""
    num_workers: Workers = min(os.cpu_count() or 1, 16)
    """Number of processes that read files."""
    seed: Seed = 0
    """Seed of the train, validation and test split where none was published."""


@dataclass(frozen=True)
class Filled(Generic[Item]):
    """The result of filling a store."""

    items: list[Item]
    """The item of each episode, if it was recorded."""
    skipped: list[str]
    """One reason for each skipped item."""


@contextlib.contextmanager
def reading(read: Read[Item]) -> Iterator[Callable[[Item], tuple[Sequence[Episode], str]]]:
    """Run in each process; yields the function from an item to its episodes, or the reason why it has none."""

    def one(item: Item) -> tuple[Sequence[Episode], str]:
        try:
            return read(item), ""
        except BrokenFile as error:
            return (), printable(str(error))

    yield one


def reason(error: Exception) -> str:
    """The message of a decoder's error, without the details that FFmpeg adds."""
    return getattr(error, "strerror", None) or one_line(error)


def read_text(path: Path) -> str:
    """Read a text file; `UserError` if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}); download it again") from None


def names_digest(names: Iterable[str]) -> str:
    """Digest of a list of files. Progress is a position in the list, so resuming needs exactly the same list."""
    return hashlib.sha256(os.fsencode("\n".join(names))).hexdigest()[:16]


def after_crash(source: Path, item: Item, why: str) -> tuple[Sequence[Episode], str]:
    """The result for an item that crashes its processes, by a bug in a library or lack of memory: no episodes."""
    file = item[0] if isinstance(item, tuple) else f"{source}: number {item}" if isinstance(item, int) else item
    return (), printable(f"{file}: reading it ended the process ({why})")


def fill_store(
    args: ReaderArgs, env_spec: EnvSpec, items: Sequence[Item], read: Read[Item], *, noted: bool = False, **how: Any
) -> Filled[Item]:
    """Fill a store with the episodes of all items, in order, or resume it.

    Args:
        args: Settings of the reader.
        env_spec: Spec of the recorded environment.
        items: The files to read; they are pickled for other processes.
        read: Makes the episodes of an item, or raises `BrokenFile`; it is pickled too.
        noted: Also record the item of each episode.
        **how: Settings that must be equal to resume.

    Raises:
        UserError: The source is missing or empty, no file can be read, or the store has other settings.
    """
    if not args.source.exists():  # checked here, because defaults are built before flags replace them
        raise UserError(f"{args.source} does not exist; give the data as published")
    if not items:
        raise UserError(f"{args.source} has no files of this kind; give the folder as published")
    settings = {"seed": args.seed, **how}
    with StoreWriter(args.out, env_spec, settings, args.seed, wait_in_files=False) as writer:  # files can be read again
        filled = _run(writer, args, items, read, noted)
        if not writer.n_episodes:
            raise UserError(
                f"none of the {len(items)} files of {args.source} could be read; see {args.out}/{SKIPPED_FILE}"
            )
        text = store_size(writer)
    bad = len(filled.skipped)
    print(printable(f"data: {args.out}: {text}") + (f"; {bad} of {len(items):,} files were skipped" if bad else ""))
    return filled


def store_size(writer: StoreWriter) -> str:
    """The size of a store in words."""
    return f"{writer.n_episodes:,} episodes, {writer.n_rows:,} frames"


def _run(writer: StoreWriter, args: ReaderArgs, items: Sequence[Item], read: Read[Item], noted: bool) -> Filled[Item]:
    """Read the items that are not in the store yet."""
    progress = writer.progress or {
        "item": 0,
        "written": 0,
        "skipped": [],
    }  # the next item, and its episodes in the store
    first, written, bad = progress["item"], progress["written"], list(progress["skipped"])
    shown = progress.get("items", [])[: writer.n_episodes]  # it may include an episode that was refused
    if noted and len(shown) < writer.n_episodes:
        raise UserError(f"{writer.path} does not record the file of each episode; use another folder for --out")
    if first < len(items):
        with (
            WorkerPool(partial(reading, read), min(args.num_workers, len(items) - first), Progress.write) as pool,
            Progress(total=len(items), initial=first, unit=" files", desc=writer.env_spec.name) as bar,
        ):
            left = pool.map(itertools.islice(items, first, None), partial(after_crash, args.source))
            for i, (episodes, why) in enumerate(left, first):
                if why:
                    bad.append(why)
                    Progress.write(f"skipped: {why}")
                    write_skipped(writer.path, bad)
                for k, episode in enumerate(episodes, 1):
                    if (i, k) > (first, written):
                        shown.append(i)
                        place = {"item": i + 1, "written": 0} if k == len(episodes) else {"item": i, "written": k}
                        writer.append(episode, place | {"skipped": list(bad)} | ({"items": shown} if noted else {}))
                bar.update()
                bar.set_postfix_str(f"{writer.n_rows:,} frames")
    return Filled([items[i] for i in shown], bad)


def write_skipped(store: str, why: Sequence[str]) -> None:
    """Write one line per skipped item."""
    write_beside(store, SKIPPED_FILE, "".join(f"{text}\n" for text in why).encode())


def not_finite(episode: Episode) -> str:
    """Describe the first NaN or infinite number of an episode; "" if there is none."""
    for name, array in episode.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return f"{name} is not finite in row {int(np.argwhere(~np.isfinite(array))[0, 0])}"
    return ""


def with_labels(episode: Episode, **values: int) -> Episode:
    """An episode with constant arrays added, such as its `label` or `split`."""
    return episode | {name: np.full(len(episode["frames"]), v, np.int64) for name, v in values.items()}


def draw_validation(n: int, share: float, seed: int) -> np.ndarray:
    """(n,) 1 for a random fraction `share` of the training episodes, which become the validation split, else 0."""
    return (np.random.default_rng(seed).random(n) < share).astype(np.int64)
