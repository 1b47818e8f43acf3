"""New processes that a Ctrl-C does not reach: the process that has started them ends them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from worldmodel.utils.errors import UserError

Result = TypeVar("Result")


@contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Context in which processes are started that ignore Ctrl-C, which would interrupt even their imports."""
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def in_new_process(work: Callable[..., Result], *args: Any) -> Result:
    """The result of `work(*args)` in a new process. Its errors are raised here.

    Raises:
        UserError: The process was killed.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(theirs, work, args), daemon=True)
    with deaf_to_ctrl_c():
        process.start()
    theirs.close()  # so that its death ends the pipe
    try:
        error, result = ours.recv()
    except EOFError:
        raise UserError("a process was killed, perhaps because memory ran out; use smaller sizes") from None
    finally:
        process.kill()
        process.join()
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]


def kill_group(process: BaseProcess | subprocess.Popen[bytes]) -> None:
    """Kill a process that leads a group, and where the system has process groups also what it has started."""
    assert process.pid is not None
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    if isinstance(process, subprocess.Popen):
        process.wait()
    else:
        process.join()


@contextmanager
def ctrl_c_later() -> Iterator[None]:
    """Context in which processes are started that get Ctrl-C only after `end_at_ctrl_c`; this one gets it as usual.

    A thread takes the signal for this process, because the processes inherit what the calling thread blocks.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # when it starts, it unblocks the signal
    over = threading.Event()
    threading.Thread(target=over.wait, daemon=True).start()
    usual = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, usual)
        over.set()


def end_at_ctrl_c() -> None:
    """End this process at a Ctrl-C, also one that came while it was started, without a traceback."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _send_result(connection: Connection, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        connection.send((None, work(*args)))
    except Exception as error:
        connection.send((error, None))
