"""Files that are written atomically: they have either their old content or the new one."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from worldmodel.utils.errors import UserError


@contextmanager
def atomic_file(path: Path, data: bytes) -> Iterator[Path]:
    """Write data to a temporary file in the folder of `path`, for the caller to rename to it.

    Args:
        path: The final name.
        data: Content of the file; it is on the disk when the block is entered.

    Yields:
        The temporary file, which is deleted afterwards unless it was renamed.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield part
    finally:
        part.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file atomically: it has either its old content or the new one, even after a power cut."""
    with atomic_file(path, data) as part:
        part.replace(path)


def write_json(path: Path, data: Any) -> None:
    """Write data as JSON, atomically; paths become text."""
    write_atomic(path, (json.dumps(data, indent=2, default=os.fspath) + "\n").encode())
