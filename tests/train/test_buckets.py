"""Stages that read frames from a bucket end as those that read them from a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.bucket import Requests
from train import tokens, vqvae
from worldmodel.data.opening import open_tokens
from worldmodel.training.trainer_config import TrainerConfig
from worldmodel.utils.checkpoint import weights_digest


def test_a_vqvae_and_codes_from_a_bucket_are_those_from_a_folder(
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    toy_fill: Callable[..., Any],
    toy_stages: Callable[..., Any],
) -> None:
    few = TrainerConfig(steps=3, batch_size=4, log_every=3, eval_every=3, save_every=3)
    torch.set_num_threads(1)
    toy_fill(tmp_path / "data.zarr", 10)
    toy_fill(f"{bucket}/data.zarr", 10)
    places = {"folder": str(tmp_path / "data.zarr"), "bucket": f"{bucket}/data.zarr"}
    for name, data in places.items():
        first, second, *_ = toy_stages(tmp_path / name)
        kept = {"cache_gb": 0.1, "cache_folder": tmp_path / "shards"}
        vqvae.main(replace(first, data=data, trainer=few, n_eval_clips=2, **kept))
        requests = Requests(monkeypatch)
        tokens.main(replace(second, data=(data,), **kept))
    found = [open_tokens(tmp_path / name) for name in places]
    assert found[0].crc32c("codes") == found[1].crc32c("codes")
    assert weights_digest(tmp_path / "folder/vqvae") == weights_digest(tmp_path / "bucket/vqvae")
    assert not [key for _, key in requests.sent if "frames/c." in key], "frames were kept by the stage before"
