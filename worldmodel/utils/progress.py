"""Progress bars. A terminal has a moving bar; a file or a pipe gets a line every half minute and one at the end."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from tqdm import tqdm

SECONDS_PER_LINE = 30


class LineFile:
    """Writes each state of a bar as a line of its own, without carriage returns."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def write(self, text: str) -> None:
        if line := text.strip():
            self.file.write(f"{line}\n")

    def flush(self) -> None:
        self.file.flush()


class Progress(tqdm):
    """tqdm, for terminals and for logs."""

    def __init__(self, iterable: Any = None, **settings: Any) -> None:
        self.is_moving, self.last_line = sys.stderr.isatty(), time.monotonic()
        super().__init__(iterable, file=sys.stderr if self.is_moving else LineFile(sys.stderr), **settings)

    def refresh(self, *args: Any, **kwargs: Any) -> None:
        """Show the state, which tqdm asks for several times a second."""
        now = time.monotonic()
        if self.is_moving or now - self.last_line >= SECONDS_PER_LINE:
            self.last_line = now
            super().refresh(*args, **kwargs)

    def moveto(self, n: int) -> None:
        """Go to the line of a bar that is inside another; a log has no such lines."""
        if self.is_moving:
            super().moveto(n)
