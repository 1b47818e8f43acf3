"""The parts of `make gpu` run with small models, resume, and stop when the time is over."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_type_hints

import pytest

from configs import parse
from tests.scripts import ROOT, run_script
from train import benchmark, commands, gpu, gpu_parts
from worldmodel.utils.errors import UserError

SMALL = gpu.Args(device="cpu", small=True, minutes=5)


def quick(name: str, code: str) -> gpu_parts.Part:
    """A part that runs some Python, which writes its result to sys.argv[1]."""
    return gpu_parts.Part(name, f'-c "{code}" {{out}}', lambda path: [{"what": name, "result": path.read_text()}])


COUNT = "import sys, pathlib; p = pathlib.Path(sys.argv[1]); p.write_text(p.read_text() + 'x' if p.exists() else 'x')"


def test_parts_run_once_and_those_without_time_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, run_part = quick("slow", "import time; time.sleep(60)"), gpu.run_part
    assert run_part(replace(SMALL, out=tmp_path), slow, 0.2) == "out of time"
    monkeypatch.setattr(gpu, "list_parts", lambda args: [quick("first", COUNT), slow])
    monkeypatch.setattr(
        gpu, "run_part", lambda args, part, left: "out of time" if part == slow else run_part(args, part, left)
    )
    gpu.main(replace(SMALL, out=tmp_path))
    assert "| first | x |" in (tmp_path / "table.md").read_text()
    assert json.loads((tmp_path / "done.json").read_text())["slow"] == gpu.LATE
    assert "| slow | out of time |" in (tmp_path / "table.md").read_text()
    monkeypatch.setattr(
        gpu, "list_parts", lambda args: [quick("first", COUNT), quick("slow", COUNT), quick("last", COUNT)]
    )
    gpu.main(replace(SMALL, out=tmp_path))
    text = (tmp_path / "table.md").read_text()
    assert all(f"| {name} | x |" in text for name in ("first", "slow", "last")), "the first one is not run again"
    gpu.main(replace(SMALL, out=tmp_path / "it's here"))  # a path with a space and an apostrophe
    gpu.main(replace(SMALL, out=tmp_path / "late", minutes=1e-9))
    assert "| last | not run |" in (tmp_path / "late" / "table.md").read_text()
    (tmp_path / "done.json").write_text("[")
    with pytest.raises(UserError, match=r"done\.json is damaged; delete it, and every part runs again"):
        gpu.main(replace(SMALL, out=tmp_path))


def test_a_part_that_takes_too_long_comes_last_in_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, ran = ["first", "slow", "needs slow", "last"], []
    every = [replace(quick(name, COUNT), needs="slow" * name.startswith("needs")) for name in names]
    monkeypatch.setattr(gpu, "list_parts", lambda args: every)
    clock = iter([0.0, 1.0, 2.0, 61.0, 62.0])
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: next(clock, 70.0)))
    run_part = gpu.run_part

    def run(args: gpu.Args, part: gpu_parts.Part, left: float) -> str:
        ran.append(part.name)
        return gpu.LATE if ran == ["first", "slow"] else run_part(args, part, left)

    monkeypatch.setattr(gpu, "run_part", run)
    args = replace(SMALL, out=tmp_path, minutes=1)
    gpu.main(args)
    gpu.main(args)
    assert ran == ["first", "slow", "last", "slow", "needs slow"]
    text = (tmp_path / "table.md").read_text()
    assert [row.split("|")[1].strip() for row in text.splitlines()[4:]] == names, "the table keeps its order"


def test_parts_that_take_too_long_come_in_turn() -> None:
    a, b, c, d = (quick(name, COUNT) for name in "abcd")
    every = [a, b, replace(c, needs="b"), d]
    assert gpu.late_last(every, {"b": gpu.LATE, "d": "made", "a": gpu.LATE}) == [d, b, a, every[2]]


def test_what_does_not_stop_in_time_is_killed_with_what_it_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both processes hold a pipe open. It ends when neither is left."""
    stubborn = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.fork(); os.write(1, b'x'); "
        "time.sleep(90)"
    )
    monkeypatch.setattr(commands, "GRACE", 0.2)
    begin, (there, here) = time.monotonic(), os.pipe()
    with open(here, "w") as output, pytest.raises(subprocess.TimeoutExpired):
        commands.run_python(["-c", stubborn], 10, output)
    with open(there) as pipe:
        assert pipe.read() == "xx"
    assert time.monotonic() - begin < 80


def test_a_part_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    args, broken = replace(SMALL, out=tmp_path), quick("broken", "raise SystemExit(2)")
    waits = replace(quick("waits", COUNT), needs="broken")
    monkeypatch.setattr(gpu, "list_parts", lambda args: [broken, waits, quick("last", COUNT)])
    with pytest.raises(UserError, match=r"^broken failed; the errors are above, .*results are in .*table\.md\. Fix"):
        gpu.main(args)
    assert "broken failed" in capfd.readouterr().err
    text = (tmp_path / "table.md").read_text()
    assert all(f"| {row} |" in text for row in ("broken | failed", "waits | not run", "last | x"))
    monkeypatch.setattr(
        gpu, "list_parts", lambda args: [quick("broken", COUNT), waits, quick("last", "raise SystemExit(2)")]
    )
    with pytest.raises(UserError, match=r"^last failed"):
        gpu.main(args)
    text = (tmp_path / "table.md").read_text()
    assert all(f"| {row} |" in text for row in ("broken | x", "waits | x", "last | failed"))
    assert "last" not in json.loads((tmp_path / "done.json").read_text()), "its result of other flags is gone"


def test_every_part_runs_with_small_models_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the tests marked gpu, which are skipped here like everywhere without one. All run in this process."""

    def run_here(line: Sequence[str], *_: object) -> int:
        at = next(i for i, word in enumerate(line) if word.endswith(".py"))
        run_script(str(Path(line[at]).relative_to(ROOT)), line[at + 1 :])
        return 0

    monkeypatch.setattr(gpu, "run_python", run_here)
    for module in ("train.benchmark", "rollout.benchmark"):
        monkeypatch.setattr(f"{module}.machine_rates", lambda *_: {"matmul": 1e12, "copy": 1e10})
    monkeypatch.setattr(
        "train.benchmark.measure_in_process",
        lambda task, checkout, args: benchmark.measure(task, checkout, args.seconds, args.allocator),
    )
    args = replace(SMALL, out=tmp_path)
    parts = [part for part in gpu_parts.list_parts(args) if part.name != "tests"]
    for part in parts:
        assert gpu.run_part(args, part, 120) == "done"
        rows = part.rows(gpu.result_path(args, part))
        assert all(row.get("result") or row.get("memory") for row in rows), part
        assert bool(rows) != (part.rows is gpu_parts.no_rows), part
    ahead = gpu_parts.training_rows(tmp_path / "sampling_ahead.json")
    assert "sampling_ahead: sample, ahead, batch 2, float32" in [row["what"] for row in ahead]
    units = [
        (row["what"].split(",")[0], row["result"].split()[1::2])
        for row in gpu_parts.training_rows(tmp_path / "tiny.json")
    ]
    assert units[:2] == [("tiny: vqvae", ["clips/s"]), ("tiny: prior", ["clips/s,", "codes/s"])]
    row = next(
        row for row in json.loads((tmp_path / "tiny.json").read_text())["rows"] if row["what"].startswith("prior")
    )
    assert row["rate"] == pytest.approx(row["clips_per_second"] * 2 * 4 * 4), "codes of a clip"
    wide = [row["what"] for row in gpu_parts.dream_rows(tmp_path / "frames.json")]
    assert wide == ["dream, 1 lanes, 256 codes per frame, float32"]
    (tmp_path / "tests.txt").write_text("...\n==== 3 passed, 9 deselected in 2 s ====\n")
    assert gpu_parts.test_rows(tmp_path / "tests.txt")[0]["result"] == "3 passed, 9 deselected in 2 s"


def test_the_full_parts_are_commands_that_their_scripts_take() -> None:
    for part in gpu_parts.list_parts(replace(SMALL, small=False)):
        script, *flags = shlex.split(part.line.format(out="out", folder="folder"))
        if script != "-m":
            main = importlib.import_module(script.removesuffix(".py").replace("/", ".")).main
            parse(get_type_hints(main)["args"], Path(script).stem, flags)
