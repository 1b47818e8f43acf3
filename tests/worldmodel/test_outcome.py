"""The outcome model: streamed as whole, and it learns what only memory can tell."""

from __future__ import annotations

import torch
from torch.nn.functional import one_hot

from worldmodel.outcome import OutcomeConfig, OutcomeModel


def build() -> OutcomeModel:
    torch.manual_seed(0)
    config = OutcomeConfig(
        latent=(2, 2), codes=6, code_dim=3, condition_dim=2, variables=1, variable_mean=(50.0,), variable_std=(20.0,),
        reward_std=4.0, width=16,
    )  # fmt: skip
    return OutcomeModel(config, torch.randn(1, 6, 3))


def test_streamed_outcomes_equal_whole_ones() -> None:
    model = build().double().eval()
    codes, condition = torch.randint(6, (3, 5, 2, 2, 1)), torch.randn(3, 5, 2).double()
    state = model.first(torch.full((3, 1), 80.0).double())
    whole, last = model(codes, condition, state)
    for t in range(5):
        out, state = model(codes[:, t : t + 1], condition[:, t : t + 1], state)
        for a, b in zip(out, whole, strict=True):
            torch.testing.assert_close(a[:, 0], b[:, t])
    torch.testing.assert_close(state, last)


def test_loss_takes_the_reward_of_what_happened() -> None:
    model = build().double()
    codes, condition = torch.randint(6, (2, 3, 2, 2, 1)), torch.randn(2, 3, 2).double()
    variables = torch.full((2, 3, 1), 60.0).double()
    out, _ = model(codes, condition, model.first(variables[:, 0]))
    for ended, column in ((torch.zeros(2, 3).bool(), 0), (torch.ones(2, 3).bool(), 1)):
        known = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
        reward = out.reward[..., column].detach() + 8
        reward[~known] = 1e6  # padding must not count
        parts = model.loss(codes, condition, reward, ended, variables, known)
        torch.testing.assert_close(parts["reward"].item(), 4.0)  # (8 / 4)^2
        torch.testing.assert_close(parts["loss"], parts["reward"] + parts["end"] + parts["variables"])


def test_it_remembers_what_cannot_be_seen() -> None:
    """A counter that starts anywhere, moves with the actions and ends the episode at zero; the codes are noise."""
    torch.manual_seed(0)
    model, start = build(), torch.randint(2, 6, (256, 1))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    actions = torch.randint(2, (256, 12))
    counter = (start - actions.cumsum(1)).clamp(min=0)
    ended = (counter == 0) & (actions == 1)
    codes, condition = torch.randint(6, (256, 12, 2, 2, 1)), one_hot(actions, 2).float()
    health = counter[..., None].float() * 20
    reward = torch.where(ended, -96.0, 4.0)
    train, held = slice(0, 192), slice(192, 256)
    first = torch.cat([start[:, None].float() * 20, health[:, :-1]], dim=1)
    health[:, 0] = first[:, 0]  # the first row tells the start, as a context does
    known = torch.ones_like(ended)
    for _ in range(400):
        loss = model.loss(*(x[train] for x in (codes, condition, reward, ended, health, known)))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        out, _ = model(codes[held], condition[held], model.first(health[held, 0]))
    # After the first zero the counter stays there, so look at the steps up to it.
    alive = counter[held] > 0
    assert (out.variables[..., 0] - health[held, :, 0])[alive].abs().mean() < 8
    assert out.reward[..., 0][alive].mean() > 2
    assert out.end[alive].sigmoid().mean() < 0.1
