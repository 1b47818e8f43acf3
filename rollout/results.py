"""The files in <run>/evaluation, which evaluation scripts write, and which the tables of results read.

results.json           rollout/evaluate.py          frames ahead, bits
controllability.json   rollout/controllability.py   does the dream follow its actions
outcome.json           rollout/evaluate_outcome.py  ends, returns, variables
long_horizon.json      rollout/long_horizon.py      a thousand steps
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from configs.scripts import command_words
from worldmodel.utils.checkpoint import Checkpoint, read_checkpoint

SCRIPTS = {
    "results": "rollout/evaluate.py",
    "controllability": "rollout/controllability.py",
    "outcome": "rollout/evaluate_outcome.py",
    "long_horizon": "rollout/long_horizon.py",
}
"""Result file -> the script that writes it."""


def trained_models(run: Path) -> dict[str, Checkpoint]:
    """The models that a run has."""
    return {part: read_checkpoint(run / part) for part in ("vqvae", "prior", "outcome") if (run / part).exists()}


def read_results(run: Path) -> tuple[dict[str, Any], list[str]]:
    """The results of a run's present models, by file.

    Returns:
        The results, and a sentence for each file that is missing, damaged, or made of other weights. The sentence has
        the command that writes the file.
    """
    found, faults = {}, []
    digests = {part: model.digest for part, model in trained_models(run).items()}
    for name, script in SCRIPTS.items():
        path, part = run / "evaluation" / f"{name}.json", "outcome" if name == "outcome" else "prior"
        try:
            result = json.loads(path.read_bytes())
            made_of = (result.get("made_of") or result["protocol"]).get(part)
        except FileNotFoundError:
            fault = "not there"
        except (ValueError, KeyError, AttributeError):
            fault = "damaged"
        else:
            if made_of == digests.get(part):
                found[name] = result
                continue
            fault = "made of other weights"
        faults.append(f"{path}: {fault}; run {' '.join([*command_words(script), '--run', str(run)])}")
    return found, faults
