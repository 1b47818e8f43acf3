"""A run folder with every model of the toy world, barely trained: small input that the scripts take."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import fill, stages
from train import outcome, prior, tokens, vqvae


def make(run: Path, steps: int = 1) -> Path:
    fill(run / "data.zarr")
    for stage, args in zip((vqvae, tokens, prior, outcome), stages(run, steps=steps), strict=True):
        stage.main(args)  # type: ignore[arg-type]
    return run
