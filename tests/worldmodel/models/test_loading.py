"""Models on disk: those of an older version are refused, in one sentence that says how to train them again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from worldmodel.models.loading import load_outcome, load_prior, load_vqvae
from worldmodel.utils.checkpoint import save_checkpoint
from worldmodel.utils.errors import UserError

OLD: dict[str, tuple[Callable[[Path], nn.Module], dict[str, Any]]] = {
    "vqvae": (load_vqvae, {"frames": 8, "size": [16, 16], "codes": 16, "dim": 8}),
    "prior": (load_prior, {"latent": [8, 4, 4], "books": 1, "codes": 16, "width": 32}),
    "outcome": (load_outcome, {"latent": [4, 4], "books": 1, "codes": 16, "variables": 1}),
}
"""Of each kind how it is loaded, and sizes by the names that they had before."""


@pytest.mark.parametrize("kind", OLD)
def test_a_model_of_an_older_version_is_refused_with_how_to_train_it_again(kind: str, tmp_path: Path) -> None:
    load, sizes = OLD[kind]
    save_checkpoint(tmp_path / kind, nn.Linear(1, 1), {"kind": kind, "model": sizes})
    again = rf"{kind} was written by another version \(TypeError: .*\); train it again with train/{kind}\.py --restart$"
    with pytest.raises(UserError, match=again):
        load(tmp_path / kind)
