"""The last line of a script: what it wrote, and what comes next.

    written: runs/demo/vqvae (next: python train/tokens.py --preset demo)

A script's `main` returns a `Written`, and `configs.command` prints it. The next command gets the presets that this one
was given, if they have its section, and the run folder, unless the preset names it.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.scripts import PACKAGE, PART, command_words, flag_words
from worldmodel.utils.errors import is_url, printable


@dataclass(frozen=True)
class Written:
    """What a script wrote, and what comes next."""

    path: Path | str
    """The file or folder."""
    next: str = ""
    """The next script, or a line of Python; "" if nothing comes next."""
    flags: dict[str, Any] = field(default_factory=dict)
    """Settings of the next script. None and False are left out, True is a flag without a value."""
    without_preset: dict[str, Any] = field(default_factory=dict)
    """More settings of the next script, for when no preset gives them."""


def recorded(out: Path | str) -> Written:
    """A store of frames was written: the VQ-VAE comes next, in the run folder that the store is in."""
    in_run = Path(out).name == "data.zarr" and not is_url(out)
    return Written(out, "train/vqvae.py", {"run": Path(out).parent} if in_run else {"data": out})


def make_dream(run: Path | str) -> str:
    """The line of Python that opens a run as an environment."""
    return f'import {PACKAGE}envs; gymnasium.make("VideoGPTDream-v0", model="{run}")'


def last_line(written: Written, presets: dict[str, dict[str, Any]]) -> str:
    """The line to print; `presets` has those of the command line by name."""
    step = next_command(written, presets) if written.next.endswith(".py") else written.next
    if PART in os.environ:
        step = ""
    return printable(f"written: {written.path}" + (f" (next: {step})" if step else ""))


def next_command(written: Written, presets: dict[str, dict[str, Any]]) -> str:
    """The command that runs the next script."""
    fitting = {name: preset for name, preset in presets.items() if Path(written.next).stem in preset}
    runs = [Path(preset["run"]) for preset in fitting.values() if "run" in preset]
    flags = {name: value for name, value in written.flags.items() if name != "run" or [value] != runs[-1:]}
    words = [*command_words(written.next), *(word for name in fitting for word in ("--preset", name))]
    return shlex.join(words + flag_words(flags if fitting else flags | written.without_preset))
