"""Scripts that run in this process, as their command lines would run them: torch is imported once."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from collect.pool import WorkerPool
from configs import command
from tests.collect.here import Here
from worldmodel.__main__ import MAIN

ROOT = Path(__file__).parents[1]


def section_of(script: str) -> str:
    """The section of a preset that a script reads."""
    ((section, _),) = MAIN.findall((ROOT / script).read_text())
    return str(section)


def run_script(script: str, flags: Sequence[str] = (), pool: type[Here] | type[WorkerPool] = Here) -> None:
    """Run a script, such as "train/vqvae.py", with flags. Its work is not spread over processes, unless `pool` does it.

    Raises:
        SystemExit: As on a command line.
    """
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *map(str, flags)])
        patch.setattr("collect.record.WorkerPool", pool)
        patch.setattr("collect.files.WorkerPool", pool)
        patch.setattr("worldmodel.utils.memory.limit_memory", lambda: None)
        usual = signal.getsignal(signal.SIGTERM)
        try:
            command(module.main, section_of(script))
        finally:
            signal.signal(signal.SIGTERM, usual)
