"""Whether what is on disk belongs together: a run and the config that is asked for, codes and their VQ-VAE.

Configs are compared as JSON, setting by setting, so that an error names the first one that differs. Codes and a VQ-VAE
are compared by `Checkpoint.codes_digest`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from worldmodel.utils.checkpoint import checkpoints, read_checkpoint
from worldmodel.utils.errors import UserError


def check_vqvae(what: str, digest: str | None, vqvae: Path, codebook_only: bool = False) -> None:
    """Check that codes, contexts or a model of codes belong to the VQ-VAE in a folder.

    Args:
        what: Name of what is checked, for the message.
        digest: `codes_digest` of the VQ-VAE that it was made with.
        vqvae: Folder of the VQ-VAE.
        codebook_only: Compare only the weights, not the hysteresis: enough for a prior to start training from another.

    Raises:
        UserError: If it belongs to another VQ-VAE.
    """
    found = read_checkpoint(vqvae)
    known = [found.codes_digest, found.config.get("exported_from")]
    if codebook_only:
        known, digest = [str(name).partition("+")[0] for name in known], str(digest).partition("+")[0]
    if digest is None or digest not in known:
        raise UserError(f"{what} was made with another VQ-VAE than {vqvae}; make it again with --restart")


def check_same_config(folder: Path, config: dict[str, Any]) -> None:
    """Check that a folder has no run with another config.

    Raises:
        UserError: Naming the first setting that differs.
    """
    if not checkpoints(folder):
        return
    differs = config_difference(read_checkpoint(folder).config, json.loads(json.dumps(config)))
    if differs:
        raise UserError(
            f"{folder} holds a run with {differs}; use another folder, the same settings, or --restart to overwrite it"
        )


def config_difference(saved: dict[str, Any], asked: dict[str, Any]) -> str:
    """Describe the first setting in which two JSON configs differ; empty if they are equal."""
    a, b = flatten(saved), flatten(asked)
    for key in sorted(a.keys() | b.keys()):
        if a.get(key) != b.get(key):
            return f"{key} = {a.get(key)}, but {b.get(key)} was asked for"
    return ""


def flatten(data: Any, path: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, whose keys are paths: {"model": {"width": 4}} -> {"model.width": 4}."""
    if isinstance(data, dict):
        return {k: v for name, item in data.items() for k, v in flatten(item, f"{path}.{name}".strip(".")).items()}
    return {path: data}
