"""Several ranks and parts take the step of one: to rounding in float64, with the codebook and its resets."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.ranks import on_ranks
from tests.worldmodel.training.split_fits import KINDS, train
from worldmodel.utils.checkpoint import read_checkpoint


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory):
    """The folder of a training of a kind on one rank, without parts."""

    @cache
    def trained(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        train(kind, folder)
        return folder

    return trained


def scalars(out: Path) -> dict[str, list[float]]:
    """The logged curves, but for those of the speed."""
    events = EventAccumulator(str(out / "log"))
    events.Reload()
    speed = ("train/clips_per_second", "train/share_of_peak")
    return {tag: [e.value for e in events.Scalars(tag)] for tag in events.Tags()["scalars"] if tag not in speed}


def same(a: Path, b: Path) -> None:
    """Check that two runs ended the same, to rounding, and logged the same."""
    one, other = read_checkpoint(a), read_checkpoint(b)
    assert one.progress == other.progress and one.config == other.config
    assert one.weights.keys() == other.weights.keys() and one.optimizer.keys() == other.optimizer.keys()
    for name, tensor in one.weights.items():
        torch.testing.assert_close(other.weights[name], tensor, rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    for index, moments in one.optimizer.items():
        for name, tensor in moments.items():
            torch.testing.assert_close(other.optimizer[index][name], tensor, rtol=1e-7, atol=1e-9)
    assert one.state.keys() == other.state.keys()
    assert all(torch.equal(tensor, other.state[name]) for name, tensor in one.state.items())
    curves, others = scalars(a), scalars(b)
    assert curves.keys() == others.keys()
    for name, values in curves.items():
        assert others[name] == pytest.approx(values, rel=1e-5, abs=1e-7), name


@pytest.mark.parametrize(("ranks", "parts"), [(2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_and_parts_take_the_step_of_one(kind: str, ranks: int, parts: int, alone, tmp_path: Path) -> None:
    if ranks == 1:
        train(kind, tmp_path / "run", accumulate=parts)
    else:
        found = on_ranks(tmp_path, ranks, split_train, kind, tmp_path / "run", parts)
        assert [status for status, _ in found] == [0] * ranks, found
    same(alone(kind), tmp_path / "run")


def split_train(kind: str, out: Path, parts: int) -> None:
    train(kind, out, accumulate=parts)
