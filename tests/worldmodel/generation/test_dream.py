"""Dreams: seeds, lanes, snapshots; and that the toy world is dreamed right."""

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
from worldmodel.models.reward_done import OutcomeModel
from worldmodel.models.vqvae import VQVAE
from worldmodel.models.vqvae_config import VQVAEConfig
from worldmodel.utils.errors import UserError
from worldmodel.utils.hardware import Precision


@pytest.fixture(params=["toy_run", "recurrent_run"])
def run(request: pytest.FixtureRequest) -> Path:
    """The toy world with a VQ-VAE of the paper and with a recurrent one."""
    return request.getfixturevalue(request.param)


@pytest.fixture(params=[0, 3], ids=["one frame", "stacked frames"])
def dream(run: Path, request: pytest.FixtureRequest) -> Dream:
    """As trained; or with an untrained outcome model of three frames, whose past is one more thing to keep."""
    dream = Dream.load(run)
    if request.param:
        torch.manual_seed(0)
        config = replace(dream.outcome.config, n_stacked_frames=request.param, predict_from_past=True)
        dream.outcome = OutcomeModel(config, dream.outcome.codebook).eval()
    return dream


@pytest.fixture
def contexts(run: Path) -> Context:
    return Context.load(run)


def double(dream: Dream) -> Dream:
    for model in (dream.vqvae, dream.prior, dream.outcome):
        model.double()
    return dream


def to_double(contexts: Context) -> Context:
    return replace(contexts, condition=contexts.condition.double(), variables=contexts.variables.double())


def shorten(contexts: Context, n: int) -> Context:
    return replace(contexts, **{name: getattr(contexts, name)[:, :n] for name in ("codes", "condition", "variables")})


def play(dream: Dream, lanes: DreamState, actions: np.ndarray) -> list[torch.Tensor]:
    """Everything that steps of actions (t, b) give, as tensors over (t, b)."""
    steps = [dream.step(lanes, a) for a in actions]
    names = (
        "codes",
        "frames",
        "reward",
        "terminated",
        "variables",
        "done_prob",
        "expected_reward",
        "expected_variables",
        "log_likelihood",
        "entropy",
    )
    return [torch.stack([getattr(s, name) for s in steps]) for name in names]


def test_same_seed_same_dream_other_seed_another(dream: Dream, contexts: Context) -> None:
    warm = Dream(dream.vqvae, dream.prior, dream.outcome, dream.env_spec, SamplingConfig(temperature=3.0))
    actions = np.random.default_rng(0).integers(3, size=(8, 1))
    runs = [play(warm, warm.reset(contexts[:1], [seed])[0], actions) for seed in (5, 5, 6)]
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not torch.equal(runs[0][0], runs[2][0])


def test_a_lane_of_a_batch_is_the_same_lane_alone(dream: Dream, contexts: Context) -> None:
    dream = double(dream)
    contexts = to_double(contexts)
    dream.sampling = SamplingConfig(temperature=2.0)
    actions = np.random.default_rng(0).integers(3, size=(8, 4))
    together = play(dream, dream.reset(contexts, [1, 2, 3, 4])[0], actions)
    for i in range(4):
        alone = play(dream, dream.reset(contexts[i : i + 1], [i + 1])[0], actions[:, i : i + 1])
        assert torch.equal(together[0][:, i : i + 1], alone[0])
        for a, b in zip(together[1:], alone[1:], strict=True):
            torch.testing.assert_close(a[:, i : i + 1], b)


def test_a_lane_can_begin_anew_among_others(dream: Dream, contexts: Context) -> None:
    dream = double(dream)
    contexts = to_double(contexts)
    actions = np.random.default_rng(1).integers(3, size=(10, 2))
    lanes, *_ = dream.reset(contexts[:2], [1, 2])
    play(dream, lanes, actions[:5])
    undisturbed = lanes.clone()
    fresh, *_ = dream.reset(contexts[2:3], [9], time=lanes.kv_cache.time)
    lanes.set_lanes(torch.tensor([1]), fresh)
    after = play(dream, lanes, actions[5:])
    expected = play(dream, undisturbed, actions[5:])
    alone = play(dream, dream.reset(contexts[2:3], [9])[0], actions[5:, 1:])
    assert torch.equal(after[0][:, :1], expected[0][:, :1])
    assert torch.equal(after[0][:, 1:], alone[0])
    torch.testing.assert_close(after[4][:, 1:], alone[4])


def test_a_lane_of_a_longer_context_joins_lanes_of_a_shorter_one(dream: Dream, contexts: Context) -> None:
    """It keeps all of its past, which is longer than theirs."""
    dream = double(dream)
    contexts = to_double(contexts)
    short = shorten(contexts[:2], 1)
    actions = np.random.default_rng(1).integers(3, size=(6, 2))
    lanes, *_ = dream.reset(short, [1, 2])
    undisturbed = lanes.clone()
    fresh, *_ = dream.reset(contexts[2:3], [9], time=lanes.kv_cache.time)
    lanes.set_lanes(torch.tensor([1]), fresh)
    together, expected = play(dream, lanes, actions), play(dream, undisturbed, actions)
    alone = play(dream, dream.reset(contexts[2:3], [9])[0], actions[:, 1:])
    for one, other, joined in zip(together, expected, alone, strict=True):
        torch.testing.assert_close(one[:, :1], other[:, :1])
        torch.testing.assert_close(one[:, 1:], joined)


def test_a_snapshot_is_untouched_by_what_follows(dream: Dream, contexts: Context) -> None:
    dream.sampling = SamplingConfig(temperature=3.0)
    actions = np.random.default_rng(2).integers(3, size=(12, 2))
    lanes, *_ = dream.reset(contexts[:2], [1, 2])
    play(dream, lanes, actions[:3])
    saved = lanes.clone()
    first = play(dream, lanes, actions[3:])
    again = play(dream, saved, actions[3:])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_toy_world_is_dreamed_as_it_is(run: Path, contexts: Context, precision: Precision) -> None:
    """The square goes where the actions push it, and the variable that names its column agrees."""
    dream = Dream.load(run, SamplingConfig(temperature=0), precision=precision)
    assert dream.prior.start_token.dtype == getattr(torch, precision)
    actions = np.random.default_rng(3).integers(3, size=(20, 4))
    lanes, frame, _ = dream.reset(contexts, [0, 1, 2, 3])
    _, frames, reward, _, variables, *_ = play(dream, lanes, actions)
    where = lambda f: f[..., 4:12, :, 0].float().mean(-2).unflatten(-1, (4, 4)).mean(-1).argmax(-1)  # noqa: E731
    expected = where(frame) + torch.from_numpy(np.cumsum(np.array([0, -1, 1])[actions], 0))
    assert (where(frames[:, :, -1]) == expected % 4).float().mean() > 0.95
    assert (variables[..., 0].round() == expected % 4).float().mean() > 0.8
    assert (reward - 1).abs().mean() < 0.2


def test_contexts_of_ones_own(dream: Dream) -> None:
    frames = np.full((1, 4, 16, 16, 3), 40, np.uint8)
    frames[:, :, 4:12, 4:8] = (250, 200, 60)
    context = dream.encode_context(frames, np.zeros((1, 3), int), np.ones((1, 4, 1), np.float32))
    recurrent = context.state is not None
    assert len(context.condition[0]) == (3 if recurrent else 4)
    if not recurrent:  # a recurrent VQ-VAE is given the first frame
        assert context.condition[0, 0].tolist() == [0, 0, 0], "no action led into the first frame"
    assert context.condition[0, -1].tolist() == [1, 0, 0]
    _, frame, variables = dream.reset(context, [0])
    assert np.abs(frame[0].numpy().astype(int) - frames[0, -1]).mean() < 20
    assert variables[0].round().item() == 1
    none = np.zeros((1, 3), int)
    for bad, sentence in (
        ((frames / 255.0, none), "uint8 .*not float64"),
        ((frames, none[:, :2]), "4 frames have 3 actions between them, but 2"),
        ((frames, none, np.ones((1, 4, 2), np.float32)), "toy has 1 game variables"),
        ((frames[:, :, :8], none), "takes (clips|frames) of"),
    ):
        with pytest.raises(UserError, match=sentence):
            dream.encode_context(*bad)


def test_a_dream_starts_from_a_single_frame(dream: Dream) -> None:
    frames = np.full((1, 1, 16, 16, 3), 40, np.uint8)
    frames[:, :, 4:12, 4:8] = (250, 200, 60)
    context = dream.encode_context(frames, np.zeros((1, 0), int), np.ones((1, 1, 1), np.float32))
    assert context.condition.tolist() == [[[0, 0, 0]]], "no action led into the first frame"
    _, frame, _ = dream.reset(context, [0])
    square = np.s_[4:12, 4:8]
    assert np.abs(frame[0].numpy().astype(int) - frames[0, -1])[square].mean() < 40, "130 without the square"
    assert np.abs(frame[0].numpy().astype(int) - frames[0, -1]).mean() < 8


def test_mistakes_are_told_in_a_sentence(dream: Dream, contexts: Context, tmp_path: Path) -> None:
    lanes, *_ = dream.reset(contexts[:1], [0])
    with pytest.raises(UserError, match=r"action 3 is outside Discrete\(3\)"):
        dream.step(lanes, np.array([3]))
    with pytest.raises(UserError, match=r"1 lanes take actions of shape \(1,\), not \(2,\)"):
        dream.step(lanes, np.array([0, 1]))
    with pytest.raises(UserError, match="needs a VQ-VAE and a prior in stream mode"):
        paper = VQVAE(VQVAEConfig(hidden_channels=4, residual_channels=4, n_res_blocks=0, n_codes=2, embedding_dim=2))
        Dream(paper, dream.prior, dream.outcome, dream.env_spec)
    with pytest.raises(UserError, match="train it first"):
        Dream.load(tmp_path)
    with pytest.raises(UserError, match=r"train/tokens.py writes the contexts"):
        Context.load(tmp_path)
