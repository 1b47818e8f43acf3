"""One process at a time in a folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from worldmodel.utils.errors import UserError
from worldmodel.utils.lock import folder_lock

ROOT = Path(__file__).resolve().parents[3]
HOLD = """
import sys, time
from pathlib import Path
from worldmodel.utils.lock import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_told_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, folder], cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"held\n"
            with pytest.raises(UserError, match=r"run is being written by another process; wait for it, stop it, or"):
                folder_lock(folder).__enter__()
        finally:
            process.kill()
    with folder_lock(folder):
        pass


def test_it_is_let_go_after_an_error_too(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), folder_lock(tmp_path):
            raise ZeroDivisionError
    with folder_lock(tmp_path), folder_lock(tmp_path, "other.lock"):
        pass


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("a.1234.part", "a.json.12.part", "a", "part"):
        (tmp_path / name).touch()
    with folder_lock(tmp_path, parts="a.*.part"):
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "part", "train.lock"]
