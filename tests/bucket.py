"""Buckets of a server that speaks S3, and requests to it that are counted and cut off."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import s3fs
from zarr.core.sync import sync

CHANGES = ("put_object", "delete_object", "delete_objects", "create_multipart_upload", "complete_multipart_upload")
"""Requests that change what a bucket has."""


@contextmanager
def s3_server() -> Iterator[str]:
    """The address of moto's server, on a free port of this machine."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


class Killed(BaseException):
    """In the place of the end of a process."""


class Requests:
    """Counts the requests of this process to buckets."""

    def __init__(self, patch: pytest.MonkeyPatch, killed_at: int = -1, unanswered: int = -1) -> None:
        """Begin to count.

        Args:
            patch: Undoes it.
            killed_at: Number of the change before which the process dies: nothing reaches the server any more.
            unanswered: Number of the change that reaches the server, but whose answer is lost.
        """
        self.sent: list[tuple[str, str]] = []
        self.changes, dead = 0, False
        send = s3fs.S3FileSystem._call_s3

        async def count(fs: Any, method: str, *args: Any, **how: Any) -> Any:
            nonlocal dead
            number = self.changes
            dead |= method in CHANGES and number == killed_at
            if dead:
                raise Killed
            self.sent.append((method, str(how.get("Key"))))
            self.changes += method in CHANGES
            answer = await send(fs, method, *args, **how)
            if method in CHANGES and number == unanswered:
                raise OSError("the answer was lost")
            return answer

        patch.setattr(s3fs.S3FileSystem, "_call_s3", count)

    def settle(self) -> None:
        """Wait until what the dead process had begun has met its end too."""

        async def others() -> None:
            if tasks := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(tasks, timeout=10)

        sync(others())
