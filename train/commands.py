"""Running scripts as commands, one after the other, for train/loop.py, train/world.py and train/gpu.py."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from configs.scripts import PART, command_words, python_arguments
from worldmodel.utils.errors import UserError


def run_python(
    line: Sequence[str],
    seconds: float | None = None,
    output: IO[str] | None = None,
    cwd: Path | None = None,
    is_part: bool = False,
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
        is_part: Whether it leaves it to this process to say what comes next, and how to resume.

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
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        process.terminate()
        process.wait()
        raise


def run_script(script: str, flags: Sequence[str], name: str = "", output: IO[str] | None = None) -> None:
    """Print the command of a script, and run it.

    Args:
        script: The script, such as train/vqvae.py.
        flags: Its flags.
        name: What it is called in the caller's list; by default its own name.
        output: File for what it prints, but not for its errors and progress; by default the terminal.

    Raises:
        UserError: It has failed.
        KeyboardInterrupt: It was interrupted by itself, or as `run_python`.
    """
    print(f"{name}{': ' * bool(name)}{shlex.join([*command_words(script), *flags])}", flush=True)
    status = run_python([*python_arguments(script), *flags], output=output, is_part=True)
    if status == 130:
        raise KeyboardInterrupt
    if status:
        what = name or " ".join(command_words(script))
        raise UserError(f"{what} has failed; its error is above. Fix that, and run the same command again")
