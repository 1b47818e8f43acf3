"""Engines, their folders and their shared memory go with the process that had them, however it ends."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from envs import engine_cleanup
from envs.engine_cleanup import MARK, SHARED, engines, remove_leftovers

ROOT = Path(__file__).parents[2]
ENGINE = """
import os, signal
from envs.vizdoom import VizdoomFrames
env = VizdoomFrames("basic")
env.reset(seed=0)
print(env.folder, (env.folder / "worldmodel.lock").read_text(), flush=True)
"""


def wait_for(gone: Path) -> None:
    """Until a folder is gone; the test's own time limit ends it."""
    while gone.exists():
        time.sleep(0.05)


@pytest.mark.parametrize(
    "end",
    [
        "os.kill(os.getpid(), signal.SIGKILL)",
        "os.killpg(0, signal.SIGKILL)",
        "os.kill(os.getpid(), signal.SIGTERM)",
        "os._exit(0)",
        "raise RuntimeError",
        "",
    ],
    ids=["killed", "killed_with_its_engine", "terminated", "left", "failed", "ended"],
)
def test_nothing_outlives_its_process(end: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", ENGINE + end],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    folder, shared = run.stdout.split()
    assert Path(folder).parent == tmp_path, run.stderr
    wait_for(Path(folder))
    assert not list(engines(Path(folder)))
    assert not list(tmp_path.iterdir())
    assert re.fullmatch(r"\w{10}", shared)
    assert not [kind for kind in SHARED if Path("/dev/shm", kind + shared).exists()]


def test_a_lock_may_outlive_the_pipe(tmp_path: Path) -> None:
    """A process with many threads that is killed closes its files in any order."""
    folder = tmp_path / "vizdoom-ours"
    folder.mkdir()
    watcher = subprocess.Popen([sys.executable, engine_cleanup.__file__, str(tmp_path)], stdin=subprocess.PIPE)
    with open(folder / MARK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        watcher.stdin.close()  # type: ignore[union-attr]
        time.sleep(0.5)
        assert folder.exists() and watcher.poll() is None
    wait_for(folder)
    watcher.kill()
    watcher.wait()


def test_closing_one_engine_leaves_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import sys
from envs.vizdoom import VizdoomFrames
from envs.engine_cleanup import engines
a, b = VizdoomFrames("basic"), VizdoomFrames("basic")
for env in (a, b):
    env.reset(seed=0)
    assert len(list(engines(env.folder))) == 1
a.close()
a.close()
assert not a.folder.exists() and not list(engines(a.folder))
b.step(1)
assert b.folder.exists()
del b
"""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert not list(tmp_path.iterdir())


def test_the_next_start_sweeps_what_a_dead_watcher_left(tmp_path: Path) -> None:
    """Of four folders one has a dead owner; its engine still runs."""
    dead, alive, foreign, linked = (tmp_path / f"vizdoom-{name}" for name in ("dead", "alive", "foreign", "linked"))
    for folder in (dead, alive, foreign):
        folder.mkdir()
        (folder / "_vizdoom").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / MARK).touch()
    linked.symlink_to(tmp_path / "elsewhere")
    memory = [Path("/dev/shm", f"{kind}{name}{os.getpid()}") for kind in SHARED for name in ("noted", "running")]
    for path in memory:
        path.touch()
    (dead / MARK).write_text(f"noted{os.getpid()}")
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    of_dead, of_alive = (
        subprocess.Popen([*sleep, "-config", f"{f}/vizdoom.ini", "+viz_instance_id", f"running{os.getpid()}", "+x"])
        for f in (dead, alive)
    )
    with open(alive / MARK, "w") as mark:
        fcntl.flock(mark, fcntl.LOCK_EX)
        while not list(engines(dead)) or not list(engines(alive)):
            time.sleep(0.05)  # until both programs have begun
        remove_leftovers(tmp_path)
        assert of_dead.wait() == -signal.SIGKILL
        assert of_alive.poll() is None
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("elsewhere", "vizdoom-alive", "vizdoom-foreign", "vizdoom-linked")
    ]
    assert (tmp_path / "elsewhere" / MARK).exists()
    assert not [path for path in memory if path.exists()]
    of_alive.kill()
    of_alive.wait()
