"""What the pages say about the code: the files, scripts, flags and presets that they name are there."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from configs import parse
from tests.scripts import section_of
from worldmodel.__main__ import VERBS, with_first_flags
from worldmodel.utils.errors import UserError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FLAGS = r"((?:[^`\n\\]|\\\n)*)"
COMMAND = re.compile(r"(?:python (?=\w+/)|worldmodel )(collect|train|rollout)[/ ](\w+)(?:\.py)?" + FLAGS, re.ASCII)
SHORT = re.compile(r"worldmodel (dream|play|show|push)\b" + FLAGS, re.ASCII)


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """Scripts and their flags, from code blocks and from the text between backticks."""
    text = page.read_text()
    for line, name, value in re.findall(r'^( *(\w+)="([^"]+)")$', text, re.MULTILINE):
        text = text.replace(line, "").replace(f"${name}", value)
    text = re.sub(r"`[^`\n]*\n[^`\n]*`", lambda code: code[0].replace("\n", " "), text)  # code that goes over a line
    split = lambda flags: shlex.split(flags.replace("\\\n", " "), comments=True)  # noqa: E731
    long = [(f"{folder}/{name}.py", split(flags)) for folder, name, flags in COMMAND.findall(text)]
    return long + [(VERBS[verb], with_first_flags(verb, split(flags))) for verb, flags in SHORT.findall(text)]


def parsed(script: str, flags: list[str]) -> Any:
    """The settings of a command."""
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    try:
        return parse(module.Args, section_of(script), flags)
    except (UserError, SystemExit) as error:
        pytest.fail(f"python {script} {' '.join(flags)}: {error}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worldmodel.utils.hardware.check_device", lambda device: None)  # a GPU need not be here
    for script, flags in commands(page):
        if not any(flag.endswith((".yaml", ".yml")) for flag in flags):  # those are presets that the reader makes
            parsed(script, flags)


@pytest.mark.parametrize(
    ("words", "scripts"),
    [
        ("demo", 7),
        ("dream ENV=ale_py:ALE/Pong-v5 MINUTES=5", 1),
        ("ucf101 SOURCE=films PRIOR=--classes", 5),
        ("tgif SOURCE=films PRESET=video_small", 5),
        ("gpu", 1),
    ],
)
def test_commands_of_make_parse(words: str, scripts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worldmodel.utils.hardware.check_device", lambda device: None)
    line = ["make", "--dry-run", "--old-file", ".venv/ready", *words.split()]
    said = subprocess.run(line, cwd=ROOT, check=True, capture_output=True, text=True).stdout.replace("\\\n", " ")
    found = [
        parsed(script, shlex.split(flags)) for script, flags in re.findall(r"^\S*python (\w+/\S+)(.*)", said, re.M)
    ]
    assert len(found) == scripts
    if words.startswith("dream"):
        assert (found[0].env_id, found[0].run, found[0].minutes) == ("ale_py:ALE/Pong-v5", Path("runs/Pong-v5"), 5)


def test_there_are_commands() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 100


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"\b(?:worldmodel|envs|collect|train|rollout|configs|tests|docs)/[\w/]+\.\w+", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.name)
def test_links_of_pages_outside_the_site(page: Path) -> None:
    """mkdocs checks those of the site."""
    links = [link for link in re.findall(r"\]\(([^)#]+)", page.read_text()) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    rows = [line for line in lines if line.startswith("|")]
    assert rows, "a table of results"
    numbers = re.findall(r"\d[\d,.]*", "\n".join(rows))
    assert len(numbers) <= 15, numbers
    assert (ROOT / "docs" / "play.gif").stat().st_size < 2e6


def test_generated_parts_say_where_they_can_be_read() -> None:
    """A code host shows the Markdown files, without what `make docs` puts in."""
    found = {}
    for page in PAGES:
        parts = re.findall(r"<!-- (\w+) -->(.*?)<!-- end -->", page.read_text(), re.DOTALL)
        assert len(re.findall("<!--", page.read_text())) == 2 * len(parts), f"{page.name}: a mark without its end"
        found |= dict(parts)
    assert found.keys() == {"settings", "presets", "errors"}
    assert all("make docs" in found[part] for part in ("settings", "errors")) and "configs/" in found["presets"]
