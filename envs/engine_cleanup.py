"""What an engine leaves behind when its process is killed, and who clears it away.

ViZDoom's engine is a program of its own. It waits for orders for ever, through SIGTERM too, and has a temporary folder
and three objects in shared memory, 10 MB of them. An engine that is closed leaves none of that, and neither does a
process that ends without closing it. For one that is killed there is a watcher: a small process, in a session of its
own, on the other end of a pipe. When the pipe ends without a word, as with any kind of death, it sweeps up. Whoever
starts an engine sweeps first, in case that a watcher was killed too.

A folder is left over if it has a mark that nobody has locked: a lock ends with its process. The mark also names
shared memory. Folders without one are not ours, and are left alone.

The watcher runs this file by its path, so it imports the standard library alone. Engines and shared memory are found
by Linux's /proc and /dev/shm; elsewhere only folders are swept.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
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

PREFIX, MARK = "vizdoom-", "worldmodel.lock"
SHARED = ("ViZDoomSM", "ViZDoomMQCtr", "ViZDoomMQDoom")
"""Names in shared memory, to which each engine adds its own."""


class EngineFolder:
    """A new temporary folder, this process's as long as it lives; what dead ones left is swept first."""

    def __init__(self) -> None:
        root = Path(tempfile.gettempdir())
        remove_leftovers(root)
        start_watcher(root)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        part = self.path / "part"
        self._lock = open(part, "a")  # noqa: SIM115 - held until close
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        part.rename(self.path / MARK)  # locked before anybody can see it

    def record_shared_memory(self) -> None:
        """Write down the shared memory of the engines of this process, for after its death."""
        with contextlib.suppress(FileNotFoundError):
            names = set(re.findall(SHARED[0] + r"(\w+)", Path("/proc/self/maps").read_text()))
            (self.path / MARK).write_text("\n".join(names))

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


@functools.cache
def start_watcher(root: Path) -> None:
    """Start the watcher of this process, once."""
    watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(root), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,  # what is killed as a group takes no watcher with it
    )
    atexit.register(stop_watcher, watcher)


def stop_watcher(watcher: subprocess.Popen[bytes]) -> None:
    """This process ends by itself, and clears up by itself."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        watcher.communicate(b"done", timeout=1)


def remove_leftovers(root: Path) -> None:
    """Clear away what dead processes left."""
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
    """The process, and the name in shared memory, of each engine whose settings lie in a folder."""
    ours = re.compile(rb"\0-config\0%s/.*\0\+viz_instance_id\0(\w+)\0" % re.escape(os.fsencode(folder)), re.DOTALL)
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if found := ours.search(command.read_bytes()):
                yield int(command.parent.name), found[1].decode()


def main(root: Path, parent: int) -> None:
    """Watch a process."""
    if not sys.stdin.read():
        while os.getppid() == parent:  # its pipes end before its locks do
            time.sleep(0.01)
        remove_leftovers(root)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
