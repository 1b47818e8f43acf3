"""Command lines for every script, drawn from its own settings with hostile values, paths and presets.

Each runs in a folder of its own, on a copy of a toy run. One that is doomed and yet ends well is silent, and so is
one that ends well and has written a number that is not finite. A script that works until its time is up, and
ends at a Ctrl-C, is right: it was asked for work that takes longer.
"""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load

from tests.campaign.forks import End, Forks
from tests.campaign.harness import Tally, Verdict, attempts, judge_exit
from tests.campaign.lines import Line, inputs, line

LIMIT, LONG = 6.0, 600.0
"""Seconds of a line, and of the toy run."""


def run(seconds: float, seed: int, least: int = 1) -> Tally:
    tally = Tally("command_lines")
    with tempfile.TemporaryDirectory() as name:
        given = Path(name) / "given"
        inputs(given)
        env = {"MINARI_DATASETS_PATH": f"{name}/minari", "BATTLE2_WAD": f"{name}/none", "TMPDIR": name}
        with Forks(**env) as forks:
            toy = f"from pathlib import Path; from tests.campaign import toy; toy.make(Path({str(given / 'run')!r}))"
            end = forks.run("", [toy], given, LONG)
            assert end.status == 0, end.output
            for number in attempts(seconds, least):
                drawn = line(np.random.default_rng([seed, number]))
                verdict, detail = attempt(forks, drawn, given, Path(name) / "work")
                text = f"{drawn.script} {shlex.join(drawn.argv)[:600]} {drawn.preset[:80]!r}"
                tally.add(verdict, f"({seed}, {number}) {text}", detail)
    return tally


def attempt(forks: Forks, drawn: Line, given: Path, work: Path) -> tuple[Verdict, str]:
    """Run a line in a fresh folder."""
    shutil.copytree(given, work)
    (work / "x.yaml").write_bytes(drawn.preset)
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*")}
    try:
        end = forks.run(drawn.script, drawn.argv, work, LIMIT)
        new = [path for path in work.rglob("*") if before.get(path) != path.stat().st_mtime_ns]
        return judge(drawn, end, new)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def judge(drawn: Line, end: End, new: list[Path]) -> tuple[Verdict, str]:
    """What came of a line that ended so and wrote these files."""
    if end.killed:
        return "hang", end.output
    status = 0 if end.interrupted and end.status == 130 else end.status
    refused = not drawn.doomed or end.interrupted
    return judge_exit(status, end.output, lambda: refused and all(finite(path) for path in new))


def finite(path: Path) -> bool:
    """Has a model or its config, if a file is one, no number that is not finite? A score may be undefined."""
    if path.name == "config.json":
        return not re.search(r"\b(NaN|Infinity)\b", path.read_text())
    if path.suffix == ".safetensors":
        return all(torch.isfinite(tensor).all() for tensor in load(path.read_bytes()).values())
    return True
