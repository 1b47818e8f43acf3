"""Checkpoints: one file, whole or not at all, and nothing pickled."""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from worldmodel.utils.checkpoint import (
    CHECKPOINT_FILE,
    checkpoints,
    load_weights,
    read_checkpoint,
    replace_config,
    restore_newest,
    save_checkpoint,
    weights_digest,
)
from worldmodel.utils.errors import UserError
from worldmodel.utils.files import atomic_file, write_atomic
from worldmodel.utils.json_schema import load_json
from worldmodel.utils.tensor_file import pack


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
    found = read_checkpoint(tmp_path)
    assert (found.config, found.progress) == ({"a": [1, 2]}, {"step": 7})
    assert json.loads((tmp_path / "config.json").read_text()) == {"a": [1, 2]}
    other, fresh = torch.nn.Linear(3, 2), None
    fresh = torch.optim.Adam(other.parameters(), lr=0.5)
    load_weights(tmp_path, other)
    read_checkpoint(tmp_path).fill_optimizer(fresh)
    assert torch.equal(other.weight, model.weight)
    assert fresh.param_groups[0]["lr"] == 0.5, "settings are the caller's"
    for mine, theirs in zip(optimizer.state.values(), fresh.state.values(), strict=True):
        assert all(torch.equal(mine[k], theirs[k]) for k in ("step", "exp_avg", "exp_avg_sq"))
    assert b"pickle" not in (tmp_path / CHECKPOINT_FILE).read_bytes()


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    write_atomic(path, b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_writers_of_one_path_have_files_of_their_own(tmp_path: Path) -> None:
    """Each is whole at its turn, and has the mode of any new file."""
    path, usual = tmp_path / "x", tmp_path / "y"
    usual.touch()
    with atomic_file(path, b"first") as first, atomic_file(path, b"second") as second:
        write_atomic(path, b"third")
        assert path.read_bytes() == b"third"
        first.replace(path)
        assert path.read_bytes() == b"first"
        second.replace(path)
    assert path.read_bytes() == b"second"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x", "y"]
    assert path.stat().st_mode == usual.stat().st_mode


def test_shared_tensors_are_stored_once(tmp_path: Path) -> None:
    layer = torch.nn.Linear(100, 100)
    save_checkpoint(tmp_path, torch.nn.ModuleList([layer, layer]), {})
    assert (tmp_path / CHECKPOINT_FILE).stat().st_size < 60_000
    other = torch.nn.Linear(100, 100)
    load_weights(tmp_path, torch.nn.ModuleList([other, other]))
    assert torch.equal(other.weight, layer.weight)


def test_the_digest_is_of_the_weights_alone(tmp_path: Path) -> None:
    model, optimizer = trained()
    save_checkpoint(tmp_path / "a", model, {"x": 1}, {"step": 1}, optimizer)
    save_checkpoint(tmp_path / "b", model, {"x": 2})
    assert weights_digest(tmp_path / "a") == weights_digest(tmp_path / "b")
    with torch.no_grad():
        model.bias += 1e-3
    save_checkpoint(tmp_path / "b", model, {"x": 2})
    assert weights_digest(tmp_path / "a") != weights_digest(tmp_path / "b")


def test_mistakes_are_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no checkpoint.safetensors; train it first"):
        read_checkpoint(tmp_path)
    with pytest.raises(
        UserError, match=r"there is no folder .*/none; train it first, or give the folder of a finished"
    ):
        read_checkpoint(tmp_path / "none")
    save_checkpoint(tmp_path, trained()[0], {"model": {"width": 3}})
    with pytest.raises(UserError, match=r"another config: weight is float \(2, 3\) there and float \(2, 4\) here"):
        load_weights(tmp_path, torch.nn.Linear(4, 2))
    data = (tmp_path / CHECKPOINT_FILE).read_bytes()
    (tmp_path / CHECKPOINT_FILE).write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="is damaged"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("step", [None, "x", [1], 1.5, -5, 10**30, True])
def test_progress_that_is_no_number_of_steps_is_refused(tmp_path: Path, step: Any) -> None:
    save_checkpoint(tmp_path, trained()[0], {}, {} if step is None else {"step": step})
    with pytest.raises(UserError, match=r"checkpoint.safetensors: step .*; restore a copy, or delete it and train"):
        read_checkpoint(tmp_path).steps("step")


@pytest.mark.parametrize(
    "change",
    [
        {"exp_avg": torch.zeros(3, 3)},
        {"step": torch.tensor(-1.0)},
        {"step": torch.zeros(2)},
        {"other": torch.zeros(2, 3)},
        {"exp_avg": None},
    ],
)
def test_an_optimizer_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Tensor | None]) -> None:
    model, optimizer = trained()
    moments = optimizer.state[model.weight]
    changed = {k: v for k, v in (moments | change).items() if v is not None}
    optimizer.state[model.weight] = changed
    save_checkpoint(tmp_path, model, {}, {"step": 1}, optimizer)
    with pytest.raises(UserError, match=r"has an optimizer state that does not fit \(parameter 0\)"):
        read_checkpoint(tmp_path).fill_optimizer(trained()[1])
    save_checkpoint(tmp_path, model, {}, {"step": 1})
    with pytest.raises(UserError, match="has no optimizer state, so no run can resume from it"):
        read_checkpoint(tmp_path).fill_optimizer(trained()[1])


def test_weights_of_another_kind_of_number_are_refused(tmp_path: Path) -> None:
    model = trained()[0]
    for kind, name in ((torch.int32, "int32"), (torch.complex64, "complex")):
        state = {k: v.detach().to(kind) for k, v in model.state_dict().items()}
        write_atomic(tmp_path / CHECKPOINT_FILE, pack(state, {"config": {}, "progress": {}}))
        with pytest.raises(UserError, match=rf"bias is {name} \(2,\) there and float \(2,\) here"):
            load_weights(tmp_path, model)


def test_numbers_that_json_has_not_are_neither_written_nor_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="numbers that are not finite"):
        save_checkpoint(tmp_path, trained()[0], {"a": float("nan")})
    assert load_json('{"a": [1, 2.5]}') == {"a": [1, 2.5]}
    for text in ("NaN", '{"a": -Infinity}', "[1e400]"):
        with pytest.raises(ValueError, match="is not a finite number"):
            load_json(text)


def test_a_folder_is_no_file_to_write(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder; give the name of a file"):
        write_atomic(tmp_path, b"")


def fill(folder: Path, steps: range, keep: int) -> None:
    for step in steps:
        save_checkpoint(folder, torch.nn.Linear(2, 2), {}, {"step": step}, keep=keep)


def steps(folder: Path) -> dict[str, int]:
    """What each file of a folder counts, newest first."""
    return {path.name: json.loads(header_of(path))["progress"]["step"] for path in checkpoints(folder)}


def header_of(path: Path) -> str:
    with safe_open(path, "pt") as file:
        return file.metadata()["worldmodel"]


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


def test_equal_checkpoints_have_equal_bytes(tmp_path: Path) -> None:
    model, optimizer = trained()
    for i in range(12):
        save_checkpoint(tmp_path / str(i), model, {"b": 1, "a": 2}, {"step": 1}, optimizer)
    assert len({(tmp_path / str(i) / CHECKPOINT_FILE).read_bytes() for i in range(12)}) == 1


def test_the_last_ones_stay(tmp_path: Path) -> None:
    fill(tmp_path, range(1, 5), keep=3)
    assert steps(tmp_path) == {CHECKPOINT_FILE: 4, "previous-1.safetensors": 3, "previous-2.safetensors": 2}
    fill(tmp_path, range(5, 6), keep=2)
    assert steps(tmp_path) == {CHECKPOINT_FILE: 5, "previous-1.safetensors": 4}
    replace_config(tmp_path, {"other": 1})
    assert steps(tmp_path) == {CHECKPOINT_FILE: 5}, "what came before it is of another config"
    fill(tmp_path, range(6, 18), keep=12)
    assert list(steps(tmp_path).values()) == [17, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6]


def test_the_newest_whole_one_is_used_and_a_sentence_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path, range(1, 4), keep=3)
    assert read_checkpoint(tmp_path).progress == {"step": 3} and capsys.readouterr().err == ""
    damage(tmp_path / CHECKPOINT_FILE)
    assert [read_checkpoint(tmp_path).progress, read_checkpoint(tmp_path).progress] == [{"step": 2}] * 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line.startswith(f"{tmp_path / CHECKPOINT_FILE} is damaged")
        and "previous-1.safetensors, which came before it" in line
    )
    (tmp_path / "previous-1.safetensors").write_bytes(b"")
    restore_newest(tmp_path)
    assert "previous-2.safetensors, which" in capsys.readouterr().err
    assert read_checkpoint(tmp_path).progress == {"step": 1} and capsys.readouterr().err == ""
    fill(tmp_path, range(2, 3), keep=2)
    (tmp_path / CHECKPOINT_FILE).unlink()
    assert (
        read_checkpoint(tmp_path).progress == {"step": 1} and f"{CHECKPOINT_FILE} is missing" in capsys.readouterr().err
    )
    restore_newest(tmp_path)
    damage(tmp_path / CHECKPOINT_FILE)
    with pytest.raises(
        UserError, match=rf"{CHECKPOINT_FILE} is damaged .*; restore a copy, or delete it and train again"
    ):
        read_checkpoint(tmp_path)


class Death(BaseException):
    """Of a process."""


def dying(usual: Callable[..., Any], calls: Iterator[int], last: int) -> Callable[..., Any]:
    """A function that works until a number of calls, of it and others, is reached, and then no more."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) >= last:
            raise Death
        return usual(*args, **kwargs)

    return call


def test_a_commit_that_dies_anywhere_leaves_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each call that changes the folder; the step it counts is the old one or the new one."""
    found = []
    for last in itertools.count(1):
        folder, calls = tmp_path / str(last), itertools.count(1)
        fill(folder, range(1, 4), keep=2)
        with monkeypatch.context() as patched:
            for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink"), (Path, "mkdir")):
                patched.setattr(owner, name, dying(getattr(owner, name), calls, last))
            try:
                fill(folder, range(4, 5), keep=2)
                break
            except Death:
                pass
        found.append(read_checkpoint(folder).progress["step"])
        fill(folder, range(5, 6), keep=2)
        assert read_checkpoint(folder).progress == {"step": 5} and len(checkpoints(folder)) == 2
    assert found == sorted(found) and set(found) == {3, 4} and len(found) >= 8


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    model, optimizer = trained()
    save_checkpoint(tmp_path, model, {}, {"step": 1}, optimizer)
    before = (tmp_path / CHECKPOINT_FILE).read_bytes()
    optimizer.state[model.weight]["exp_avg"][0, 0] = float("inf")
    with pytest.raises(UserError, match=r"optimizer.0.exp_avg has values that are not finite, so nothing was saved"):
        save_checkpoint(tmp_path, model, {}, {"step": 2}, optimizer)
    with torch.no_grad():
        model.bias[1] = float("nan")
    with pytest.raises(UserError, match=r"bias has values that are not finite, so nothing was saved"):
        save_checkpoint(tmp_path, model, {}, {"step": 2})
    assert (tmp_path / CHECKPOINT_FILE).read_bytes() == before and len(checkpoints(tmp_path)) == 1


def test_a_full_disk_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, range(1, 3), keep=2)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        UserError, match=r"could not be written \(No space left on device\), but the last checkpoint is intact"
    ):
        fill(tmp_path, range(3, 4), keep=2)
    assert steps(tmp_path) == {CHECKPOINT_FILE: 2, "previous-1.safetensors": 1}


def test_what_is_no_checkpoint_is_told_in_a_sentence(tmp_path: Path) -> None:
    for info in ({}, {"config": [], "progress": {}}, {"config": {}, "progress": None}):
        (tmp_path / CHECKPOINT_FILE).write_bytes(pack({"a": torch.ones(1)}, info))
        with pytest.raises(UserError, match="is not a checkpoint"):
            read_checkpoint(tmp_path)
    (tmp_path / CHECKPOINT_FILE).unlink()
    (tmp_path / CHECKPOINT_FILE).mkdir()
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        read_checkpoint(tmp_path)
