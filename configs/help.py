"""The text of `--help`: one line per setting of the script, then names and defaults of its groups of settings.

A prior has about forty settings, and most users need ten. So `--help` fits two screens, and `--help-all`, which tyro
writes, explains every setting in full.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

WIDTH, FLAG_WIDTH = 110, 27
"""Width of a line and of the flag at its start, in characters."""


def short_help(script: str, default: Any) -> str:
    """The help text of a script. `default` is the dataclass of settings with its defaults."""
    settings = {field.name: getattr(default, field.name) for field in dataclasses.fields(default)}
    groups = {name: value for name, value in settings.items() if dataclasses.is_dataclass(value)}
    own = {name: value for name, value in settings.items() if name not in groups}
    lines = [f"usage: {script} [--preset NAME] [flags]", "", first_sentence(type(default).__doc__ or ""), ""]
    lines += [row("--preset NAME", "take the defaults from configs/NAME.yaml")]
    texts = docstrings(type(default))  # type: ignore[arg-type]
    lines += [row(flag(name, v), first_sentence(texts.get(name, "")), shown(v)) for name, v in own.items()]
    for name, group in groups.items():
        lines += ["", f"{name}, set by --{dashed(name)}.NAME:", *listed(group)]
    return "\n".join([*lines, "", f"{script} --help-all explains every setting."])


def row(flag: str, text: str, default: str = "") -> str:
    """A flag, its sentence and its default: one line, unless a default is long."""
    start, end = f"  {flag:<{FLAG_WIDTH}} ", f" [{default}]" if default else ""
    return textwrap.fill(
        text + end, WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False
    )


def flag(name: str, value: Any) -> str:
    return f"--{dashed(name)}" + ("" if isinstance(value, bool) else " VALUE")


def dashed(name: str) -> str:
    return name.replace("_", "-")


def listed(group: Any) -> list[str]:
    """Names and defaults of a group, several per line."""
    text = "  ".join(f"{dashed(name)}={shown(value)}" for name, value in flattened(group))
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def flattened(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a group and of the groups inside it."""
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        if dataclasses.is_dataclass(value):
            yield from flattened(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def shown(value: Any) -> str:
    """A default as a user would type it on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "-"
    return "" if value is None else str(value)


def first_sentence(text: str) -> str:
    return re.split(r'(?<=[\w)>"])[.;](?= |$)', " ".join(text.split()), maxsplit=1)[0]


@cache
def docstrings(kind: type) -> dict[str, str]:
    """The docstring below each field of a dataclass and its bases."""
    found: dict[str, str] = {}
    for cls in reversed([c for c in kind.__mro__ if dataclasses.is_dataclass(c)]):
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
        for field, text in pairwise(body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(said))):
                    found[name] = said
    return found
