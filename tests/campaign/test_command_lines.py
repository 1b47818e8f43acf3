"""The campaign's command lines: a few of them, and that its judge finds what is planted."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.campaign import command_lines, lines
from tests.campaign.command_lines import judge
from tests.campaign.forks import SCRIPTS, End, Forks
from tests.campaign.lines import Line

LINE = Line("train/vqvae.py", [], b"", doomed=False)


def end(status: int, output: str = "", interrupted: bool = False, killed: bool = False) -> End:
    return End(status, interrupted, killed, output)


def test_lines_end_in_a_sentence_or_do_what_they_ask() -> None:
    tally = command_lines.run(3, 0, least=8)
    assert tally.clean, "\n".join(tally.faults)
    assert tally.counts.total() >= 8


def test_lines_are_drawn_for_every_script_and_from_the_seed() -> None:
    assert lines.WORKS.keys() == set(SCRIPTS)
    drawn = [lines.line(np.random.default_rng([0, i])) for i in range(400)]
    assert {line.script for line in drawn} == set(SCRIPTS)
    assert drawn[:20] == [lines.line(np.random.default_rng([0, i])) for i in range(20)]
    assert 50 < sum(line.doomed for line in drawn) < 350


def test_a_child_ends_as_its_script_does(tmp_path: Path) -> None:
    with Forks() as forks:
        for code, status, verdict in (
            ("open('x', 'w')", 0, "right"),
            ("raise SystemExit(2)", 2, "sentence"),
            ("1 / 0", 1, "traceback"),
            ("import os; os.abort()", -6, "traceback"),
            ("b'x' * 2**33", 1, "traceback"),
        ):
            ended = forks.run("", [code], tmp_path, 20)
            assert (ended.status, judge(LINE, ended, [])[0]) == (status, verdict), code
        ended = forks.run("", ["import time; time.sleep(60)"], tmp_path, 0.1)
        assert ended.interrupted and "KeyboardInterrupt" in ended.output
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_is_planted_is_found(tmp_path: Path) -> None:
    doomed = Line("train/vqvae.py", ["--trainer.max-grad-norm", "nan"], b"", doomed=True)
    assert judge(doomed, end(2, "error: no"), [])[0] == "sentence"
    assert judge(doomed, end(0), [])[0] == "silent", "no script can take it"
    assert judge(LINE, end(0), [])[0] == "right"
    assert judge(LINE, end(130, interrupted=True), [])[0] == "right"
    assert judge(LINE, end(130), [])[0] == "traceback", "nobody has interrupted it"
    assert judge(LINE, end(1, "Traceback (most recent call last)", interrupted=True), [])[0] == "traceback"
    assert judge(LINE, end(-9, interrupted=True, killed=True), [])[0] == "hang"
    for name, number in (("fine", 1.0), ("nan", np.nan)):
        save_file({"weight": torch.tensor([number])}, tmp_path / f"{name}.safetensors")
    (tmp_path / "config.json").write_text('{"hysteresis": NaN}')
    assert judge(LINE, end(0), [tmp_path / "fine.safetensors"])[0] == "right"
    for name in ("nan.safetensors", "config.json"):
        assert judge(LINE, end(0), [tmp_path / name])[0] == "silent"


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_flags(script: str) -> None:
    known = dict(lines.flags(importlib.import_module(lines.module(script)).Args()))
    assert {word[2:] for word in lines.WORKS[script].split() if word.startswith("--")} <= known.keys()
