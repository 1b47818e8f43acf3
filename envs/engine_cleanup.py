"""Removes what ViZDoom's engines leave behind when their process is killed.

The engine is a separate program. It waits for commands indefinitely, even after SIGTERM, and has a temporary folder and
three objects in shared memory (10 MB). They are removed when the engine is closed or its process exits normally. For a
process that is killed there is a watcher: a small process in a separate session, at the other end of a pipe. If the
pipe closes without a message, the watcher removes the leftovers. Each start of an engine removes leftovers first too,
in case a watcher was killed.

A folder is a leftover if it has a lock file that is not locked, because a lock ends with its process. The lock file
also contains the names in shared memory. Folders without a lock file are not ours and are not touched.

The watcher runs this file by its path, so it only imports the standard library. Engines and shared memory are found
through Linux's /proc and /dev/shm; on other systems only folders are removed. Windows has no such locks: there an
engine that is killed leaves its folder.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PREFIX, MARK = "vizdoom-", "worldmodel.lock"
SHARED = ("ViZDoomSM", "ViZDoomMQCtr", "ViZDoomMQDoom")
"""Prefixes of names in shared memory; each engine appends its id."""


class EngineFolder:
    """A temporary folder, locked by this process. Leftovers of dead processes are removed first."""

    def __init__(self) -> None:
        root = Path(tempfile.gettempdir())
        if fcntl:
            remove_leftovers(root)
            start_watcher(root)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        part = self.path / "part"
        self._lock = open(part, "a")  # noqa: SIM115 - held until close
        if fcntl:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            part.rename(self.path / MARK)  # locked before it becomes visible

    def record_shared_memory(self) -> None:
        """Write the shared memory names of this process's engines into the lock file, for the watcher."""
        with contextlib.suppress(FileNotFoundError):
            names = set(re.findall(SHARED[0] + r"(\w+)", Path("/proc/self/maps").read_text()))
            (self.path / MARK).write_text("\n".join(names))

    def close(self) -> None:
        self._lock.close()
        shutil.rmtree(self.path, ignore_errors=True)


@functools.cache
def start_watcher(root: Path) -> None:
    """Start the watcher of this process, once."""
    watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,  # so that killing the process group does not kill the watcher
    )
    atexit.register(stop_watcher, watcher)


def stop_watcher(watcher: subprocess.Popen[bytes]) -> None:
    """Tell the watcher that this process exits normally and cleans up itself."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        watcher.communicate(b"done", timeout=1)


def remove_leftovers(root: Path) -> None:
    """Remove the engines, folders and shared memory of dead processes."""
    for folder in root.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), open(folder / MARK) as mark:
            if folder.is_symlink() or os.fstat(mark.fileno()).st_uid != os.getuid():
                continue
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
            names = set(re.findall(r"\w+", mark.read()))
            for engine, name in engines(folder):
                os.kill(engine, signal.SIGKILL)
                names.add(name)
            for path in (Path("/dev/shm", kind + name) for kind in SHARED for name in names):
                path.unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)


def engines(folder: Path) -> Iterator[tuple[int, str]]:
    """Process id and shared memory name of each engine whose settings are in a folder."""
    ours = re.compile(rb"\0-config\0%s/.*\0\+viz_instance_id\0(\w+)\0" % re.escape(os.fsencode(folder)), re.DOTALL)
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if found := ours.search(command.read_bytes()):
                yield int(command.parent.name), found[1].decode()


def main(root: Path) -> None:
    """Wait for the process that started this one, and remove its leftovers if it was killed.

    The pipe closes before the locks are released, and a large process takes a while. So this looks more than once.
    """
    if not sys.stdin.read():
        for pause in (0, 0.1, 1, 10):
            time.sleep(pause)
            remove_leftovers(root)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
