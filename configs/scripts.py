"""How a script is run and named: as a file of the clone, or as a subcommand of `worldmodel`.

Messages name other scripts in the form that the user typed. `python train/tokens.py` prints `python train/prior.py`.
`worldmodel train tokens`, and everything in the wheel, prints `worldmodel train prior`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from worldmodel.__main__ import VERBS

COMMAND = "worldmodel"
ROOT = Path(__file__).resolve().parents[1]
"""The folder that has collect/, train/ and rollout/."""
PART = "WORLDMODEL_PART"
"""Environment variable that is set when one script runs another. Then the outer script says what comes next, and how
to resume, and the inner one does not."""
PACKAGE = __name__.removesuffix("configs.scripts")
"""Prefix of module names such as `train.tokens`: empty in the clone, `worldmodel.` in the wheel."""

SHORT = {script: [verb] for verb, script in VERBS.items() if script.endswith(".py")}
"""Scripts with a short subcommand: `worldmodel dream` instead of `worldmodel train world`."""


def by_command() -> bool:
    """Whether the command `worldmodel` runs this process. It puts its own name into `sys.argv[0]`."""
    return bool(PACKAGE) or sys.argv[0].startswith(f"{COMMAND} ")


def command_words(script: str) -> list[str]:
    """The command line, as words, that runs a script such as train/tokens.py."""
    if not by_command():
        return ["python", script]
    return [COMMAND, *SHORT.get(script, script.removesuffix(".py").split("/"))]


def flag_words(flags: dict[str, Any]) -> list[str]:
    """Settings as flags. None and False are left out, True is a flag without a value, a list has several values."""
    words: list[str] = []
    for name, value in flags.items():
        if value is not None and value is not False:
            values = [] if value is True else value if isinstance(value, list) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return words


def python_arguments(script: str) -> list[str]:
    """The arguments with which Python runs a script, from any folder."""
    return ["-m", PACKAGE + script.removesuffix(".py").replace("/", ".")] if PACKAGE else [str(ROOT / script)]


def program() -> str:
    """The name of the script that runs, for its help."""
    if sys.argv[0].startswith(f"{COMMAND} "):
        return sys.argv[0]
    return " ".join(command_words("/".join(Path(sys.argv[0]).absolute().parts[-2:])))
