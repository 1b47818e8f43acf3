"""One process at a time in a folder: a lock that goes when its process does, however that ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from worldmodel.utils.errors import UserError


@contextmanager
def folder_lock(folder: Path, name: str = "train.lock", parts: str = "*.part") -> Iterator[None]:
    """Hold the lock of that name, or raise a `UserError` at once; remove what killed processes left half written.

    `parts` are the names of such files: of those, and no others, that are only written under this lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(
            f"{folder} is being written by another process; wait for it, stop it, or give another folder"
        ) from None
    try:
        for part in folder.glob(parts):
            part.unlink()
        yield
    finally:
        lock.release()
