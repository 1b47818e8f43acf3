"""The JSON file of a command with many stages: its settings, and what it has done, so that the same command resumes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from worldmodel.utils.compatibility import config_difference
from worldmodel.utils.errors import UserError
from worldmodel.utils.files import write_json


class RunState:
    """<run>/<kind>.json, with "settings" and one more key.

    Args:
        run: The run folder.
        kind: What the command makes, such as "world".
        args: The settings of this call, a dataclass.
        may_change: Names of settings that may differ from those in the file.
        key: Name of the other entry of the file.
        value: Its initial value; if the file exists, its value is used instead.

    Raises:
        UserError: The file is damaged, or it was written by a call with other settings.
    """

    def __init__(self, run: Path, kind: str, args: Any, may_change: tuple[str, ...], key: str, value: Any) -> None:
        self.path, self.key, self.value = run / f"{kind}.json", key, value
        fixed = {name: setting for name, setting in asdict(args).items() if name not in may_change}
        self.settings: dict[str, Any] = json.loads(json.dumps(fixed))
        if not self.path.exists():
            return
        try:
            found = json.loads(self.path.read_text())
            self.value = type(value)(found[key])
            differs = config_difference(found["settings"], self.settings)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{self.path} is damaged; restore it, or use another --run") from None
        if differs:
            raise UserError(f"{run} holds a {kind} with {differs}; use another --run, or the same settings")

    def write(self) -> None:
        """Write settings and value."""
        write_json(self.path, {"settings": self.settings, self.key: self.value})
