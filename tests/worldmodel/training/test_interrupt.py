"""Ctrl-C and SIGTERM wait for a commit."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.worldmodel.data.test_store import WORLD, assert_holds, episode
from worldmodel.data.writer import StoreWriter


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_commit_is_not_cut_in_two(number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = StoreWriter._write, list[bool]()

    def asked_to_stop(writer: StoreWriter, *args: Any) -> None:
        os.kill(os.getpid(), number)
        write(writer, *args)
        written.append(True)

    usual = signal.signal(number, signal.default_int_handler)
    try:
        with StoreWriter(tmp_path, WORLD, {"epsilon": 0.2}) as writer:
            writer.append(episode(0, 10), progress=0)
            monkeypatch.setattr(StoreWriter, "_write", asked_to_stop)
            with pytest.raises(KeyboardInterrupt):
                writer.commit()
            monkeypatch.setattr(StoreWriter, "_write", write)
            assert written == [True]
    finally:
        signal.signal(number, usual)
    assert_holds(tmp_path, [10])
