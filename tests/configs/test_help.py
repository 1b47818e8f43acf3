"""`--help` is short, has every setting, and shows the defaults that a preset gives."""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from configs import parse
from configs.help import docstrings, flattened, short_help

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for folder in ("collect", "train", "rollout")
    for path in (ROOT / folder).glob("*.py")
    if "    command(main" in path.read_text()
)
SCREEN = 30
"""Lines of a screen."""


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_fits_two_screens_and_names_every_setting(script: str) -> None:
    """By whole sentences, none of them cut."""
    args = importlib.import_module(script).Args()
    text = short_help(script, args)
    assert len(text.splitlines()) <= 2 * SCREEN
    broken = re.compile(r".{111}| {20}|.*\.\.\.")
    assert [line for line in text.splitlines() if broken.match(line)] == []
    names = {name.replace("_", "-") for name, _ in flattened(args)}
    assert names - {"preset"}, "it has settings"
    for name in names:
        own, _, inner = name.partition(".")
        assert f"--{own} " in text + " " or f"{inner}=" in text, name


def test_it_shows_what_a_preset_gives(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["prior.py"])
    args: Any = importlib.import_module("train.prior").Args
    with pytest.raises(SystemExit) as stop:
        parse(args, "prior", ["--preset", "demo", "--help"])
    assert not stop.value.code
    text = capsys.readouterr().out
    assert text.startswith("usage: python ") and "prior.py [--preset NAME] [flags]" in text
    assert re.search(r"--run VALUE +Run folder.* \[runs/demo\]", text)
    assert "d-model=256" in text
    with pytest.raises(SystemExit):
        parse(args, "prior", ["--help-all"])
    assert "--model.d-model INT" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["worldmodel train prior"])
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit):
            parse(args, "prior", [flag])
        assert "usage: worldmodel train prior [" in capsys.readouterr().out


def test_docstrings_are_those_below_the_fields() -> None:
    @dataclasses.dataclass
    class Base:
        a: int = 1
        """The first."""
        b: int = 2

    @dataclasses.dataclass
    class Derived(Base):
        b: int = 3
        """The second. More of it."""

    assert docstrings(Derived) == {"a": "The first.", "b": "The second. More of it."}
