"""The file of contexts: whole and finite, or a sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.campaign.damage import forged
from tests.campaign.runs import make_run
from worldmodel.generation.context import CONTEXTS_FILE, Context
from worldmodel.generation.dream import Dream
from worldmodel.utils.checkpoint import codes_digest
from worldmodel.utils.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    make_run(run, 0)
    return run


def test_they_come_back_in_equal_bytes(run: Path, tmp_path: Path) -> None:
    contexts = Context.load(run)
    assert contexts.codes.dtype == torch.int64 and len(contexts) == 4
    contexts.save(tmp_path / "x", codes_digest(run / "vqvae"))
    assert (tmp_path / "x").read_bytes() == (run / CONTEXTS_FILE).read_bytes()


def test_numbers_that_are_not_finite_are_not_saved(run: Path, tmp_path: Path) -> None:
    contexts = Context.load(run)
    for name in ("condition", "variables"):
        spoiled = torch.full_like(getattr(contexts, name), torch.nan)
        with pytest.raises(UserError, match=rf"the contexts for .*: {name} has values that are not finite; record"):
            replace(contexts, **{name: spoiled}).save(tmp_path / "x", "")
    assert not (tmp_path / "x").exists()


def test_what_is_no_file_of_contexts_is_told_in_a_sentence(run: Path) -> None:
    path, contexts, made = run / CONTEXTS_FILE, Context.load(run).tensors(), {"vqvae": codes_digest(run / "vqvae")}
    whole, flat = path.read_bytes(), {"variables": contexts["variables"][:, -1].contiguous()}
    for data, sentence in (
        (whole[:-1], "is damaged .*; run train/tokens.py again"),
        (forged(contexts | flat, made), "was written by another version; run train/tokens.py again"),
        (forged({"codes": contexts["codes"]}, made), "was written by another version; run train/tokens.py again"),
        (forged(contexts, {"vqvae": "another"}), "was made with another VQ-VAE"),
        (forged(contexts, {"vqvae": []}), "was made with another VQ-VAE"),
        (forged(contexts, {}), "was made with another VQ-VAE"),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match=f"{CONTEXTS_FILE} {sentence}"):
            Context.load(run)
    path.write_bytes(whole)


def test_a_model_that_cannot_be_built_from_its_config_is_told_in_a_sentence(run: Path) -> None:
    path = run / "prior/checkpoint.safetensors"
    whole = path.read_bytes()
    for info in ({"kind": "prior", "model": None}, {"kind": "prior", "model": {"unheard_of": 1}}, {"kind": "prior"}):
        path.write_bytes(forged({"a": torch.ones(1)}, {"config": info, "progress": {}}))
        with pytest.raises(UserError, match=r"prior was written by another version \(\w+Error: .*\); train it again"):
            Dream.load(run)
    path.write_bytes(whole)
