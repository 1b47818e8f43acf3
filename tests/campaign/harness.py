"""How the campaign judges an attempt, and the table it prints.

An area is a function `run(seconds, seed) -> Tally`. It makes hostile attempts until its time is up, each drawn from
the seed and the attempt's number, so that one attempt can be made again alone. An attempt ends in one of five ways:

    right       the result is what it would have been without the fault, or what the input really asks for
    sentence    one clear error: a `UserError`, or exit status 2 of a command
    traceback   any other exception, a traceback on standard error, or a death by a signal
    hang        no end within the time limit
    silent      no error, but a wrong result

The first two are good. The campaign exits with status 1 if there is any of the other three.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from worldmodel.utils.errors import UserError

ROOT = Path(__file__).parents[2]
Verdict = Literal["right", "sentence", "traceback", "hang", "silent"]
VERDICTS: tuple[Verdict, ...] = ("right", "sentence", "traceback", "hang", "silent")
BAD: tuple[Verdict, ...] = ("traceback", "hang", "silent")


@dataclass
class Tally:
    """What came of an area's attempts."""

    area: str
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    """The bad attempts, each with what is needed to make it again."""

    def add(self, verdict: Verdict, attempt: str, detail: str = "") -> None:
        """Count an attempt; `detail` is the end of its output, kept if the attempt was bad."""
        self.counts[verdict] += 1
        if verdict in BAD:
            self.faults.append(f"{self.area}: {verdict}: {attempt}" + (f"\n    {detail[-800:]}" if detail else ""))

    @property
    def clean(self) -> bool:
        return not self.faults


def attempts(seconds: float, least: int = 1) -> Iterator[int]:
    """0, 1, 2, ... until the time is up, but at least `least` of them."""
    start, number = time.monotonic(), 0
    while number < least or time.monotonic() - start < seconds:
        yield number
        number += 1


def judge_call(call: Callable[[], Any], right: Callable[[Any], bool]) -> tuple[Verdict, str]:
    """Judge a call in this process; `right` says whether its result is the right one."""
    try:
        result = call()
    except UserError as error:
        return judge_message(str(error))
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {error}"
    return ("right", "") if right(result) else ("silent", repr(result)[:200])


def judge_message(message: str) -> tuple[Verdict, str]:
    """A sentence is one line of text that is not a Python exception's repr."""
    return ("sentence", message) if message.strip() and "\n" not in message.strip() else ("traceback", message)


def judge_command(
    argv: Sequence[str], limit: float, right: Callable[[], bool] = lambda: True, cwd: Path = ROOT
) -> tuple[Verdict, str]:
    """Judge a script: `argv` follows the interpreter. It and its children are killed when the limit is over."""
    process = subprocess.Popen(
        [sys.executable, *argv], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        _, raw = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return "hang", f"no end within {limit} s"
    return judge_exit(process.returncode, raw.decode(errors="replace"), right)


def judge_exit(status: int, stderr: str, right: Callable[[], bool]) -> tuple[Verdict, str]:
    """Judge a command by its exit status and standard error."""
    if "Traceback (most recent call last)" in stderr or status not in (0, 2):
        return "traceback", f"status {status}: {stderr}"
    if status == 2:
        return "sentence", stderr
    return ("right", "") if right() else ("silent", stderr)


def table(tallies: Sequence[Tally]) -> str:
    """Markdown: an area a row, and their sum."""
    rows = ["| area | tried | " + " | ".join(VERDICTS) + " |", "|---|" + "---|" * (len(VERDICTS) + 1)]
    total = Tally("all", sum((t.counts for t in tallies), Counter()))
    for t in (*tallies, total):
        rows.append(f"| {t.area} | {t.counts.total()} | " + " | ".join(str(t.counts[v]) for v in VERDICTS) + " |")
    return "\n".join(rows)
