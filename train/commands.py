"""Running scripts as commands, one after the other, for train/loop.py, train/world.py and train/gpu.py."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from configs.scripts import PART, command_words, python_arguments
from worldmodel.utils.errors import UserError
from worldmodel.utils.processes import kill_group

GRACE = 20.0
"""Seconds that a process has for saving what it needs when its time is over."""


def run_python(
    line: Sequence[str],
    seconds: float | None = None,
    output: IO[str] | None = None,
    cwd: Path | None = None,
    is_part: bool = False,
) -> int:
    """Run `python` with arguments and wait until it ends.

    After Ctrl-C the process gets one SIGTERM, and then as much time as it needs: a training finishes its step and saves
    a checkpoint. A second signal would make it stop at once. So the process runs in a session of its own, which Ctrl-C
    does not reach. When its time is over, it gets one SIGTERM too, but is killed after `GRACE` seconds, together with
    the processes that it has started.

    Args:
        line: The arguments.
        seconds: Time limit in seconds.
        output: File for what it prints; by default the terminal.
        cwd: Folder to run it in; by default this process's.
        is_part: Whether this process, and not the new one, tells the user what comes next and how to resume.

    Returns:
        Its exit status.

    Raises:
        KeyboardInterrupt: After Ctrl-C.
        subprocess.TimeoutExpired: When its time is over.
    """
    env = os.environ | {PART: "1"} if is_part else None
    process = subprocess.Popen([sys.executable, *line], stdout=output, cwd=cwd, env=env, start_new_session=True)
    try:
        return process.wait(seconds)
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:
            kill_group(process)
        raise


def has_failed(status: int) -> bool:
    """Whether the exit status of a script is that of a failure; `KeyboardInterrupt` if it was interrupted."""
    if status == 130:
        raise KeyboardInterrupt
    return status != 0


def run_script(script: str, flags: Sequence[str], name: str = "", output: IO[str] | None = None) -> None:
    """Print the command of a script, and run it.

    Args:
        script: The script, such as train/vqvae.py.
        flags: Its flags.
        name: Name of the script in the messages; by default its command.
        output: File for what it prints, but not for its errors and progress; by default the terminal.

    Raises:
        UserError: It has failed.
        KeyboardInterrupt: The script was interrupted, or this process was, as in `run_python`.
    """
    print(f"{name}{': ' * bool(name)}{shlex.join([*command_words(script), *flags])}", flush=True)
    status = run_python([*python_arguments(script), *flags], output=output, is_part=True)
    if has_failed(status):
        what = name or " ".join(command_words(script))
        raise UserError(f"{what} has failed; its error is above. Fix that, and run the same command again")
