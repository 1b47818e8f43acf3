"""A pool of processes that work on tasks in parallel and return results in order.

Processes are spawned, because neither an engine nor torch survives a fork. A process that dies is replaced, and its
task is repeated, so a crash of an engine costs seconds. A task that kills three processes is given up. Each process
leads a process group, so that its engines end with it. If the parent is killed, all processes end at once, even during
a task.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from worldmodel.utils.errors import UserError, one_line
from worldmodel.utils.processes import deaf_to_ctrl_c, kill_group

ATTEMPTS = 3
"""A task is given up after it killed this many processes."""
MAX_AHEAD = 4
"""Results per process that may wait for an earlier task."""
WorkerContext = Callable[[], AbstractContextManager[Callable[[Any], Any]]]
"""A context manager opened in each process; it yields the function that is called with each task."""


class WorkerPool:
    """`with WorkerPool(make, workers) as pool: for result in pool.map(tasks): ...`"""

    def __init__(self, make: WorkerContext, workers: int, say: Callable[[str], None] = print) -> None:
        self._make, self._say = make, say
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[Connection, BaseProcess] = {}
        self._busy: dict[Connection, tuple[int, Any]] = {}
        for _ in range(workers):
            self._start()
        for connection in self._processes:
            self._ready(connection)

    def _start(self) -> Connection:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_worker_main, args=(theirs, self._make), daemon=True)
        with deaf_to_ctrl_c():
            process.start()
        theirs.close()  # so that its death ends the pipe
        self._processes[ours] = process
        return ours

    def _ready(self, connection: Connection) -> None:
        done, why = _receive(connection)
        if not done:
            raise UserError(f"a process could not start ({why}); use fewer --num-workers")

    def map(self, tasks: Iterable[Any], give_up: Callable[[Any, str], Any] | None = None) -> Iterator[Any]:
        """The results of the tasks, in order. The tasks may be an infinite iterator.

        Args:
            tasks: The tasks; they are pickled.
            give_up: Makes the result of a task that is given up, from the task and the reason.

        Raises:
            UserError: A task is given up and `give_up` is None, or a process cannot start.
        """
        self._drain()
        numbered, again = enumerate(tasks), list[tuple[int, Any]]()
        results: dict[int, Any] = {}
        deaths: Counter[int] = Counter()
        position = issued = 0
        while True:
            for connection in self._processes.keys() - self._busy.keys():
                wait_first = issued - position >= MAX_AHEAD * len(self._processes)
                item = again.pop() if again else None if wait_first else next(numbered, None)
                if item is not None:
                    issued = max(issued, item[0] + 1)
                    self._busy[connection] = item
                    _send(connection, item[1])
            if not self._busy:
                return
            ready = wait(list(self._busy))
            for connection in [c for c in self._busy if c in ready]:
                number, task = item = self._busy.pop(connection)
                done, result = _receive(connection)
                if done:
                    results[number] = result
                    continue
                deaths[number] += 1
                if deaths[number] < ATTEMPTS:
                    self._say(f"a process died in task {task} ({result}); another one repeats it")
                    again.append(item)
                elif give_up is not None:
                    results[number] = give_up(task, result)
                else:
                    raise UserError(
                        f"task {task} crashed {ATTEMPTS} processes ({result}); fix the cause, or use another --seed"
                    )
                kill_group(self._processes.pop(connection))
                self._ready(self._start())
            while position in results:
                yield results.pop(position)
                position += 1

    def run_everywhere(self, function: Callable[[], Any]) -> list[Any]:
        """Call a function in all processes at the same time, and return its results."""
        self._drain()
        for connection in self._processes:
            _send(connection, function)
        return [result for done, result in map(_receive, self._processes) if done]

    def _drain(self) -> None:
        """Wait for running tasks whose results are no longer needed."""
        for connection in self._busy:
            _receive(connection)
        self._busy.clear()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        """Let each process finish its task and clean up."""
        for connection in self._processes:
            connection.close()
        for process in self._processes.values():
            process.join(timeout=10)
            kill_group(process)


def _send(connection: Connection, message: Any) -> None:
    with suppress(OSError):  # the other end may be gone; a dead process is noticed when its result is read
        connection.send(message)


def _receive(connection: Connection) -> tuple[bool, Any]:
    """(True, the result), or (False, the reason why the process died)."""
    try:
        kind, value = connection.recv()
    except (EOFError, OSError):
        return False, "killed"
    if kind == "user":
        raise UserError(value)
    return kind == "done", value


def _follow() -> None:
    """Kill this process and the processes it started when the parent dies."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _worker_main(connection: Connection, make: WorkerContext) -> None:
    if hasattr(os, "setpgid"):  # not on Windows, where the processes that this one starts may outlive it
        os.setpgid(0, 0)
        os.set_inheritable(connection.fileno(), False)  # an engine that outlived us would keep the pipe open
    threading.Thread(target=_follow, daemon=True).start()
    try:
        with make() as run:
            connection.send(("done", None))
            while True:
                task = connection.recv()
                connection.send(("done", task() if callable(task) else run(task)))
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent is finished, or gone
        pass
    except UserError as error:
        _send(connection, ("user", str(error)))
    except Exception as error:
        _send(connection, ("died", f"{type(error).__name__}: {one_line(error)}"))
