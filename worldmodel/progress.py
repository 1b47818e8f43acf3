"""What goes on around training: means and throughput for TensorBoard, and a way to stop between two steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter


class Meter:
    """Means of the scalars since the last log, and clips a second."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps, self.clips, self.since = 0, 0, time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that does not count."""
        begin = time.monotonic()
        yield
        self.since += time.monotonic() - begin

    def add(self, values: dict[str, Tensor], clips: int) -> None:
        self.sums = {k: v + self.sums.get(k, 0) for k, v in values.items()}
        self.steps, self.clips = self.steps + 1, self.clips + clips

    def log(self, writer: SummaryWriter, step: int, rate: float) -> float:
        """Write the means; returns the mean loss."""
        means = {k: float(v) / self.steps for k, v in self.sums.items()}
        for name, value in means.items():
            writer.add_scalar(f"train/{name}", value, step)
        writer.add_scalar("train/learning_rate", rate, step)
        writer.add_scalar("train/clips_per_second", self.clips / (time.monotonic() - self.since), step)
        self.restart()
        return means["loss"]


class Stop:
    """Turns SIGINT and SIGTERM into a flag, so that a step is never cut in two; the second one raises."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Stop:
        self.before = {}
        if threading.current_thread() is threading.main_thread():
            self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, *_: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
