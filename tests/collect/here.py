"""A pool's work without its processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any


class Here:
    """Does in this process what a pool does in others, which take seconds to start; `SystemExit` is a death."""

    def __init__(self, make: Callable[[], Any], workers: int, say: object) -> None:
        self.make = make

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, tasks: Iterable[Any], give_up: Callable[[Any, str], Any] | None = None) -> Iterator[Any]:
        with self.make() as run:
            for task in tasks:
                try:
                    result = run(task)
                except SystemExit as death:
                    assert give_up is not None
                    result = give_up(task, str(death))
                yield result
