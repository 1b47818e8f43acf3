"""Models on disk: those of an older version are refused, in one sentence that says how to train them again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from worldmodel.models.loading import load_outcome, load_prior, load_vqvae
from worldmodel.utils.checkpoint import check_same_config, save_checkpoint
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


def test_training_does_not_go_on_with_a_run_of_an_older_version(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, nn.Linear(1, 1), {"kind": "vqvae", "fit": {"steps": 4}})
    with pytest.raises(
        UserError, match=r"holds a run with fit\.steps = 4, but None was asked for; .*--restart to overw"
    ):
        check_same_config(tmp_path, {"kind": "vqvae", "trainer": {"steps": 4}})
