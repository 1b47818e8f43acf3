"""What the wheel holds: the library, and the folders beside it as its subpackages.

In the clone `envs`, `configs`, `collect`, `train` and `rollout` are top-level packages, so that `python train/prior.py`
and `import envs` work. Site-packages must not have such common names, so in the wheel they are `worldmodel.envs` and
so on, and this hook writes these names into their imports of one another.

To put a folder of the wheel on the import path instead would hide the `envs`, `configs` or `train` of the project that
the user works in, and would load a module twice, under two names. This way everything else is plain Python: spawned
processes, `python -m worldmodel.train.prior`, torchrun.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDERS = ("envs", "configs", "collect", "train", "rollout")
NAME = rf"(?=(?:{'|'.join(FOLDERS)})\b)"
IMPORT = re.compile(rf"^( *)(from {NAME}[\w.]+ import |import {NAME}[\w.]+(?= *(?:$|;|#)))", re.MULTILINE)


def in_the_wheel(source: str) -> str:
    """A module's text, with the folders imported from `worldmodel`."""
    return IMPORT.sub(lambda found: found[1] + re.sub(" ", " worldmodel.", found[2], count=1), source)


class WheelHook(BuildHookInterface):
    """Adds the folders to a wheel. An editable install has the clone itself on the path, and needs nothing."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        self.folder = Path(tempfile.mkdtemp())
        for name in FOLDERS:
            shutil.copytree(Path(self.root) / name, self.folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            build_data["force_include"][str(self.folder / name)] = f"worldmodel/{name}"
        for path in self.folder.rglob("*.py"):
            path.write_text(in_the_wheel(path.read_text(encoding="utf-8")), encoding="utf-8")

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable":
            shutil.rmtree(self.folder)
