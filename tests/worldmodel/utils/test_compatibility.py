"""What is on disk belongs together, or is refused by the first thing that differs."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from worldmodel.utils.checkpoint import codes_digest, save_checkpoint, weights_digest
from worldmodel.utils.compatibility import check_same_config, check_vqvae, config_difference, flatten
from worldmodel.utils.errors import UserError


def test_a_run_with_another_config_is_refused(tmp_path: Path) -> None:
    check_same_config(tmp_path, {"model": {"width": 4}})
    save_checkpoint(tmp_path, nn.Linear(1, 1), {"model": {"width": 3, "size": [8, 8]}})
    check_same_config(tmp_path, {"model": {"size": (8, 8), "width": 3}})
    with pytest.raises(UserError, match=r"model.width = 3, but 4 was asked for; .*--restart to overwrite it"):
        check_same_config(tmp_path, {"model": {"width": 4, "size": [8, 8]}})


def test_training_does_not_go_on_with_a_run_of_an_older_version(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, nn.Linear(1, 1), {"kind": "vqvae", "fit": {"steps": 4}})
    with pytest.raises(
        UserError, match=r"holds a run with fit\.steps = 4, but None was asked for; .*--restart to overw"
    ):
        check_same_config(tmp_path, {"kind": "vqvae", "trainer": {"steps": 4}})


def test_the_first_setting_that_differs_is_named() -> None:
    assert flatten({"model": {"width": 4, "norm": {"groups": 2}}, "seed": 0}) == {
        "model.width": 4,
        "model.norm.groups": 2,
        "seed": 0,
    }
    assert config_difference({"b": 1, "a": {"c": 2}}, {"a": {"c": 2}, "b": 1}) == ""
    assert config_difference({"b": 1, "a": {"c": 2}}, {"b": 2, "a": {"c": 3}}) == "a.c = 2, but 3 was asked for"
    assert config_difference({"a": 1}, {}) == "a = 1, but None was asked for"


def test_codes_of_another_vqvae_are_refused(tmp_path: Path) -> None:
    """A hysteresis changes the codes, not the codebook. An exported VQ-VAE is known by what it was exported from."""
    model = nn.Linear(2, 2)
    save_checkpoint(tmp_path, model, {"model": {"hysteresis": 0.5}, "exported_from": "abc"})
    weights = weights_digest(tmp_path)
    assert codes_digest(tmp_path) == f"{weights}+0.5"
    for digest in (f"{weights}+0.5", "abc"):
        check_vqvae("tokens", digest, tmp_path)
    for digest in (weights, f"{weights}+0.25", "other", None):
        with pytest.raises(UserError, match=r"tokens was made with another VQ-VAE than .*; make it again with --rest"):
            check_vqvae("tokens", digest, tmp_path)
    for digest in (weights, f"{weights}+0.25", "abc"):
        check_vqvae("prior", digest, tmp_path, codebook_only=True)
    with pytest.raises(UserError, match="prior was made with another VQ-VAE"):
        check_vqvae("prior", "other", tmp_path, codebook_only=True)
