"""The recurrent VQ-VAE: streams, lanes and dreams agree to the bit, and its pictures are composed as they should be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import tiny_vqvae
from worldmodel.models.layers import Memory
from worldmodel.models.pixels import to_uint8
from worldmodel.models.recurrent_vqvae import ANCHOR, LAST, RecurrentVQVAE, _next, _warp
from worldmodel.utils.errors import UserError

LANES, STEPS, ACTION = 3, 6, 2


def model(**changes: Any) -> RecurrentVQVAE:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"past_frames": 2, "action_dim": ACTION, "downsample_channels": (8,), "n_codes": 16}
    made = RecurrentVQVAE(tiny_vqvae(**settings | changes))
    for parameter in made.parameters():  # what begins at zero would hide what it does
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return made.double().eval()


@pytest.fixture
def frames() -> Tensor:
    return torch.randint(256, (LANES, STEPS, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def actions() -> Tensor:
    return torch.randn(LANES, STEPS, ACTION, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@torch.no_grad()
def test_a_stream_in_pieces_is_the_stream(frames: Tensor, actions: Tensor) -> None:
    made, whole, parts = model(), Memory(), Memory()
    codes, seen = made.reconstruct(frames, whole, actions)
    pieces = [made.reconstruct(frames[:, a:b], parts, actions[:, a:b]) for a, b in ((0, 1), (1, 4), (4, 6))]
    assert torch.equal(torch.cat([c for c, _ in pieces], 1), codes)
    assert torch.equal(torch.cat([p for _, p in pieces], 1), seen)
    assert torch.equal(whole[made], parts[made])
    assert codes.shape == (LANES, STEPS, 4, 4, 1)


@torch.no_grad()
@pytest.mark.parametrize(("widths", "patch"), [((8,), 2), ((), 4), ((8, 8), 1)])
def test_fewer_layers_take_larger_patches(widths: tuple[int, ...], patch: int, frames: Tensor, actions: Tensor) -> None:
    made = model(downsample_channels=widths)
    assert made.encoder.stem.in_channels == 4 * 3 * patch**2
    codes, seen = made.reconstruct(frames, None, actions)
    assert codes.shape == (LANES, STEPS, 4, 4, 1)
    assert not torch.equal(seen[:, 1:], frames[:, 1:])


def test_more_layers_than_a_stride_can_be_halved_are_refused() -> None:
    with pytest.raises(UserError, match=r"has 3 entries, more than a stride of 4 can be halved; give at most 2"):
        model(downsample_channels=(8, 8, 8))


@torch.no_grad()
def test_decoding_gives_what_encoding_went_on_from(frames: Tensor, actions: Tensor) -> None:
    made, encoder = model(), Memory()
    codes, seen = made.reconstruct(frames, encoder, actions)
    decoder: Memory = {made: made.start(frames[:, 0])}
    video = to_uint8(made.decode(codes[:, 1:], decoder, actions[:, 1:]))
    assert torch.equal(decoder[made], encoder[made])
    assert torch.equal(seen[:, 0], frames[:, 0]), "the first frame is given"
    assert torch.equal(video, seen[:, 1:])
    assert torch.equal(frames[:, 0], encoder[made][:, ANCHOR]), "the anchor is the first frame, to the bit"


@torch.no_grad()
def test_a_lane_does_not_depend_on_its_neighbours(frames: Tensor, actions: Tensor) -> None:
    made, all_lanes = model(), Memory()
    codes = made.encode(frames, all_lanes, actions)
    for lane in range(LANES):
        alone = Memory()
        assert torch.equal(made.encode(frames[lane : lane + 1], alone, actions[lane : lane + 1])[0], codes[lane])
        assert torch.equal(alone[made][0], all_lanes[made][lane])


@torch.no_grad()
def test_codes_and_actions_and_the_past_all_count(frames: Tensor, actions: Tensor) -> None:
    made = model()
    codes = made.encode(frames, Memory(), actions)

    def last(codes: Tensor = codes, actions: Tensor = actions, first: Tensor = frames[:, 0]) -> Tensor:
        return made.decode(codes, {made: made.start(first)}, actions)[:, -1]

    for other in (last(codes=(codes + 1) % 16), last(actions=-actions), last(first=frames[:, 1])):
        assert not torch.equal(other, last())


@torch.no_grad()
def test_actions_are_scaled(frames: Tensor, actions: Tensor) -> None:
    plain, scaled = model(), model(action_scale=(2.0, 4.0))
    codes, seen = plain.reconstruct(frames, None, actions)
    again, same = scaled.reconstruct(frames, None, actions * torch.tensor([2.0, 4.0]))
    assert torch.equal(again, codes)
    assert torch.equal(same, seen)


@torch.no_grad()
def test_what_is_missing_is_told_in_a_sentence(frames: Tensor, actions: Tensor) -> None:
    made = model()
    codes = torch.zeros(LANES, STEPS, 4, 4, 1, dtype=torch.long)
    for calls, sentence in (
        (lambda: made.decode(codes, None, actions), "give the picture that they start from"),
        (lambda: made.decode(codes, {made: made.start(frames[:, 0])}), r"actions of shape \(3, 6, 2\), not none"),
        (lambda: made.encode(frames, None, actions[:, 1:]), r"actions of shape \(3, 6, 2\), not \(3, 5, 2\)"),
        (lambda: made.encode(frames[:, :, 1:], None, actions), r"takes frames of \(batch, time, 16, 16, 3\)"),
        (lambda: model(stride=(2, 4, 4)), "a time stride of 1"),
        (lambda: model(mode="paper"), "needs mode = stream"),
        (lambda: model(stride=(1, 4, 2)), "power of two"),
        (lambda: model(hidden_channels=12), "multiples of 8"),
    ):
        with pytest.raises(UserError, match=sentence):
            calls()


def test_a_state_moves_on_and_keeps_its_anchor() -> None:
    state = torch.arange(3)[None, :, None, None, None]
    moved = _next(_next(state, torch.full((1, 1, 1, 1), 7)), torch.full((1, 1, 1, 1), 8))
    assert moved.flatten().tolist() == [8, 7, 2]


def test_a_warp_takes_pixels_from_where_the_flow_points() -> None:
    picture = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    grid = model().grid[:8, :8]
    flow = torch.zeros(1, 2, 8, 8, dtype=torch.float64)
    assert torch.allclose(_warp(picture, flow, grid), picture)
    flow[:, 0] = 2  # columns
    assert torch.allclose(_warp(picture, flow, grid)[..., :-2], picture[..., 2:])


def test_before_training_a_picture_mostly_stays() -> None:
    torch.manual_seed(0)
    made = RecurrentVQVAE(tiny_vqvae(past_frames=2, action_dim=ACTION, downsample_channels=(8,)))
    frame = torch.randint(256, (1, 16, 16, 3), dtype=torch.uint8)
    codes, memory = torch.zeros(1, 1, 4, 4, 1, dtype=torch.long), Memory({made: made.start(frame)})
    video = to_uint8(made.decode(codes, memory, torch.zeros(1, 1, ACTION)))
    kept = (torch.tensor([2.0, 0.0, 0.0]).softmax(0)[:2].sum() * (frame / 255 - 0.5) + 0.5) * 255
    assert (video[0, 0].float() - kept[0]).abs().max() <= 1


def test_it_takes_no_hysteresis() -> None:
    with pytest.raises(UserError, match="past_frames = 2 takes no hysteresis"):
        tiny_vqvae(past_frames=2, action_dim=ACTION, downsample_channels=(8,), hysteresis=0.1)


def test_training_learns_and_goes_on_from_its_own_pictures(frames: Tensor, actions: Tensor) -> None:
    """A square that moves by its action: ten steps halve the loss, and states hold reconstructions, not the truth."""
    made = model().float().train()
    optimizer = torch.optim.Adam(made.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        out, state = made(frames, actions[:, 1:].float(), made.start(frames[:, 0]))
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        losses.append(out["loss"].item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())
    assert not torch.equal(state[:, LAST], frames[:, -1])
    assert torch.equal(state[:, ANCHOR], frames[:, 0])


def test_no_gradient_comes_from_later_steps(frames: Tensor, actions: Tensor) -> None:
    made = model().float()
    led = actions[:, 1:].float().requires_grad_()
    state = made.start(frames[:, 0])
    out, after = made(frames[:, :2], led[:, :1], state)
    (first,) = torch.autograd.grad(out["loss"], led)
    out, _ = made(frames[:, :3], led[:, :2], state)
    (both,) = torch.autograd.grad(2 * out["loss"], led)
    assert torch.allclose(both[:, 0], first[:, 0], atol=1e-6)
    assert not after.requires_grad


def test_worst_pixels_and_what_moves_count_more(frames: Tensor, actions: Tensor) -> None:
    losses = []
    frames[:, 1, :8] = frames[:, 0, :8]  # which stay
    for settings in ({}, {"motion_loss_weight": 10.0}, {"worst_pixels_weight": 0.0}):
        made = model(**settings).float()
        losses.append(made(frames[:, :2], actions[:, 1:2].float(), made.start(frames[:, 0]))[0]["loss"].item())
    assert len(set(losses)) == 3
    assert losses[2] < losses[0]


def test_worlds_without_actions() -> None:
    made = model(action_dim=0)
    frames = torch.randint(256, (1, 2, 16, 16, 3), dtype=torch.uint8)
    assert made.encode(frames).shape == (1, 2, 4, 4, 1)
