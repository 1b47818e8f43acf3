"""What the readers' tests share."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from multiprocessing import forkserver
from types import SimpleNamespace

import pytest

from tests.collect.here import Here
from tests.ranks import CONTEXT


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read in this process."""
    monkeypatch.setattr("collect.files.WorkerPool", Here)


@pytest.fixture(scope="module")
def forked() -> Iterator[None]:
    """From here to the end of the module, pools fork their processes from one that has imported torch.

    That takes less time than spawning them.
    """
    forkserver.ensure_running()  # here, because a pool ignores Ctrl-C while it starts processes
    how = SimpleNamespace(get_context=lambda _: CONTEXT, parent_process=multiprocessing.parent_process)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("collect.pool.multiprocessing", how)
        yield
