"""Provenance of a result: models, settings and commit, written into every result file."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from worldmodel.utils.checkpoint import read_checkpoint, weights_digest

ROOT = Path(__file__).resolve().parents[1]


def trained_parts(run: Path | None, prior: str = "prior") -> dict[str, Path]:
    """The folders of a run's trained models that exist."""
    return {part: run / part for part in ("vqvae", prior) if run and (run / part).exists()}


def model_digests(run: Path | None, prior: str = "prior") -> dict[str, str]:
    """Digests of a run's trained models."""
    return {part: weights_digest(folder) for part, folder in trained_parts(run, prior).items()}


def model_settings(run: Path | None, prior: str = "prior") -> dict[str, Any]:
    """Configs of a run's trained models."""
    return {part: read_checkpoint(folder).config["model"] for part, folder in trained_parts(run, prior).items()}


def provenance(run: Path, prior: str = "prior") -> dict[str, Any]:
    """The digests and settings of a run's models, and the commit."""
    return {"made_of": model_digests(run, prior), "models": model_settings(run, prior), "commit": commit()}


def commit() -> str | None:
    """The commit of this clone, with "-dirty" if files differ from it; None if it is not a git clone."""
    git = ["git", "-C", str(ROOT)]
    try:
        top = subprocess.run([*git, "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=True).stdout
        if Path(top.strip()).resolve() != ROOT:
            return None
        describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
