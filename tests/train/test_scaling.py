"""The cost of a step against a hand calculation, what ranks send against a count, and the tables."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from tests.ranks import on_ranks
from train import scaling, step_timing
from train.step_cost import (
    Collective,
    Compute,
    Links,
    Traffic,
    codebook,
    fit_line,
    step_seconds,
    step_traffic,
)
from train.step_timing import Times, Timing
from train.workloads import Task
from worldmodel.models.prior import PriorConfig
from worldmodel.models.vqvae_config import VQVAEConfig
from worldmodel.utils.errors import UserError
from worldmodel.utils.ranks import rank

VQVAE = VQVAEConfig(
    n_frames=4, frame_size=(8, 8), stride=(2, 2, 2), hidden_channels=8, residual_channels=8, n_res_blocks=1, n_codes=8,
    embedding_dim=4,
)  # fmt: skip
PRIOR = PriorConfig(latent_shape=(2, 4, 4), n_codes=8, embedding_dim=4, d_model=8, n_heads=2, n_layers=2, d_ff=16)
SMALL = {
    "vqvae": VQVAE, "prior": PRIOR, "large_vqvae": VQVAE, "large_prior": PRIOR, "batch_sizes": (1, 3, 5),
    "batch_size": 2, "precision": "float32",
}  # fmt: skip
LINKS = Links(bandwidth=100, latency=1, near=0.5, far=2, network=10, ranks_per_machine=4)


def bytes_by_kind(traffic: Traffic) -> dict[str, float]:
    """Bytes of the tensors of a step, by kind of operation."""
    total: dict[str, float] = {}
    for each in traffic.small + traffic.large:
        total[each.kind] = total.get(each.kind, 0) + each.bytes
    return total


def test_a_collective_by_hand() -> None:
    """Four ranks a machine: three hops, and two levels of a tree over four machines, each of which sends 40 bytes/s."""
    reduce, gather = Collective("all_reduce", 1000), Collective("all_gather", 1000)
    assert LINKS.seconds(reduce, 1) == 0
    assert LINKS.seconds(reduce, 4) == 1 + 2 * 3 * 0.5 + 2 * 3 / 4 * 1000 / 100
    assert LINKS.seconds(gather, 4) == 1 + 3 * 0.5 + 3 / 4 * 1000 / 100
    assert LINKS.seconds(reduce, 16) == 1 + 2 * (3 * 0.5 + 2 * 2) + 2 * 15 / 16 * 1000 / 40


def test_a_step_by_hand() -> None:
    traffic = Traffic(small=(Collective("all_reduce", 0),), large=(Collective("all_reduce", 1000),))
    compute = Compute(per_step=2, per_clip=0.5, least=3)
    assert step_seconds(compute, traffic, LINKS, 1, 8, overlap=0.5) == 6
    assert step_seconds(compute, traffic, LINKS, 4, 8, overlap=0.5) == 6 + 4 + (19 - 3)
    assert step_seconds(compute, traffic, LINKS, 4, 1, overlap=0) == 3 + 4 + 19
    assert step_seconds(compute, traffic, LINKS, 4, 100, overlap=0.5) == 52 + 4, "the backward pass hides all"
    assert traffic.sent(4) == 1500


def test_what_a_codebook_reduces() -> None:
    """Eight codes of four numbers: counts, sums, places, features, usage."""
    assert [(c.kind, c.bytes) for c in codebook(VQVAE)] == [
        ("all_reduce", 32), ("all_reduce", 128), ("broadcast", 64), ("all_reduce", 128), ("all_reduce", 64),
    ]  # fmt: skip


def test_lines() -> None:
    assert fit_line([1, 2, 10], [5, 7, 23]) == pytest.approx((3, 2))
    assert fit_line([1, 2], [1, 3]) == pytest.approx((0, 15 / 13)), "a line that would begin below zero"
    assert fit_line([1, 2], [3, 1]) == pytest.approx((1.2, 0)), "or fall"


def count(path: Path, timing: Timing) -> None:
    times = step_timing.measure(timing)
    if not rank():
        path.write_text(json.dumps(asdict(times)))


def test_two_ranks_send_what_the_model_says(tmp_path: Path) -> None:
    args = scaling.Args(shard=True, **SMALL)
    tasks = [task for task in scaling.list_tasks(args, 2, True) if task.batch_size == 1]
    assert [(task.workload, task.shard) for task in tasks] == [
        ("vqvae", False), ("vqvae", True), ("prior", False), ("prior", True),
    ]  # fmt: skip
    timing = Timing(tuple(tasks), (4096,), steps=1, threads=1)
    found = on_ranks(tmp_path, 2, count, tmp_path / "times.json", timing)
    assert [status for status, _ in found] == [0, 0], found
    times = Times(**json.loads((tmp_path / "times.json").read_text()))
    assert len(times.steps) == 4 and min(times.steps + times.reduced) > 0
    for task, counted in zip(tasks, times.collectives, strict=True):
        predicted = bytes_by_kind(predict(task))
        predicted["all_reduce"] -= 4 * task.shard  # of the gradient's norm, inside a `DTensor`, where nothing counts
        if task.workload == "prior" and task.shard:  # a block more is gathered than the model has
            assert predicted["all_gather"] <= counted["all_gather"] < 1.5 * predicted["all_gather"]
            predicted["all_gather"] = counted["all_gather"]
        assert counted == predicted, task


def predict(task: Task) -> Traffic:
    model, _ = scaling.build_model(task.workload, task.vqvae, task.prior)
    return step_traffic(model, task.vqvae if task.workload == "vqvae" else None, task.shard)


def test_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Of a machine that the model describes: 10 ms and 2 or 4 ms per clip, and reductions of 10^9 bytes a second."""
    started = []

    def pretend(n: int, timing: Timing) -> Times:
        started.append(n)
        links, ranks = Links(bandwidth=1e9, latency=0.001), n if timing.connected else 1
        compute = Compute(0.01, 0.002 * n)  # two processes are in each other's way
        steps = [step_seconds(compute, predict(task), links, ranks, task.batch_size, 0) for task in timing.tasks]
        late = [(1 + 0.1 * (len(started) < 5)) * seconds for seconds in steps]  # the first round is slower
        reduced = [links.seconds(Collective("all_reduce", size), 2) for size in timing.reduced] if ranks == 2 else []
        return Times(late, reduced, [{}] * len(steps))

    monkeypatch.setattr(scaling, "on_ranks", pretend)
    args = scaling.Args(rounds=2, out=tmp_path / "scaling.json", **SMALL)
    scaling.main(args)
    assert started == [1, 1, 2, 2] * 2
    found = json.loads(args.out.read_text())
    assert found["fitted"]["bandwidth"] == pytest.approx(1e9)
    lines = [(line["processes"], line["per_step"], line["per_clip"]) for line in found["fitted"]["lines"]]
    assert lines == [(n, pytest.approx(0.01), pytest.approx(0.002 * n)) for n in (1, 2, 1, 2)]
    rows = [(row["model"], row["ranks"], row["batch"]) for row in found["here"]]
    assert rows == [(name, n, b) for name in ("vqvae", "prior") for n, b in ((1, 2), (2, 2), (2, 4))]
    assert all(row["measured"] == pytest.approx(row["predicted"]) for row in found["here"])
    assert [row["gpus"] for row in found["gpus"]] == [2**k for k in range(11)] * 2
    first, *_, last = (row for row in found["gpus"] if row["model"] == "prior")
    assert first["bytes"] == 0 and last["bytes"] == pytest.approx(
        2 * 1023 / 1024 * (found["sizes"]["prior"]["bytes"] + 8)
    )
    assert last["weak"]["seconds"] > first["weak"]["seconds"]
    said = capsys.readouterr().out
    assert said.count("\n| 1,024 |") == 2 and said.count("a prediction") == 2


def test_what_a_clip_takes_on_a_gpu() -> None:
    """As the whole step's counter says, and in proportion to the clips."""
    model, clip = scaling.build_model("prior", VQVAE, PRIOR)
    one, operations = scaling.step_work(model, clip)
    two, _ = scaling.step_work(model, torch.cat([clip, clip]))
    assert two == 2 * one > 0 and operations > 100
    gpu = scaling.GPU(tflops=1e-12, utilization=0.5, launch_us=1e6, batch_size=3)
    _, rows = scaling.predict_gpus(scaling.Args(gpu=gpu, **SMALL))
    (alone,) = (row for row in rows if row["model"] == "prior" and row["gpus"] == 1)
    assert alone["weak"]["seconds"] == pytest.approx(max(operations, 3 * one / 0.5))
    with pytest.raises(UserError, match="batch_size = 3 cannot be shared by two ranks; give an even number"):
        replace(scaling.Args(), batch_size=3)
    with pytest.raises(UserError, match="batch_sizes needs two different numbers or more"):
        scaling.Args(batch_sizes=(4, 4))
