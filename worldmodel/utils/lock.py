"""A lock that lets one process at a time write to a folder; it is released when the process ends, however it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from worldmodel.utils.errors import UserError


@contextmanager
def folder_lock(folder: Path, name: str = "train.lock", parts: str = "*.part") -> Iterator[None]:
    """Hold a lock on a folder, and first delete partial files that killed processes have left there.

    Args:
        folder: The folder, created if it does not exist.
        name: File name of the lock.
        parts: Pattern of the partial files. It must only match files that are written under this lock.

    Raises:
        UserError: At once, if another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(
            f"{folder} is being written by another process; wait for it, stop it, or use another folder"
        ) from None
    try:
        for part in folder.glob(parts):
            part.unlink()
        yield
    finally:
        lock.release()
