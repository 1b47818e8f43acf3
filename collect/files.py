"""Filling a store from files as they were published: side by side, in order, and going on where it was interrupted.

A reader is a list of items (a file, with what is known of it) and a function that makes episodes of one. A file that
cannot be read is named, skipped and counted, and never ends the work: what was wrong with it is written to
`<store>/skipped.txt`. An item's position and the number of its episodes that are in the store are committed with them,
so the same command goes on, and ends with the same store. Whoever writes more beside the store (`collect/tgif.py`)
has the item of each episode committed too: which one it is cannot be counted, since any item may be skipped.
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
from tqdm import tqdm

from collect.pool import WorkerPool
from worldmodel.data.env_spec import EnvSpec
from worldmodel.data.writer import Episode, StoreWriter
from worldmodel.utils.checkpoint import write_atomic
from worldmodel.utils.errors import UserError, one_line
from worldmodel.utils.settings import Seed, Settings, Workers

SKIPPED_FILE = "skipped.txt"
Item = TypeVar("Item")
Read = Callable[[Item], Sequence[Episode]]
"""What makes episodes of an item, or raises `BrokenFile`."""


class BrokenFile(Exception):
    """A file that cannot be read, and why; its message begins with the file's name."""


@dataclass(frozen=True, kw_only=True)
class ReaderArgs(Settings):
    """What all readers of files are asked."""

    source: Path
    """Folder of the data as published."""
    out: Path
    """The store; one that is not complete goes on."""
    num_workers: Workers = min(os.cpu_count() or 1, 16)
    """Processes that read."""
    seed: Seed = 0
    """Of the order of the episodes, and of the split where none was published."""


@dataclass(frozen=True)
class Filled(Generic[Item]):
    """What is in a store that was filled, and what is not."""

    items: list[Item]
    """Of each episode, where that was noted."""
    skipped: list[str]
    """Why there is nothing of some items."""


@contextlib.contextmanager
def reading(read: Read[Item]) -> Iterator[Callable[[Item], tuple[Sequence[Episode], str]]]:
    """What each process does with an item: its episodes, or why there are none."""

    def one(item: Item) -> tuple[Sequence[Episode], str]:
        try:
            return read(item), ""
        except BrokenFile as error:
            return (), printable(str(error))

    yield one


def reason(error: Exception) -> str:
    """What a decoder says; FFmpeg's errors have more around it."""
    return getattr(error, "strerror", None) or one_line(error)


def printable(text: str) -> str:
    """On one line; bytes of a file's name that are no UTF-8 are told as numbers."""
    return " ".join(text.split()).encode(errors="backslashreplace").decode()


def read_text(path: Path) -> str:
    """A list as published, or a `UserError`."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8 ({error}); fetch it again") from None


def names_digest(names: Iterable[str]) -> str:
    """Of a list of files. Progress counts them: were there others when it goes on, it would go on at a wrong one."""
    return hashlib.sha256(os.fsencode("\n".join(names))).hexdigest()[:16]


def after_crash(source: Path, item: Item, why: str) -> tuple[Sequence[Episode], str]:
    """What is made of an item that ends the processes that read it, by a fault in a library or for want of memory."""
    file = item[0] if isinstance(item, tuple) else f"{source}: number {item}" if isinstance(item, int) else item
    return (), printable(f"{file}: reading it ended the process ({why})")


def fill_store(
    args: ReaderArgs, env_spec: EnvSpec, items: Sequence[Item], read: Read[Item], *, noted: bool = False, **how: Any
) -> Filled[Item]:
    """A store of the episodes of all items, in their order; `how` is what makes another recording of the same files.

    `read` and the items travel to other processes, so they can be pickled; `read` raises `BrokenFile`. If it is to be
    noted, the item of each episode is told.
    """
    if not args.source.exists():  # not when built: a default is built before the flags are laid over it
        raise UserError(f"{args.source} does not exist; give the data as published")
    if not items:
        raise UserError(f"{args.source} holds no files of this kind; give the folder as it was published")
    with StoreWriter(args.out, env_spec, {"seed": args.seed, **how}, args.seed) as writer:
        filled = _run(writer, args, items, read, noted)
        if not writer.n_episodes:
            raise UserError(
                f"none of the {len(items)} files of {args.source} could be read; see {args.out / SKIPPED_FILE}"
            )
        text = store_size(writer)
    bad = len(filled.skipped)
    print(printable(f"data: {args.out}: {text}") + (f"; {bad} of {len(items):,} files were skipped" if bad else ""))
    return filled


def store_size(writer: StoreWriter) -> str:
    """How much is in a store, in words."""
    return f"{writer.n_episodes:,} episodes, {writer.n_rows:,} frames"


def _run(writer: StoreWriter, args: ReaderArgs, items: Sequence[Item], read: Read[Item], noted: bool) -> Filled[Item]:
    """Read what is still missing."""
    progress = writer.progress or {"item": 0, "written": 0, "skipped": []}  # the next item, and how much of it is there
    first, written, bad = progress["item"], progress["written"], list(progress["skipped"])
    shown = progress.get("items", [])[: writer.n_episodes]  # the list may have grown for an episode that was refused
    if noted and len(shown) < writer.n_episodes:
        raise UserError(f"{writer.path} does not tell which file each episode is of; give another folder")
    if first < len(items):
        with (
            WorkerPool(partial(reading, read), min(args.num_workers, len(items) - first), tqdm.write) as pool,
            tqdm(total=len(items), initial=first, unit=" files", desc=writer.env_spec.name) as bar,
        ):
            left = pool.map(itertools.islice(items, first, None), partial(after_crash, args.source))
            for i, (episodes, why) in enumerate(left, first):
                if why:
                    bad.append(why)
                    tqdm.write(f"skipped: {why}")
                    write_skipped(writer.path, bad)
                for k, episode in enumerate(episodes, 1):
                    if (i, k) > (first, written):
                        shown.append(i)
                        place = {"item": i + 1, "written": 0} if k == len(episodes) else {"item": i, "written": k}
                        writer.append(episode, place | {"skipped": list(bad)} | ({"items": shown} if noted else {}))
                bar.update()
                bar.set_postfix_str(f"{writer.n_rows:,} frames")
    return Filled([items[i] for i in shown], bad)


def write_skipped(store: Path, why: Sequence[str]) -> None:
    """A line for each that is not in a store."""
    write_atomic(store / SKIPPED_FILE, "".join(f"{text}\n" for text in why).encode())


def not_finite(episode: Episode) -> str:
    """Which array has a number that is NaN or infinite, and where; nothing if all can be recorded."""
    for name, array in episode.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return f"{name} is not finite in row {int(np.argwhere(~np.isfinite(array))[0, 0])}"
    return ""


def with_labels(episode: Episode, **values: int) -> Episode:
    """An episode with values that are the same in all its rows: its `label`, its `split`."""
    return episode | {name: np.full(len(episode["frames"]), v, np.int64) for name, v in values.items()}


def draw_validation(n: int, share: float, seed: int) -> np.ndarray:
    """(n,) 1 for the share of published training episodes that are for validation, else 0; the test's are kept."""
    return (np.random.default_rng(seed).random(n) < share).astype(np.int64)
