"""TensorBoard logs of training, and a way to stop between two steps.

TensorBoard's HPARAMS tab compares runs by their settings and the last value of every scalar, including held-out ones.
`SummaryWriter.add_hparams` is not used: it writes an extra run for each run, and an experiment summary with the
settings of a single run, which the tab then uses for all runs. Without a summary it collects the settings of every run.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from worldmodel.training.distributed import mean_over_ranks
from worldmodel.utils.compatibility import flatten
from worldmodel.utils.errors import UserError
from worldmodel.utils.extras import extra
from worldmodel.utils.hardware import flop_counter

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def open_log(folder: Path, purge_step: int | None = None) -> SummaryWriter:
    """A writer of a TensorBoard log, without what an earlier run has written from step `purge_step` on.

    TensorBoard reads the files of a log in the order of their names. A name has the whole second in which its file was
    made, then the number of the process. So this waits, at most a second, until no older file is of the same second.

    Raises:
        UserError: TensorBoard is not installed.
    """
    with extra("tensorboard"):
        from torch.utils.tensorboard import SummaryWriter
    seconds = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.*")]
    time.sleep(min(max(0, max(seconds, default=0) + 1 - time.time()), 1))
    return SummaryWriter(str(folder), purge_step=purge_step)


def log_settings(writer: SummaryWriter, settings: dict[str, Any]) -> None:
    """Log settings as text and for the HPARAMS tab; the tab leaves out long ones, such as tables of statistics."""
    texts = {k: v if isinstance(v, int | float) else str(v) for k, v in flatten(settings).items()}
    writer.add_text("config", "```\n" + "\n".join(f"{k}: {v}" for k, v in texts.items()) + "\n```")
    from torch.utils.tensorboard.summary import hparams

    _, start, _ = hparams({k: v for k, v in texts.items() if len(str(v)) <= 40}, {})
    writer._get_file_writer().add_summary(start, 0)


@contextmanager
def log_on_disk(folder: Path) -> Iterator[None]:
    """Context for writing a TensorBoard log: `UserError` if it cannot be written, for example on a full disk.

    The error occurs in a thread of TensorBoard, which would print a traceback before it passes the error on.
    """
    usual, found = threading.excepthook, []

    def note(args: threading.ExceptHookArgs) -> None:
        if isinstance(args.exc_value, OSError) and type(args.thread).__name__ == "_AsyncWriterThread":
            found.append(args.exc_value)
        else:
            usual(args)

    threading.excepthook = note
    try:
        yield
    except OSError as error:
        if not any(error is one for one in found):
            raise
        raise UserError(
            f"the log in {folder} could not be written ({error.strerror}), but the last checkpoint is intact; free "
            "some space and run the same command again, but not with --restart"
        ) from error
    finally:
        threading.excepthook = usual


class Meter:
    """Means of the scalars since the last log, clips per second, and the fraction of the machine's peak FLOP/s."""

    def __init__(self, peak_flops: float) -> None:
        self.peak_flops, self.flops, self.is_warm = peak_flops, 0, False
        """Peak FLOP/s of the machine, operations of one step once it is counted, and whether a step has run before."""
        self.reset()

    @contextmanager
    def count_flops(self) -> Iterator[None]:
        """Context of every step. The second step is counted, which slows it a little; the first one may compile."""
        with flop_counter() if self.is_warm and not self.flops else nullcontext() as count:
            yield
        self.is_warm = True
        if count is not None:
            self.flops = count.get_total_flops()

    def count_flops_of(self, work: Callable[[], object], scale: float) -> None:
        """Count the operations of some work instead of the second step; a step has `scale` times as many."""
        with flop_counter() as count:
            work()
        self.flops = round(count.get_total_flops() * scale)

    def reset(self) -> None:
        """Start a new interval."""
        self.sums: dict[str, Tensor] = {}
        self.steps, self.clips, self.since = 0, 0, time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context whose time is not counted, for evaluations."""
        start = time.monotonic()
        yield
        self.since += time.monotonic() - start

    def add(self, values: dict[str, Tensor], clips: int) -> None:
        """Add the scalars of a step of `clips` clips."""
        self.sums = {k: v + self.sums.get(k, 0) for k, v in values.items()}
        self.steps, self.clips = self.steps + 1, self.clips + clips

    def log(self, writer: SummaryWriter | None, step: int, rate: float) -> float:
        """Log the means of the interval over all ranks and start a new one; returns the mean loss.

        Only the first rank has a writer.
        """
        means = mean_over_ranks({k: float(v) / self.steps for k, v in self.sums.items()})
        seconds = time.monotonic() - self.since
        speed = {
            "learning_rate": rate,
            "clips_per_second": self.clips / seconds,
            "share_of_peak": self.flops * self.steps / seconds / self.peak_flops,
        }
        if writer is not None:
            for name, value in (means | speed).items():
                writer.add_scalar(f"train/{name}", value, step)
        self.reset()
        return means["loss"]


class StopSignal:
    """Turns SIGINT and SIGTERM into a flag, so that a step is never interrupted; a second signal raises."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> StopSignal:
        self.previous_handlers = {}
        if threading.current_thread() is threading.main_thread():
            self.previous_handlers = {s: signal.signal(s, self._request) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _request(self, *_: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)
