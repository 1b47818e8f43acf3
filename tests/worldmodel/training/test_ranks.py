"""Several ranks and parts take the step of one: to rounding in float64, with the codebook and its resets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.ranks import on_ranks, only_sentence, restarting
from tests.tiny import tiny_vqvae
from tests.worldmodel.training.split_fits import CLIPS, KINDS, Fault, train
from worldmodel.models.vqvae import VQVAE
from worldmodel.training import trainer
from worldmodel.training.distributed import Loss, check_gpus
from worldmodel.training.trainer import fit
from worldmodel.training.trainer_config import TrainerConfig
from worldmodel.utils.checkpoint import CHECKPOINT_FILE, checkpoints, read_checkpoint
from worldmodel.utils.errors import UserError
from worldmodel.utils.lock import folder_lock
from worldmodel.utils.ranks import rank


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
        found = on_ranks(tmp_path, ranks, partial(train, kind, tmp_path / "run", accumulate=parts))
        assert [status for status, _ in found] == [0] * ranks, found
    same(alone(kind), tmp_path / "run")


@pytest.mark.parametrize(
    ("kind", "parts"), [("vqvae", 2), ("recurrent", 1), ("recurrent", 2), ("prior", 2), ("outcome", 2)]
)
def test_a_sharded_model_takes_the_steps_of_a_whole_one(kind: str, parts: int, alone, tmp_path: Path) -> None:
    """It stops on the way, and goes on on two ranks; its checkpoints are those of a whole one."""
    fault = Fault(1, 9, signal.SIGTERM, tmp_path / "stopped")
    work = partial(train, kind, tmp_path / "run", accumulate=parts, shard=True)
    only_sentence(on_ranks(tmp_path, 2, work, fault), 130)
    found = on_ranks(tmp_path / "on", 2, work, fault)
    assert [status for status, _ in found] == [0, 0], found
    same(alone(kind), tmp_path / "run")


@pytest.mark.parametrize("kind", ["vqvae", "prior"])
def test_a_sharded_run_goes_on_under_other_ranks_and_then_whole(kind: str, alone, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for ranks, stop in ((2, 5), (4, 12)):
        fault = Fault(0, stop, signal.SIGTERM, tmp_path / f"stopped-{ranks}")
        work = partial(train, kind, out, fault, shard=True)
        only_sentence(on_ranks(tmp_path / f"of-{ranks}", ranks, work), 130)
    train(kind, out)
    same(alone(kind), out)


def test_one_rank_has_nothing_to_shard_over(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shard spreads a model over ranks; start several with torchrun"):
        train("prior", tmp_path / "run", shard=True)


def test_a_run_goes_on_under_another_number_of_ranks_and_one_signal_stops_all(alone, tmp_path: Path) -> None:
    """From 2 to 4 and on to 1: checkpoints have all lanes."""
    out = tmp_path / "run"
    for ranks, stop in ((2, 5), (4, 12)):
        fault = Fault(ranks - 1, stop, signal.SIGTERM, tmp_path / f"stopped-{ranks}")
        found = on_ranks(tmp_path / f"of-{ranks}", ranks, train, "recurrent", out, fault)
        assert only_sentence(found, 130) == "interrupted"
        saved = read_checkpoint(out)
        assert stop - 1 <= saved.progress["step"] <= stop + 1
        assert len(saved.state["lanes"]) == CLIPS and saved.state["lanes"].any()
    train("recurrent", out)
    same(alone("recurrent"), out)


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_rank_is_told_once_and_ends_all(failing: int, tmp_path: Path) -> None:
    fault = Fault(failing, 3, UserError("the store is damaged; restore it"), tmp_path / "failed")
    found = on_ranks(tmp_path, 4, train, "prior", tmp_path / "run", fault)
    assert only_sentence(found) == "error: the store is damaged; restore it"


def test_a_rank_that_dies_is_told_once_and_ends_all(tmp_path: Path) -> None:
    fault = Fault(1, 3, signal.SIGKILL, tmp_path / "died")
    found = on_ranks(tmp_path, 4, train, "vqvae", tmp_path / "run", fault)
    assert found.pop(1) == (-signal.SIGKILL, "")
    assert only_sentence(found).startswith("error: a rank has ended or does not answer; look for its error above, and")


def pausing(out: Path, mark: Path) -> None:
    """Rank 1 stops in the middle of a step, as if its machine were gone, and wakes when the others have ended."""
    if rank() == 1:
        wake = f"for i in $(seq 600); do [ -e {mark} ] && break; sleep 0.1; done; sleep 12; kill -CONT {os.getpid()}"
        subprocess.Popen(["sh", "-c", wake])
    train("prior", out, Fault(1, 3, signal.SIGSTOP, mark))


def test_a_rank_that_does_not_answer_is_told_once_and_ends_all(tmp_path: Path) -> None:
    start = time.monotonic()
    found = on_ranks(tmp_path, 2, pausing, tmp_path / "run", tmp_path / "stopped", patience=6.0)
    assert only_sentence(found).startswith("error: a rank has ended or does not answer; look for its error above, and")
    assert "error" in found[0][1], "the one that waited tells it"
    assert time.monotonic() - start < 50


def differing(out: Path, **of_rank_1: Any) -> None:
    train("prior", out, **(of_rank_1 if rank() else {}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"learning_rate": 0.5}, "rank 1 has trainer.learning_rate = 0.5, but rank 0 has 0.01; start all ranks with"),
        ({"save_every": 7}, "rank 1 has trainer.save_every = 7, but rank 0 has 10; start all ranks with the same"),
        ({"data": {"frames": 1}}, "rank 1 has data.frames = 1, but rank 0 has None; start all ranks with the same"),
    ],
)
def test_ranks_that_differ_are_told(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    assert sentence in only_sentence(on_ranks(tmp_path, 2, partial(differing, tmp_path / "run", **changes)))
    assert not checkpoints(tmp_path / "run")


def elsewhere(out: Path) -> None:
    train("prior", out / f"of-{rank()}")


def other_code(out: Path) -> None:
    trainer.code_digest = lambda: f"code of rank {rank()}"
    train("prior", out)


def test_ranks_that_see_other_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    said = only_sentence(on_ranks(tmp_path / "a", 2, elsewhere, tmp_path / "run"))
    assert f"rank 1 has out = {tmp_path}/run/of-1, but rank 0 has {tmp_path}/run/of-0" in said
    said = only_sentence(on_ranks(tmp_path / "b", 2, other_code, tmp_path / "run"))
    assert "rank 1 has code = code of rank 1, but rank 0 has code of rank 0; start all ranks with the same" in said


def test_a_batch_that_cannot_be_divided_is_told(tmp_path: Path) -> None:
    said = only_sentence(on_ranks(tmp_path, 3, train, "prior", tmp_path / "run"))
    assert said.startswith(
        "error: batch_size = 8 cannot be divided equally among 3 ranks with accumulate = 1; set batch"
    )
    with pytest.raises(UserError, match="among 1 ranks with accumulate = 16; set batch_size to a multiple of 16"):
        train("prior", tmp_path / "run", accumulate=16)


def test_a_folder_that_another_process_writes_is_told_once(tmp_path: Path) -> None:
    with folder_lock(tmp_path / "run"):
        said = only_sentence(on_ranks(tmp_path, 2, train, "prior", tmp_path / "run"))
    assert "is being written by another process" in said


def test_more_ranks_than_gpus_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="there are 4 ranks on a machine with 2 GPUs; start at most 2 with --nproc"):
        check_gpus(torch.device("cuda"))
    check_gpus(torch.device("cpu"))


def unknown_flag() -> None:
    print("no such flag", file=sys.stderr)
    sys.exit(2)


def test_a_wrong_command_line_is_told_by_the_first_rank(tmp_path: Path) -> None:
    assert only_sentence(on_ranks(tmp_path, 3, unknown_flag)) == "no such flag"


def test_batch_norm_cannot_be_split(tmp_path: Path) -> None:
    model = VQVAE(tiny_vqvae(norm="batch"))
    config = TrainerConfig(batch_size=4, accumulate=2)
    with pytest.raises(UserError, match="batch norm takes its statistics from one part of a batch"):
        fit(model, lambda batch: model(batch["frames"]), lambda rng, step: {}, config, tmp_path, {})


def test_parts_draw_random_numbers_of_their_own(tmp_path: Path) -> None:
    """Else clips of all ranks would share their dropout."""
    drawn = []

    def loss(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        drawn.append(torch.rand(1).item())
        return {"loss": model(batch["x"]).mean()}

    model = torch.nn.Linear(1, 1)
    config = TrainerConfig(steps=2, batch_size=4, accumulate=4, precision="float32")
    fit(model, loss, lambda rng, step: {"x": np.ones((4, 1), np.float32)}, config, tmp_path, {})
    assert len(drawn) == 1 + 2 * 4, "one pass over the whole batch, which asks nothing of it, and then the parts"
    assert len(set(drawn)) == 2 * 4 and drawn[0] == drawn[1]


def test_a_rank_that_is_killed_ends_as_if_it_had_not_been(alone, tmp_path: Path) -> None:
    """As under `torchrun --max-restarts 1`."""
    fault = Fault(1, 15, signal.SIGKILL, tmp_path / "died")
    restarting(tmp_path, 2, 1, train, "vqvae", tmp_path / "run", fault)
    assert (tmp_path / "died").exists()
    found = on_ranks(tmp_path, 2, train, "vqvae", tmp_path / "whole")
    assert [status for status, _ in found] == [0, 0]
    whole, run = (folder / CHECKPOINT_FILE for folder in (tmp_path / "whole", tmp_path / "run"))
    assert whole.read_bytes() == run.read_bytes()
    same(alone("vqvae"), tmp_path / "run")


def compiled(out: Path, shard: bool) -> None:
    """With the eager backend: inductor would take minutes."""
    original = torch.compile

    def compile_(loss: Loss) -> Loss:
        with open(out.parent / f"compiled-{rank()}", "a") as file:
            file.write("once")
        return original(loss, backend="eager")  # type: ignore[return-value]

    torch.compile = compile_  # type: ignore[assignment]
    train("outcome", out, compile=True, shard=shard)


@pytest.mark.parametrize(("ranks", "shard"), [(1, False), (2, False), (2, True)])
def test_a_compiled_model_takes_the_same_steps(ranks: int, shard: bool, alone, tmp_path: Path) -> None:
    found = on_ranks(tmp_path, ranks, compiled, tmp_path / "run", shard)
    assert [status for status, _ in found] == [0] * ranks, found
    assert [(tmp_path / f"compiled-{r}").read_text() for r in range(ranks)] == ["once"] * ranks
    same(alone("outcome"), tmp_path / "run")
