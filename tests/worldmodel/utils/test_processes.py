"""New processes return results and errors, and a Ctrl-C ends all of them without a traceback."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from worldmodel.utils.errors import UserError
from worldmodel.utils.processes import in_new_process

ROOT = Path(__file__).parents[3]
SCRIPT = """
import multiprocessing, os, signal, sys, time
from worldmodel.utils.processes import ctrl_c_later, end_at_ctrl_c, in_new_process

if __name__ == "__main__":  # whatever the tests before have left
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, signal.default_int_handler)

if __name__ == "__mp_main__":  # the new process imports
    print("importing", os.getpid(), flush=True)
    time.sleep(0.5)

def rank():
    end_at_ctrl_c()
    time.sleep(20)

def measure():
    in_new_process(time.sleep, 20)

def launch():
    with ctrl_c_later():
        process = multiprocessing.get_context("spawn").Process(target=rank)
        process.start()
        try:
            for _ in range(2000):
                time.sleep(0.01)
        finally:
            process.join()
            print("status", process.exitcode)

if __name__ == "__main__":
    try:
        {call}()
    except KeyboardInterrupt:
        print("interrupted")
"""


def test_results_and_errors_come_back() -> None:
    assert in_new_process(pow, 2, 5) == 32
    with pytest.raises(ValueError, match="invalid literal"):
        in_new_process(int, "x")
    with pytest.raises(UserError, match="a process was killed, perhaps because memory ran out; use smaller sizes"):
        in_new_process(os._exit, 1)


@pytest.mark.parametrize(("call", "said"), [("measure", ["interrupted"]), ("launch", ["status 130", "interrupted"])])
def test_ctrl_c_while_a_process_is_started_ends_both_in_silence(call: str, said: list[str], tmp_path: Path) -> None:
    """The Ctrl-C of a terminal reaches all processes."""
    (tmp_path / "script.py").write_text(SCRIPT.replace("{call}", call))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path, env=env, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout is not None
        (pid,) = re.findall(r"importing (\d+)", process.stdout.readline())
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate()
    assert (out.splitlines(), err, process.returncode) == (said, "", 0)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
