"""Checkpoints: one file, whole or not at all, and nothing pickled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from worldmodel.checkpoint import (
    FILE,
    digest,
    load_optimizer,
    load_weights,
    read_header,
    same_config,
    save_checkpoint,
    write_atomic,
)
from worldmodel.errors import UserError


def trained(width: int = 3) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Linear(width, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, width)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_everything_comes_back(tmp_path: Path) -> None:
    model, optimizer = trained()
    save_checkpoint(tmp_path, model, {"a": [1, 2]}, {"step": 7}, optimizer)
    assert read_header(tmp_path) == ({"a": [1, 2]}, {"step": 7})
    assert json.loads((tmp_path / "config.json").read_text()) == {"a": [1, 2]}
    other, fresh = torch.nn.Linear(3, 2), None
    fresh = torch.optim.Adam(other.parameters(), lr=0.5)
    load_weights(tmp_path, other)
    load_optimizer(tmp_path, fresh)
    assert torch.equal(other.weight, model.weight)
    assert fresh.param_groups[0]["lr"] == 0.5, "settings are the caller's"
    for mine, theirs in zip(optimizer.state.values(), fresh.state.values(), strict=True):
        assert all(torch.equal(mine[k], theirs[k]) for k in ("step", "exp_avg", "exp_avg_sq"))
    assert b"pickle" not in (tmp_path / FILE).read_bytes()


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    write_atomic(path, b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"


def test_shared_tensors_are_stored_once(tmp_path: Path) -> None:
    layer = torch.nn.Linear(100, 100)
    save_checkpoint(tmp_path, torch.nn.ModuleList([layer, layer]), {})
    assert (tmp_path / FILE).stat().st_size < 60_000
    other = torch.nn.Linear(100, 100)
    load_weights(tmp_path, torch.nn.ModuleList([other, other]))
    assert torch.equal(other.weight, layer.weight)


def test_the_digest_is_of_the_weights_alone(tmp_path: Path) -> None:
    model, optimizer = trained()
    save_checkpoint(tmp_path / "a", model, {"x": 1}, {"step": 1}, optimizer)
    save_checkpoint(tmp_path / "b", model, {"x": 2})
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    with torch.no_grad():
        model.bias += 1e-3
    save_checkpoint(tmp_path / "b", model, {"x": 2})
    assert digest(tmp_path / "a") != digest(tmp_path / "b")


def test_mistakes_are_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no checkpoint.safetensors; train it first"):
        read_header(tmp_path)
    save_checkpoint(tmp_path, trained()[0], {"model": {"width": 3}})
    with pytest.raises(UserError, match=r"belongs to another config: weight is \(2, 3\) there and \(2, 4\) here"):
        load_weights(tmp_path, torch.nn.Linear(4, 2))
    with pytest.raises(UserError, match=r"model.width = 3, but 4 was asked for"):
        same_config(tmp_path, {"model": {"width": 4}})
    data = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="is damaged"):
        read_header(tmp_path)
