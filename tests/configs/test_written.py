"""The last line of a script: what it wrote, and the command that comes next, with the flags that were given."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_type_hints

import pytest

from configs import SECTIONS, command
from configs.scripts import PART
from configs.written import Written, last_line, make_dream, recorded
from tests.configs.test_help import ROOT, SCRIPTS
from tests.tiny import VQVAE_SETTINGS
from train import tokens, vqvae

DEMO = {"run": "runs/demo", "vqvae": {}, "tokens": {}, "prior": {}}


@pytest.mark.parametrize(
    ("written", "presets", "line"),
    [
        (Written("a", "", {}), {}, "written: a"),
        (recorded(Path("runs/demo/data.zarr")), {"demo": DEMO}, "a.zarr (next: python train/vqvae.py --preset demo)"),
        (
            recorded(Path("runs/mine/data.zarr")),
            {"demo": DEMO},
            "(next: python train/vqvae.py --preset demo --run runs/mine)",
        ),
        (recorded(Path("runs/x/data.zarr")), {"few": {"collect": {}}}, "(next: python train/vqvae.py --run runs/x)"),
        (recorded(Path("many/1.zarr")), {}, "(next: python train/vqvae.py --data many/1.zarr)"),
        (recorded("s3://b/data.zarr"), {}, "(next: python train/vqvae.py --data s3://b/data.zarr)"),
        (
            Written("a", "train/prior.py", {"run": Path("runs/demo")}, {"actions": True, "classes": False}),
            {"demo": DEMO},
            "written: a (next: python train/prior.py --preset demo)",
        ),
        (
            Written("a", "train/prior.py", {"run": Path("my runs/a"), "init_from": None}, {"actions": True}),
            {},
            "written: a (next: python train/prior.py --run 'my runs/a' --actions)",
        ),
        (Written("a", make_dream(Path("runs/a"))), {}, '(next: import envs; gymnasium.make("VideoGPTDream-v0", model='),
    ],
)
def test_the_line_has_what_was_given(
    written: Written, presets: dict, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert line in last_line(written, presets)
    monkeypatch.setenv(PART, "1")
    assert last_line(written, presets) == f"written: {written.path}", "the script that runs it says what comes next"


def test_the_line_speaks_as_the_reader_does(monkeypatch: pytest.MonkeyPatch) -> None:
    written = recorded(Path("runs/demo/data.zarr"))
    for program, line in (
        ("worldmodel collect gym", "worldmodel train vqvae --preset demo"),
        ("collect/gym.py", "python train/vqvae.py --preset demo"),
        ("/usr/bin/worldmodel", "python train/vqvae.py --preset demo"),
    ):
        monkeypatch.setattr(sys, "argv", [program])
        assert last_line(written, {"demo": DEMO}) == f"written: runs/demo/data.zarr (next: {line})"


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_says_what_it_wrote(script: str) -> None:
    """And what comes next is a script whose section of a preset has its name."""
    if script in ("rollout.play", "rollout.show"):  # they write nothing
        return
    assert get_type_hints(importlib.import_module(script).main)["return"] is Written
    source = (ROOT / script.replace(".", "/")).with_suffix(".py").read_text()
    for following in re.findall(r'"((?:collect|train|rollout)/\w+\.py)"', source.partition("def main(")[2]):
        assert (ROOT / following).exists() and Path(following).stem in (*SECTIONS, "pushing"), following


def test_two_stages_end_with_the_line(
    tmp_path: Path, toy_fill: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    toy_fill(tmp_path / "mine" / "data.zarr", 10)
    stage = {"model": {**VQVAE_SETTINGS, "frame_size": [16, 16], "stride": [1, 4, 4]}, "trainer": {"steps": 1}}
    (tmp_path / "toy.yaml").write_text(json.dumps({"run": "runs/toy", "vqvae": stage, "tokens": None}))
    for module, line in (
        (vqvae, "written: mine/vqvae (next: python train/tokens.py --preset toy.yaml --run mine)"),
        (tokens, "written: mine/tokens.zarr (next: python train/prior.py --run mine --actions)"),
    ):
        monkeypatch.setattr(sys, "argv", ["x.py", "--preset", "toy.yaml", "--run", "mine"])
        command(module.main, module.__name__.rpartition(".")[2])
        assert capsys.readouterr().out.splitlines()[-1] == line
