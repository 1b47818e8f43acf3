"""Scripts run by forking: a process that has imported all of them once answers each command line with a child.

An import of torch takes seconds, a fork milliseconds. A child has a time limit, at which it gets a Ctrl-C, and bounded
memory and files; whatever it started is killed when it ends.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for room in ("collect", "train", "rollout")
    for path in (ROOT / room).glob("*.py")
    if "\n    command(main," in path.read_text()
)
MEMORY, FILE = 4 * 2**30, 2**28
"""Bytes that a child may take, and write into one file."""
GRACE = 60.0
"""Seconds from Ctrl-C to a kill."""


@dataclass(frozen=True)
class End:
    """How a command line ended."""

    status: int
    """Of the exit, or minus the signal."""
    interrupted: bool
    """Did it work until its time was up, and get a Ctrl-C?"""
    killed: bool
    """And did it not end then?"""
    output: str
    """The last of its standard error."""


class Forks:
    """`with Forks(env) as forks: end = forks.run("train/vqvae.py", argv, folder, limit)`."""

    def __init__(self, **env: str) -> None:
        self.env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **env}

    def __enter__(self) -> Forks:
        command = [sys.executable, "-m", "tests.campaign.forks"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=ROOT, env=self.env, **pipes)
        return self

    def run(self, script: str, argv: list[str], folder: Path, limit: float) -> End:
        """Run a script in a folder; `run("", [code], ...)` runs Python code instead."""
        assert self.process.stdin and self.process.stdout
        job = {"script": script, "argv": argv, "folder": str(folder), "limit": limit}
        print(json.dumps(job), file=self.process.stdin, flush=True)
        return End(**json.loads(self.process.stdout.readline()))

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for script in SCRIPTS:
        importlib.import_module(script.removesuffix(".py").replace("/", "."))
    gc.freeze()  # so that a child's collections leave shared pages shared
    for line in sys.stdin:
        job = json.loads(line)
        with tempfile.TemporaryFile() as errors:
            if (pid := os.fork()) == 0:
                leave(child(job, errors.fileno()))
            end = watch(pid, job["limit"])
            size = errors.seek(0, os.SEEK_END)
            errors.seek(max(0, size - 4000))
            print(json.dumps(end | {"output": errors.read().decode(errors="replace")}), file=answers, flush=True)


def child(job: dict[str, Any], errors: int) -> int:
    """The script, as the interpreter would run it; its exit status."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for target, source in ((0, null), (1, null), (2, errors)):
        os.dup2(source, target)
    os.chdir(job["folder"])
    for kind, most in ((resource.RLIMIT_DATA, MEMORY), (resource.RLIMIT_FSIZE, FILE), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(kind, (most, most))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    script, argv = job["script"], job["argv"]
    sys.argv = [str(ROOT / script), *argv]
    try:
        if script:
            runpy.run_path(sys.argv[0], run_name="__main__")
        else:
            exec(argv[0], {})
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else bool(stop.code)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def leave(status: int) -> None:
    """End as an interpreter does, but for tearing everything down, which takes seconds with all that was imported."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(status)


def watch(pid: int, limit: float) -> dict[str, Any]:
    """Wait for a child, and end it when its time is up."""
    interrupted = killed = False
    end = time.monotonic() + limit
    while (status := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > end:
            killed = interrupted
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL if interrupted else signal.SIGINT)
            interrupted, end = True, end + GRACE
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):  # what it started
        os.killpg(pid, signal.SIGKILL)
    return {"status": os.waitstatus_to_exitcode(status[1]), "interrupted": interrupted, "killed": killed}


if __name__ == "__main__":
    serve()
