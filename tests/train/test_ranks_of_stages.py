"""The stages on two ranks read the same clips and lanes as on one, each rank its share."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.conftest import stages
from tests.ranks import on_ranks, only_sentence
from train import outcome, prior, tokens, vqvae
from worldmodel.data.opening import write_manifest
from worldmodel.training import trainer
from worldmodel.training.scalars import read_scalars
from worldmodel.utils import hardware
from worldmodel.utils.checkpoint import read_checkpoint
from worldmodel.utils.ranks import rank
from worldmodel.utils.settings import Address

STEPS = 4


def work(number: int, run: Path, recurrent: bool, precision: str = "float32") -> None:
    """Train one of the models for a few steps."""
    args = stages(run, recurrent=recurrent)[number]
    few: dict[str, Any] = {"steps": STEPS, "log_every": 1, "eval_every": STEPS, "precision": precision}
    settings: dict[str, Any] = {"trainer": replace(args.trainer, **few), "n_eval_clips": 2}  # type: ignore[union-attr]
    (vqvae, tokens, prior, outcome)[number].main(replace(args, **settings))  # type: ignore[arg-type]


def curve(folder: Path) -> list[float]:
    return [event.value for event in read_scalars(folder / "log", "train/loss")]


def compare(
    number: int, name: str, run: Path, tmp_path: Path, recurrent: bool, precision: str = "float32", rel: float = 1e-4
) -> None:
    """Train on one rank into a copy of a run, and on two into the run itself."""
    alone = tmp_path / f"alone-{name}"
    shutil.copytree(run, alone)
    work(number, alone, recurrent, precision)
    found = on_ranks(tmp_path / f"ranks-{name}", 2, work, number, run, recurrent, precision)
    assert [status for status, _ in found] == [0, 0], found
    assert found[1][1] == "", "other ranks than the first print nothing"
    assert len(curve(run / name)) == STEPS
    assert curve(run / name) == pytest.approx(curve(alone / name), rel=rel)
    whole, split = (read_checkpoint(folder / name) for folder in (alone, run))
    assert whole.config == split.config
    assert {k: v.shape for k, v in whole.state.items()} == {k: v.shape for k, v in split.state.items()}


@pytest.mark.parametrize(("precision", "rel"), [("float32", 1e-4), ("bfloat16", 0.01)])
def test_clips_are_shared(
    precision: str, rel: float, toy_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    compare(0, "vqvae", toy_store.parent, tmp_path_factory.mktemp("clips"), False, precision, rel)


def without_data(run: Path) -> None:
    """Rank 1 is on a machine that does not have the store."""
    if rank():
        run = run.parent / "elsewhere"
    work(0, run, False)


def incomplete(run: Path) -> None:
    """The manifest of the data names a store that is not there."""
    vqvae.main(replace(stages(run)[0], data=Address(str(run / "joined.zarr"))))


def without_rights(run: Path, data: str, endpoint: str, refused: tuple[int, ...]) -> None:
    """Read from a bucket; the ranks in `refused` have no keys."""
    os.environ["NO_PROXY"] = "127.0.0.1"  # the process that this one is forked from may lack it
    keys: dict[str, Any] = {"anon": True} if rank() in refused else {"key": "somebody", "secret": "something"}
    fsspec.config.conf["s3"] = {"endpoint_url": endpoint} | keys
    args = stages(run)[0]
    vqvae.main(replace(args, data=Address(data), trainer=replace(args.trainer, steps=1), n_eval_clips=2))


@pytest.mark.parametrize("refused", [(0, 1), (0,), (1,)])
def test_a_bucket_that_refuses_is_told_by_one_rank_and_ends_both(
    bucket: str, s3_endpoint: str, toy_fill: Callable[..., Any], tmp_path: Path, refused: tuple[int, ...]
) -> None:
    data = f"{bucket}/data.zarr"
    toy_fill(data, 10)
    found = on_ranks(tmp_path, 2, without_rights, tmp_path / "run", data, s3_endpoint, refused, patience=20.0)
    assert f"{data}/zarr.json cannot be read (Forbidden); check the endpoint, the keys and" in only_sentence(found)


def other_frames(run: Path) -> None:
    """The store of rank 1 has one more episode."""
    args = stages(run)[0]
    vqvae.main(replace(args, data=Address(str(run / ("other" if rank() else "data.zarr")))))


def test_stores_that_differ_are_told(toy_store: Path, toy_fill: Callable[..., Any], tmp_path: Path) -> None:
    toy_fill(toy_store.parent / "other", 21)
    said = only_sentence(on_ranks(tmp_path / "log", 2, other_frames, toy_store.parent, patience=20.0))
    assert re.search(r"rank 1 has data\..* = \w+, but rank 0 has \w+; start all ranks with the same", said), said


def other_frames_beside_codes(run: Path) -> None:
    """The prior of rank 1 reads the same codes, but sees other frames."""
    args = stages(run, "paper")[2]
    data = Address(str(run / ("other" if rank() else "data.zarr")))
    prior.main(replace(args, actions=False, data=data, model=replace(args.model, n_cond_frames=1)))


def test_frames_beside_codes_that_differ_are_told(
    toy_store: Path, toy_fill: Callable[..., Any], tmp_path: Path
) -> None:
    run = toy_store.parent
    first, second, *_ = stages(run, "paper", steps=1)
    vqvae.main(first)
    tokens.main(second)
    toy_fill(run / "other", 21)
    said = only_sentence(on_ranks(tmp_path / "log", 2, other_frames_beside_codes, run, patience=20.0))
    assert re.search(r"rank 1 has data\.frames/.* = \w+, but rank 0 has \w+; start all ranks with the same", said), said


def by_chance(run: Path) -> None:
    """A measurement makes bfloat16 faster on rank 0 alone."""
    hardware.supports_bfloat16, hardware.bfloat16_is_faster = lambda: True, lambda: not rank()
    step, args = trainer.train_step, stages(run)[0]

    def checked(*given: Any) -> Any:
        assert given[4].precision == "float32"
        return step(*given)

    trainer.train_step = checked
    vqvae.main(replace(args, trainer=replace(args.trainer, steps=1, precision="auto"), n_eval_clips=2))


def test_ranks_agree_on_a_precision(toy_store: Path, tmp_path: Path) -> None:
    found = on_ranks(tmp_path / "log", 2, by_chance, toy_store.parent)
    assert [status for status, _ in found] == [0, 0], found
    assert found[0][1].count("bfloat16 is not faster on all ranks, so float32 is used") == 1 and not found[1][1]


def test_a_mistake_is_told_by_one_rank_and_ends_both(toy_store: Path, tmp_path: Path) -> None:
    """Both mistakes come before the ranks first communicate."""
    found = on_ranks(tmp_path / "a", 2, without_data, toy_store.parent, patience=20.0)
    assert "elsewhere/data.zarr" in only_sentence(found), found
    shutil.copytree(toy_store, tmp_path / "joined.zarr" / "0")
    write_manifest(str(tmp_path / "joined.zarr"), ["0", "1"])
    assert "joined.zarr/1" in only_sentence(on_ranks(tmp_path / "b", 2, incomplete, tmp_path, patience=20.0))


def test_lanes_codes_and_sequences_are_shared(
    toy_store: Path, toy_stages: Callable[..., tuple], tmp_path_factory: pytest.TempPathFactory
) -> None:
    run, beside = toy_store.parent, tmp_path_factory.mktemp("lanes")
    compare(0, "vqvae", run, beside, recurrent=True)
    tokens.main(toy_stages(run, recurrent=True)[1])
    compare(2, "prior", run, beside, recurrent=True)
    compare(3, "outcome", run, beside, recurrent=True)
