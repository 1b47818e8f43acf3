"""A bar moves on a terminal, and is a few lines in a log."""

from __future__ import annotations

import io
import math
import re
import sys
from pathlib import Path

import pytest

from worldmodel.utils import progress
from worldmodel.utils.progress import Progress

ROOT = Path(__file__).parents[3]


class Terminal(io.StringIO):
    """A terminal that keeps what it was sent."""

    def isatty(self) -> bool:
        return True


def work(monkeypatch: pytest.MonkeyPatch, stderr: io.StringIO, seconds_per_line: float) -> str:
    """What is on `stderr` after a bar with one inside, a message, and one that leaves nothing."""
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(progress, "SECONDS_PER_LINE", seconds_per_line)
    with Progress(total=6, desc="outer", unit=" steps", unit_scale=2) as bar:
        for i in range(3):
            for _ in Progress(range(2), desc="inner", leave=False):
                pass
            bar.update()
            bar.set_postfix(loss=i)
        bar.write("a message", file=stderr)
    return stderr.getvalue()


def test_a_log_has_the_end_of_a_bar_alone_until_time_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    message, line = work(monkeypatch, io.StringIO(), math.inf).splitlines()
    assert message == "a message"
    assert line.startswith("outer:  50%|") and "6/12" in line and line.endswith("steps/s, loss=2]")


def test_a_log_has_a_line_when_time_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    text = work(monkeypatch, io.StringIO(), 0)
    assert not re.search(r"[\r\x1b]|\n\n", text)
    assert [re.findall(r"(\d+)/12", line) for line in text.splitlines() if "loss=1" in line][-1] == ["4"]
    assert text.endswith("loss=2]\n")


def test_a_terminal_has_a_bar_that_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    text = work(monkeypatch, Terminal(), math.inf)
    assert "\router:   0%|" in text and "\x1b[A" in text and text.endswith("loss=2]\n")


def test_every_bar_is_made_in_one_place() -> None:
    files = [
        path for room in ("worldmodel", "envs", "collect", "train", "rollout") for path in (ROOT / room).rglob("*.py")
    ]
    imports = [
        path.name for path in files if re.search(r"^\s*(from|import) tqdm|progress_bar=", path.read_text(), re.M)
    ]
    assert imports == ["progress.py"]
