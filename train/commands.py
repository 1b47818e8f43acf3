"""Running scripts as commands, one after the other, for train/loop.py and train/gpu.py."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO


def run_python(
    line: Sequence[str], seconds: float | None = None, output: IO[str] | None = None, cwd: Path | None = None
) -> int:
    """Run `python` with arguments and wait for its end.

    After Ctrl-C, or when its time is over, it is asked once to stop, and has the time it needs: a training finishes its
    step and saves a checkpoint. It has a session of its own, so that Ctrl-C does not reach it as well, because a second
    request makes it stop at once.

    Args:
        line: The arguments.
        seconds: Most seconds.
        output: File for what it prints; by default the terminal.
        cwd: Folder to run it in; by default this process's.

    Returns:
        Its exit status.

    Raises:
        KeyboardInterrupt: After Ctrl-C.
        subprocess.TimeoutExpired: When its time is over.
    """
    process = subprocess.Popen([sys.executable, *line], stdout=output, cwd=cwd, start_new_session=True)
    try:
        return process.wait(seconds)
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        process.terminate()
        process.wait()
        raise
