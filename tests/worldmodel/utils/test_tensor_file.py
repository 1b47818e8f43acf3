"""Tensor files: every damaged byte is noticed, equal contents are equal files, and no value is NaN or infinite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from worldmodel.utils import tensor_file
from worldmodel.utils.errors import UserError

TOLD: dict[str, Any] = {"config": {"b": 1, "a": [2, None]}, "progress": {"step": 3}}


def tensors() -> dict[str, torch.Tensor]:
    return {"weight": torch.arange(6.0).reshape(2, 3), "half": torch.ones(2).half(), "count": torch.tensor(7)}


def test_what_is_packed_comes_back_and_any_safetensors_reader_opens_it(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(tensor_file.pack(tensors(), TOLD))
    found, info = tensor_file.read(path, "cure")
    assert {k: info[k] for k in TOLD} == TOLD
    for other in (found, load_file(path)):
        assert other.keys() == tensors().keys()
        assert all(torch.equal(other[k], v) and other[k].dtype == v.dtype for k, v in tensors().items())


def test_every_byte_is_covered(tmp_path: Path) -> None:
    """A bit of each byte is flipped, the file is cut before each byte, and bytes are added at each place."""
    path, whole, rng = tmp_path / "x", tensor_file.pack(tensors(), TOLD), np.random.default_rng(0)
    for at in range(len(whole)):
        flipped = whole[at] ^ 1 << int(rng.integers(8))
        for damaged in (
            whole[:at] + bytes([flipped]) + whole[at + 1 :],
            whole[:at],
            whole[:at] + whole[at : at + 1] + whole[at:],
        ):
            path.write_bytes(damaged)
            with pytest.raises(UserError, match=r"x (is damaged|has no checksum)[^\n]*; restore a copy$"):
                tensor_file.read(path, "restore a copy")
    path.write_bytes(whole + b"\0")
    with pytest.raises(UserError, match="is damaged"):
        tensor_file.read(path, "restore a copy")


def test_equal_contents_are_equal_files() -> None:
    assert len({tensor_file.pack(tensors(), TOLD) for _ in range(20)}) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_on_the_way_in_and_out(
    value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled = tensors() | {"half": torch.tensor([1.0, value]).half()}
    with pytest.raises(UserError, match="half has values that are not finite"):
        tensor_file.pack(spoiled, TOLD)
    monkeypatch.setattr(tensor_file, "first_not_finite", lambda tensors: "")
    (tmp_path / "x").write_bytes(tensor_file.pack(spoiled, TOLD))
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"x: half has values that are not finite; train it again$"):
        tensor_file.read(tmp_path / "x", "train it again")


def test_a_file_without_a_digest_is_refused(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "x", {"config": "{}", "progress": "{}"})
    with pytest.raises(
        UserError, match="x has no checksum: it is damaged, or was written by an older version; train it again"
    ):
        tensor_file.read(tmp_path / "x", "train it again")
