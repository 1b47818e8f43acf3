"""Steps from fixed buffers, as a CUDA graph replays them, are the steps there were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel.generation.context import Context
from worldmodel.generation.dream import Dream
from worldmodel.generation.dream_state import DreamState
from worldmodel.generation.sampling import SamplingConfig

DEVICES = [
    "cpu",  # the same work on the same buffers, not recorded
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: a step as a CUDA graph"),
        ],
    ),
]


@pytest.fixture(params=["toy_run", "recurrent_run"])
def run(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def dreams(run: Path, device: str) -> tuple[Dream, Dream]:
    """One that steps kernel by kernel and one that replays."""
    plain, captured = (Dream.load(run, SamplingConfig(temperature=2.0), device) for _ in range(2))
    plain.use_cuda_graphs, captured.use_cuda_graphs = False, True
    return plain, captured


def compare(plain: Dream, captured: Dream, a: DreamState, b: DreamState, actions: np.ndarray) -> None:
    for action in actions:
        one, other = plain.step(a, action), captured.step(b, action)
        assert torch.equal(one.codes, other.codes)
        for name, value in vars(one).items():
            torch.testing.assert_close(getattr(other, name), value, msg=name)
    assert a.kv_cache.time == b.kv_cache.time
    for mine, theirs in zip(a.tensors(), b.tensors(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("device", DEVICES)
def test_replayed_steps_are_the_plain_ones(run: Path, device: str) -> None:
    plain, captured = dreams(run, device)
    contexts, actions = Context.load(run), np.random.default_rng(0).integers(3, size=(20, 3))
    a, b = (dream.reset(contexts[:3], [1, 2, 3])[0] for dream in (plain, captured))
    assert b.kv_cache.is_full(), "the ring holds 3 frames, the context has 4"
    compare(plain, captured, a, b, actions[:9])
    assert len(captured.cuda_graphs) == 1
    fresh = [
        dream.reset(contexts[3:], [9], time=lanes.kv_cache.time)[0] for dream, lanes in ((plain, a), (captured, b))
    ]
    a.set_lanes(torch.tensor([1]), fresh[0])
    b.set_lanes(torch.tensor([1]), fresh[1])
    compare(plain, captured, a, b, actions[9:])


@pytest.mark.parametrize("device", DEVICES)
def test_a_replay_leaves_other_lanes_and_what_it_gave_before_alone(run: Path, device: str) -> None:
    plain, captured = dreams(run, device)
    contexts, actions = Context.load(run), np.random.default_rng(1).integers(3, size=(4, 2))
    a, b = captured.reset(contexts[:2], [1, 2])[0], captured.reset(contexts[2:], [3, 4])[0]
    one, other = plain.reset(contexts[:2], [1, 2])[0], plain.reset(contexts[2:], [3, 4])[0]
    given, saved = captured.step(a, actions[0]), a.clone()
    kept = {name: value.clone() for name, value in vars(given).items()}
    compare(plain, captured, other, b, actions)
    assert all(torch.equal(kept[name], value) for name, value in vars(given).items())
    plain.step(one, actions[0])
    compare(plain, captured, one, a, actions[1:])
    assert saved.kv_cache.time == a.kv_cache.time - 3
    assert not torch.equal(saved.kv_cache.kv[0], a.kv_cache.kv[0]), "a snapshot shares no buffer"


def test_lanes_step_kernel_by_kernel_until_all_have_a_full_ring(run: Path) -> None:
    plain, captured = dreams(run, "cpu")
    contexts, actions = Context.load(run), np.random.default_rng(2).integers(3, size=(4, 2))
    two = {name: getattr(contexts, name)[:2, :2] for name in ("codes", "condition", "variables")}
    short = replace(contexts[:2], **two)
    a, b = (dream.reset(short, [1, 2])[0] for dream in (plain, captured))
    compare(plain, captured, a, b, actions[:1])
    assert not captured.cuda_graphs, "two frames of three, then three"
    compare(plain, captured, a, b, actions[1:])
    assert len(captured.cuda_graphs) == 1


def test_few_graphs_are_kept_and_each_has_its_own_sampling(run: Path) -> None:
    captured, contexts = dreams(run, "cpu")[1], Context.load(run)
    for lanes in (1, 2, 3, 4):
        captured.step(captured.reset(contexts[:lanes], list(range(lanes)))[0], np.zeros(lanes, int))
    captured.sampling = replace(captured.sampling, temperature=0)
    captured.step(captured.reset(contexts[:1], [0])[0], np.zeros(1, int))
    assert [lanes for lanes, _ in captured.cuda_graphs] == [2, 3, 4, 1]
    assert [s.temperature for _, s in captured.cuda_graphs] == [2, 2, 2, 0]
