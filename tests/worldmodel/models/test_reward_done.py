"""The outcome model: streamed as whole, it learns what only memory tells, and draws what may happen as often."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.functional import one_hot

from rollout.evaluate_outcome import filter_episode
from worldmodel.data.env_spec import EnvSpec
from worldmodel.data.store import Store
from worldmodel.data.writer import StoreWriter
from worldmodel.models.layers import Memory
from worldmodel.models.outcome_config import OutcomeConfig
from worldmodel.models.reward_done import OutcomeModel, OutcomePrediction, previous_variables
from worldmodel.training.outcome_stage import EpisodeWindows
from worldmodel.training.outcome_verdicts import best_constant, detection_verdicts, outcome_verdicts
from worldmodel.utils.errors import UserError

ONE = {"n_variables": 1, "variable_mean": (50.0,), "variable_std": (20.0,), "variable_changes": ((-20.0, 0.0, 5.0),)}


def build(from_past: bool = False, n_stacked: int = 0, **variables: Any) -> OutcomeModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "latent_size": (2, 2),
        "n_codes": 6,
        "embedding_dim": 3,
        "condition_dim": 2,
        "hidden_dim": 16,
    }
    config = OutcomeConfig(
        **sizes, reward_rms=4.0, predict_from_past=from_past, n_stacked_frames=n_stacked, **(variables or ONE)
    )
    return OutcomeModel(config, torch.randn(1, 6, 3))


@pytest.mark.parametrize(("from_past", "n_stacked"), [(False, 0), (True, 0), (False, 3), (True, 1)])
def test_streamed_outcomes_equal_whole_ones(from_past: bool, n_stacked: int) -> None:
    model = build(from_past, n_stacked).double().eval()
    codes, condition = torch.randint(6, (3, 5, 2, 2, 1)), torch.randn(3, 5, 2).double()
    before = 100 * torch.rand(3, 5, 1).double()
    whole, last = model(codes, condition, before)
    state, memory = None, Memory()
    for t in range(5):
        out, state = model(codes[:, t : t + 1], condition[:, t : t + 1], before[:, t : t + 1], state, memory)
        for a, b in zip(out, whole, strict=True):
            torch.testing.assert_close(a[:, 0], b[:, t])
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("n_stacked", [0, 3])
def test_images_are_seen_frame_by_frame_as_in_a_clip(n_stacked: int) -> None:
    model = build(False, n_stacked, image_channels=4, frame_shape=(8, 8, 3)).double().eval()
    codes, condition, before = torch.randint(6, (3, 5, 2, 2, 1)), torch.randn(3, 5, 2).double(), torch.rand(3, 5, 1)
    images = torch.randint(256, (3, 5, 8, 8, 3), dtype=torch.uint8)
    whole, last = model(codes, condition, before.double(), images=images)
    state, memory = None, Memory()
    for t in range(5):
        one = (x[:, t : t + 1] for x in (codes, condition, before.double()))
        out, state = model(*one, state, memory, images[:, t : t + 1])
        for a, b in zip(out, whole, strict=True):
            torch.testing.assert_close(a[:, 0], b[:, t])
    torch.testing.assert_close(state, last)
    other, _ = model(codes, condition, before.double(), images=255 - images)
    assert not torch.allclose(other.done_logit, whole.done_logit)


@pytest.mark.parametrize("n_stacked", [0, 3])
def test_an_episode_is_read_as_it_was_learned(n_stacked: int) -> None:
    """Frame by frame, with what its convolutions saw before."""
    model = build(True, n_stacked, n_variables=0)
    codes, condition = torch.randint(6, (1, 9, 2, 2, 1)), torch.randn(1, 9, 2)
    episode = {"codes": codes[0].numpy(), "condition": condition[0].numpy(), "variables": np.zeros((9, 0), np.float32)}
    whole, _ = model(codes, condition, torch.zeros(1, 9, 0))
    found = filter_episode(model, episode, 2, 0)
    np.testing.assert_allclose(found["done_prob"], whole.done_logit[0].sigmoid().detach(), rtol=1e-4)


@pytest.mark.parametrize(("from_past", "n_stacked"), [(False, 0), (True, 0), (True, 2)])
def test_predictions_from_the_past_do_not_depend_on_the_frame(from_past: bool, n_stacked: int) -> None:
    model = build(from_past, n_stacked).eval()
    codes, condition, before = torch.randint(6, (1, 4, 2, 2, 1)), torch.randn(1, 4, 2), 100 * torch.rand(1, 4, 1)
    out, _ = model(codes, condition, before)
    other = codes.clone()
    other[:, 2] = (codes[:, 2] + 1) % 6
    changed, _ = model(other, condition, before)
    assert (out.done_logit != changed.done_logit)[0].tolist() == [False, False, not from_past, True]
    assert (out.change_logits != changed.change_logits).any(-1)[0, :, 0].tolist() == [False, False, not from_past, True]
    assert (out.reward != changed.reward).any(-1)[0].tolist() == [False, False, True, True]
    pushed, _ = model(codes, condition + torch.eye(4)[2, None, :, None], before)
    assert (out.done_logit != pushed.done_logit)[0].tolist() == [False, False, True, True], (
        "its action leads into the end"
    )


def test_stacked_frames_show_where_something_goes() -> None:
    """A dot crosses a row of eight, one place a frame, to the left or to the right; frame 2 of 3 looks the same."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"latent_size": (1, 8), "n_codes": 2, "embedding_dim": 2, "hidden_dim": 16}
    model = OutcomeModel(OutcomeConfig(**sizes, n_stacked_frames=2, predict_from_past=True), torch.eye(2)[None])
    place, way = torch.randint(1, 7, (512, 1)), 2 * torch.randint(2, (512, 1)) - 1
    path = place + way * torch.arange(-1, 2)
    codes = one_hot(path, 8)[:, :, None, :, None]
    ended = torch.zeros(512, 3, dtype=torch.bool)
    ended[:, 2] = way[:, 0] > 0
    nothing, known = torch.zeros(512, 3, 0), torch.ones(512, 3, dtype=torch.bool)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(400):
        loss = model.loss(codes[:384], None, torch.zeros(384, 3), ended[:384], nothing[:384], known[:384])["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        end = model(codes[384:], None, nothing[384:])[0].done_logit[:, 2].sigmoid()
    assert end[ended[384:, 2]].min() > 0.8
    assert end[~ended[384:, 2]].max() < 0.2


def test_what_is_expected_is_the_mean_of_what_is_drawn() -> None:
    model = build(**ONE, variable_low=(0.0,), variable_high=(100.0,))
    changes, before = torch.tensor([0.2, 0.5, 0.3]).log().expand(3, 1, 3), torch.tensor([[50.0], [10.0], [98.0]])
    noise = (torch.arange(1000) + 0.5) / 1000
    drawn = torch.stack([model.sample_variables(changes, before, n.expand(3, 1)) for n in noise]).mean(0)
    expected = model.expected_variables(changes, before)
    torch.testing.assert_close(drawn, expected, atol=1e-3, rtol=0)
    assert expected[:, 0].tolist() == pytest.approx([47.5, 9.5, 94.6]), "kept within what was recorded, 0 to 100"


def test_loss_by_hand() -> None:
    model = build().double()
    codes, condition = torch.randint(6, (2, 3, 2, 2, 1)), torch.randn(2, 3, 2).double()
    variables = torch.tensor([[60.0, 60, 40], [60, 65, 65]]).double()[..., None]
    which = torch.tensor([[1, 1, 0], [1, 2, 1]])  # of the changes -20, 0, 5
    out, _ = model(codes, condition, previous_variables(variables))
    for ended, column in ((torch.zeros(2, 3).bool(), 0), (torch.ones(2, 3).bool(), 1)):
        known = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
        reward = out.reward[..., column].detach() + 8
        reward[~known] = 1e6  # padding must not count
        parts = model.loss(codes, condition, reward, ended, variables, known)
        torch.testing.assert_close(parts["reward"].item(), 4.0)  # (8 / 4)^2
        chances = out.change_logits[..., 0, :].softmax(-1).gather(-1, which[..., None])[..., 0]
        torch.testing.assert_close(parts["variables"], -chances[known].log().mean())
        end = F.logsigmoid(out.done_logit if ended.all() else -out.done_logit)
        torch.testing.assert_close(parts["done"], -end[known].mean())
        torch.testing.assert_close(parts["loss"], parts["reward"] + parts["done"] + parts["variables"])


def test_draws_come_as_often_as_they_should() -> None:
    model = build()
    odds = torch.tensor([0.2, 0.5, 0.3])
    noise = torch.rand(10_000, 1, generator=torch.Generator().manual_seed(1))
    drawn = model.sample_variables(odds.log().expand(10_000, 1, 3), torch.full((10_000, 1), 60.0), noise)[:, 0]
    for value, chance in zip((40.0, 60.0, 65.0), odds.tolist(), strict=True):
        assert abs((drawn == value).float().mean().item() - chance) < 0.02
    assert model.sample_variables(odds.log().expand(1, 1, 3), torch.zeros(1, 1), torch.ones(1, 1)) == 5, (
        "rounding stays inside"
    )


def test_what_is_drawn_stays_within_what_was_recorded() -> None:
    model = build(**ONE, variable_low=(2.0,), variable_high=(100.0,))
    surely = torch.tensor([[0.0, -99.0, -99.0], [-99.0, -99.0, 0.0]])[:, None]
    drawn = model.sample_variables(surely, torch.tensor([[10.0], [98.0]]), torch.full((2, 1), 0.5))
    assert drawn.tolist() == [[2.0], [100.0]]


def test_a_world_without_game_variables() -> None:
    model, none = build(n_variables=0), torch.zeros(2, 3, 0)
    codes, condition, known = torch.randint(6, (2, 3, 2, 2, 1)), torch.randn(2, 3, 2), torch.ones(2, 3).bool()
    assert model.loss(codes, condition, torch.ones(2, 3), ~known, none, known).keys() == {"loss", "reward", "done"}
    out, _ = model(codes, condition, none)
    assert model.sample_variables(out.change_logits[:, 0], none[:, 0], none[:, 0]).shape == (2, 0)


def test_changes_are_those_within_episodes(tmp_path: Path) -> None:
    env_spec = EnvSpec(name="x", variables=("A", "B"))
    with StoreWriter(tmp_path / "store", env_spec, {}) as writer:
        for values in ([[100.0, 0.1], [92.0, 0.3], [92.0, 0.7]], [[50.0, 9.0], [75.0, 9.05]]):
            n = len(values)
            rest = {"condition": np.zeros((n, 1), "f4"), "reward": np.zeros(n, "f4"), "done": np.zeros(n, bool)}
            codes, variables = np.zeros((n, 1, 1, 1), np.uint16), np.array(values, np.float32)
            writer.append({"codes": codes, "variables": variables} | rest)
    sequences = EpisodeWindows(Store(tmp_path / "store"), "all", 2)
    first, second = sequences.variable_changes()
    assert first == (-8.0, 0.0, 25.0), "not -42, from one episode to the next"
    np.testing.assert_allclose(second, (0.05, 0.2, 0.4), atol=1e-5)
    changes = ((-8.0, 0.0, 25.0), (0.05, 0.2, 0.4))
    assert sequences.change_weights(changes, 0.0) == ((1.0,) * 3,) * 2
    assert sequences.change_weights(((-8.0, 5.0), (0.1, 0.3)), 1.0)[0] == pytest.approx((1.5, 0.75))
    first, second = sequences.variable_changes(most=2)
    assert first == (-8.0, 0.0), "one quantile of what is not zero, the least, and zero"
    np.testing.assert_allclose(second, (0, 0.05), atol=1e-5)


def outcomes() -> dict[str, torch.Tensor]:
    """A reward of -9 at the end; one end in four rows; changes of 0, -1, 0 and 0. The last row is padding."""
    return {
        "mask": torch.tensor([[True] * 5 + [False]]),
        "reward": torch.tensor([[50.0, 0.0, 2.0, 1.0, -9.0, 99.0]]),
        "done": torch.tensor([[False, False, False, False, True, True]]),
        "variables": torch.tensor([5.0, 5.0, 4.0, 4.0, 4.0, 0.0]).view(1, 6, 1),
        "codes": torch.zeros(1, 6, 2, 2, 1, dtype=torch.long),
        "condition": torch.zeros(1, 6, 2),
    }


def test_the_best_constant_has_the_error_of_means() -> None:
    model, rows = build(**ONE | {"variable_changes": ((-1.0, 0.0),)}), outcomes()
    counts = torch.tensor([[False] + [True] * 4 + [False]])
    previous = previous_variables(rows["variables"])
    out = best_constant(model, rows, counts)
    errors = model.errors(out, rows["reward"], rows["done"], rows["variables"], previous)
    quarter = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    for name, error in (("reward", 2 / 4 / 16), ("done", quarter), ("variables", quarter)):
        assert errors[name][counts].mean().item() == pytest.approx(error, rel=1e-5), name


def test_an_outcome_model_that_knows_nothing_does_not_beat_a_constant() -> None:
    model, rows = build(**ONE | {"variable_changes": ((-1.0, 0.0),)}), outcomes()
    many = {name: row.repeat(40, *[1] * (row.dim() - 1)) for name, row in rows.items()}
    said = outcome_verdicts(model.eval(), many, np.arange(40), ["HEALTH"])
    assert len(said) == 3 and all("predicted worse than by a constant" in verdict for verdict in said)
    never = many | {"done": torch.zeros_like(many["done"])}
    assert "there is no termination" in outcome_verdicts(model, never, np.arange(40), ["HEALTH"])[1]
    knows = torch.nn.Parameter(torch.tensor([0.0, 0.0, -1.0, 1.0, 3.0]))
    model.head.bias = knows  # a better guess than zeros: ends are rare, and most rows change nothing
    assert "terminations are predicted worse" not in outcome_verdicts(model, many, np.arange(40), ["HEALTH"])[1]


def test_rare_changes_that_are_hardly_detected_are_named() -> None:
    """Of 1,000 rows, 30 change by -1; 50 or more would not be rare."""
    model, rng = build(**ONE | {"variable_changes": ((-1.0, 0.0),)}), np.random.default_rng(0)
    change = torch.from_numpy((np.arange(1000) >= 30).astype(int))[:, None]
    noise = torch.from_numpy(rng.normal(size=(1000, 1, 2)))
    (verdict,) = detection_verdicts(model, noise, change, ["HEALTH"])
    assert re.match(r"HEALTH changes by -1 in 3.0% of rows, which is hardly detected \(AUROC 0\.[456]", verdict)
    assert detection_verdicts(model, noise + 9 * one_hot(change, 2), change, ["HEALTH"]) == []
    assert detection_verdicts(model, noise[20:], change[20:], ["HEALTH"]) == [], "10 are too few to say"


def test_outcomes_without_variables_are_judged() -> None:
    rows = outcomes() | {"variables": torch.zeros(1, 6, 0)}
    said = outcome_verdicts(build(n_variables=0).eval(), rows, np.zeros(1), [])
    assert [verdict.split(" are ")[0] for verdict in said] == ["rewards", "terminations"]
    assert outcome_verdicts(build(n_variables=0), {k: v[:, :1] for k, v in rows.items()}, np.zeros(1), []) == []


def test_weights_of_changes_leave_the_probabilities_true() -> None:
    """One row in ten changes, and counts nine times as much: the best logits still say one in ten."""
    model = build(**ONE | {"variable_changes": ((-1.0, 0.0),), "change_weights": ((9.0, 1.0),)})
    variables = torch.zeros(1, 10, 1)
    previous = variables + (torch.arange(10) == 3).float()[None, :, None]
    rest = {"reward": torch.zeros(1, 10), "ended": torch.zeros(1, 10).bool(), "variables": variables}
    logits = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100)

    def error() -> torch.Tensor:
        optimizer.zero_grad()
        out = OutcomePrediction(torch.zeros(1, 10, 2), torch.zeros(1, 10), logits.expand(1, 10, 1, 2))
        found = model.errors(out, **rest, previous=previous, change_weights=model.change_weights)["variables"].mean()
        found.backward()
        return found

    optimizer.step(error)
    assert logits.softmax(-1).tolist() == pytest.approx([0.1, 0.9], abs=1e-3)
    with pytest.raises(UserError, match="change_weights must have a weight for each of variable_changes"):
        build(**ONE | {"change_weights": ((1.0,),)})


@pytest.mark.parametrize("from_past", [False, True])
def test_it_remembers_what_cannot_be_seen(from_past: bool) -> None:
    """Every third step takes 20; at zero the episode ends; the codes are noise. Only memory knows what step it is."""
    torch.manual_seed(0)
    model, phase = build(from_past), torch.randint(3, (256, 1))
    rate, steps = (2e-2, 250) if from_past else (1e-2, 600)  # from the past it also learns at twice the rate
    optimizer = torch.optim.Adam(model.parameters(), rate)
    falls = (torch.arange(12) + phase) % 3 == 0
    falls[:, 0] = False
    health = (20 * torch.randint(3, 6, (256, 1)) - 20 * falls.cumsum(1)).clamp(min=0).float()[..., None]
    ended = (health[..., 0] == 0) & falls
    codes, condition = torch.randint(6, (256, 12, 2, 2, 1)), one_hot(torch.randint(2, (256, 12)), 2).float()
    reward = torch.where(ended, -96.0, 4.0)
    known = (ended.cumsum(1) - ended.long()) == 0
    train, held = slice(0, 192), slice(192, 256)
    for _ in range(steps):
        loss = model.loss(*(x[train] for x in (codes, condition, reward, ended, health, known)))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        out, _ = model(codes[held], condition[held], previous_variables(health[held]))
    late = known[held] & (torch.arange(12) >= 4)  # by then a fall was seen
    falls_chance = out.change_logits[..., 0, 0].exp() / out.change_logits[..., 0, :].exp().sum(-1)
    assert falls_chance[late & falls[held]].mean() > 0.85
    assert falls_chance[late & ~falls[held]].mean() < 0.15
    assert out.done_logit[late & ended[held]].sigmoid().mean() > 0.8
    assert out.done_logit[late & ~ended[held]].sigmoid().mean() < 0.15
