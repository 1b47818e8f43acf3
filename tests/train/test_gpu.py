"""The parts of `make gpu` run with small models, resume, and stop when the time is over."""

from __future__ import annotations

import importlib
import json
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import get_type_hints

import pytest

from configs import parse
from train import gpu
from worldmodel.utils.errors import UserError

SMALL = gpu.Args(device="cpu", small=True, minutes=5)


def quick(name: str, code: str) -> gpu.Part:
    """A part that runs some Python, which writes its result to sys.argv[1]."""
    return gpu.Part(name, f'-c "{code}" {{out}}', lambda path: [{"what": name, "result": path.read_text()}])


COUNT = "import sys, pathlib; p = pathlib.Path(sys.argv[1]); p.write_text(p.read_text() + 'x' if p.exists() else 'x')"


def test_parts_run_once_and_those_without_time_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, run_part = quick("slow", "import time; time.sleep(60)"), gpu.run_part
    assert run_part(replace(SMALL, out=tmp_path), slow, 0.2) == "out of time"
    monkeypatch.setattr(gpu, "parts", lambda args: [quick("first", COUNT), slow])
    monkeypatch.setattr(
        gpu, "run_part", lambda args, part, left: "out of time" if part == slow else run_part(args, part, left)
    )
    gpu.main(replace(SMALL, out=tmp_path))
    assert "| first | x |" in (tmp_path / "table.md").read_text()
    assert json.loads((tmp_path / "done.json").read_text()).keys() == {"first"}
    assert "| slow | out of time |" in (tmp_path / "table.md").read_text()
    monkeypatch.setattr(gpu, "parts", lambda args: [quick("first", COUNT), quick("slow", COUNT), quick("last", COUNT)])
    gpu.main(replace(SMALL, out=tmp_path))
    text = (tmp_path / "table.md").read_text()
    assert all(f"| {name} | x |" in text for name in ("first", "slow", "last")), "the first one is not run again"
    gpu.main(replace(SMALL, out=tmp_path / "it's here"))  # a path with a space and an apostrophe
    gpu.main(replace(SMALL, out=tmp_path / "late", minutes=1e-9))
    assert "| last | not run |" in (tmp_path / "late" / "table.md").read_text()
    (tmp_path / "done.json").write_text("[")
    with pytest.raises(UserError, match=r"done\.json is damaged; delete it, and every part runs again"):
        gpu.main(replace(SMALL, out=tmp_path))


def test_a_part_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    args, broken = replace(SMALL, out=tmp_path), quick("broken", "raise SystemExit(2)")
    waits = replace(quick("waits", COUNT), needs="broken")
    monkeypatch.setattr(gpu, "parts", lambda args: [broken, waits, quick("last", COUNT)])
    with pytest.raises(UserError, match=r"^broken failed; the errors are above, .*results are in .*table\.md\. Fix"):
        gpu.main(args)
    assert "broken failed" in capfd.readouterr().err
    text = (tmp_path / "table.md").read_text()
    assert all(f"| {row} |" in text for row in ("broken | failed", "waits | not run", "last | x"))
    monkeypatch.setattr(
        gpu, "parts", lambda args: [quick("broken", COUNT), waits, quick("last", "raise SystemExit(2)")]
    )
    with pytest.raises(UserError, match=r"^last failed"):
        gpu.main(args)
    text = (tmp_path / "table.md").read_text()
    assert all(f"| {row} |" in text for row in ("broken | x", "waits | x", "last | failed"))
    assert "last" not in json.loads((tmp_path / "done.json").read_text()), "its result of other flags is gone"


def test_every_part_runs_with_small_models_on_a_cpu(tmp_path: Path) -> None:
    """But for the tests marked gpu, which are skipped here like everywhere without one."""
    args = replace(SMALL, out=tmp_path)
    parts = [part for part in gpu.parts(args) if part.name != "tests"]
    chain = [part for part in parts if part.needs or part.name == "digits"]  # one after another

    def run(some: list[gpu.Part]) -> list[str]:
        return [gpu.run_part(args, part, 120) for part in some]

    with ThreadPoolExecutor(2) as two_at_a_time:
        ended = two_at_a_time.map(run, [chain, [part for part in parts if part not in chain]])
        assert all(how == "done" for some in ended for how in some)
    for part in parts:
        rows = part.rows(gpu.result_path(args, part))
        assert all(row.get("result") or row.get("memory") for row in rows), part
        assert bool(rows) != (part.rows is gpu.no_rows), part
    ahead = gpu.training_rows(tmp_path / "sampling_ahead.json")
    assert "sampling_ahead: sample, ahead, batch 2, float32" in [row["what"] for row in ahead]
    units = [(row["what"].split(",")[0], row["result"].split()[1]) for row in gpu.training_rows(tmp_path / "tiny.json")]
    assert units[:2] == [("tiny: vqvae", "clips/s"), ("tiny: prior", "codes/s")]
    (tmp_path / "tests.txt").write_text("...\n==== 3 passed, 9 deselected in 2 s ====\n")
    assert gpu.test_rows(tmp_path / "tests.txt")[0]["result"] == "3 passed, 9 deselected in 2 s"


def test_the_full_parts_are_commands_that_their_scripts_take() -> None:
    for part in gpu.parts(replace(SMALL, small=False)):
        script, *flags = shlex.split(part.line.format(out="out", folder="folder"))
        if script != "-m":
            main = importlib.import_module(script.removesuffix(".py").replace("/", ".")).main
            parse(get_type_hints(main)["args"], Path(script).stem, flags)
