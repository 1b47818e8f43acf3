"""Convolutions against PyTorch's own, streaming against the whole, causality by gradient."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange

from worldmodel.models.layers import AxialAttention, AxialPositionEmbedding, Conv, ConvTranspose, Memory
from worldmodel.models.pixels import motion_weights, to_float, to_uint8
from worldmodel.models.vqvae import VQVAE
from worldmodel.models.vqvae_config import VQVAEConfig, layer_strides
from worldmodel.utils.errors import UserError


def small(**changes: object) -> VQVAEConfig:
    settings: dict = {
        "n_frames": 12,
        "frame_size": (16, 16),
        "stride": (1, 4, 4),
        "mode": "stream",
        "hidden_channels": 8,
        "residual_channels": 6,
        "n_res_blocks": 2,
        "n_codes": 32,
        "embedding_dim": 4,
        "window": 3,
    }
    return VQVAEConfig(**(settings | changes))


def build(config: VQVAEConfig) -> tuple[VQVAE, torch.Tensor]:
    """A float64 model with random norms and distances, and two clips for it."""
    torch.manual_seed(0)
    model = VQVAE(config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model, torch.randint(256, (2, 12, *config.frame_size, 3), dtype=torch.uint8)


@pytest.mark.parametrize("stride", [(1, 2, 2), (2, 2, 2), (1, 1, 3)])
def test_upsampling_is_a_transposed_convolution(stride: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    mine = ConvTranspose(3, 5, stride).double()
    taps = [2 if s > 1 else 3 for s in stride]
    kernel = [2 * s if s > 1 else 3 for s in stride]
    padding = [(k - s) // 2 for k, s in zip(kernel, stride, strict=True)]
    extra = [(k - s) % 2 for k, s in zip(kernel, stride, strict=True)]
    theirs = torch.nn.ConvTranspose3d(3, 5, kernel, stride, padding, bias=False).double()
    weight = rearrange(
        mine.conv.weight, "(o a b c) i x y z -> i o x a y b z c", a=stride[0], b=stride[1], c=stride[2]
    ).flip(2, 4, 6)  # a correlation with taps in order is a transposed one with taps reversed
    theirs.weight.data = weight.reshape(3, 5, *(t * s for t, s in zip(taps, stride, strict=True)))
    x = torch.randn(2, 3, 4, 5, 6).double()
    bias = mine.conv.bias.view(5, -1)[:, :1].mean(1)
    mine.conv.bias.data = bias.repeat_interleave(stride[0] * stride[1] * stride[2])
    expected = theirs(x) + bias[:, None, None, None]
    for axis, cut in enumerate(extra):
        expected = expected.narrow(axis + 2, 0, expected.shape[axis + 2] - cut)
    torch.testing.assert_close(mine(x), expected)


def test_convolution_divides_any_size_by_any_stride() -> None:
    for kernel, stride in (((3, 3, 3), (1, 2, 3)), ((4, 4, 4), (2, 2, 2)), ((1, 3, 3), (5, 1, 1))):
        for causal in (False, True):
            x = torch.randn(1, 2, 10, 12, 12)
            y = Conv(2, 4, kernel, stride, causal)(x)
            assert y.shape == (1, 4, 10 // stride[0], 12 // stride[1], 12 // stride[2])


def test_axial_attention_is_full_attention_along_each_axis() -> None:
    torch.manual_seed(0)
    layer = AxialAttention(8, n_heads=2).double()
    x, positions = torch.randn(1, 8, 3, 2, 4).double(), torch.randn(3, 2, 4, 8).double()
    y, expected = x.movedim(1, -1) + positions, 0
    for axis, part in zip((1, 2, 3), layer.axes, strict=True):
        weight = part.qkv.weight  # one line of the axis at a time, one head at a time
        lines = y.movedim(axis, -2)
        out = torch.zeros_like(lines)
        for index in torch.cartesian_prod(*map(torch.arange, lines.shape[:3])):
            line = lines[tuple(index)]
            q, k, v = (line @ w.T for w in weight.chunk(3))
            heads = [
                torch.softmax(q[:, h] @ k[:, h].T / 2, -1) @ v[:, h] for h in (slice(0, 4), slice(4, 8))
            ]  # sqrt(4) = 2
            out[tuple(index)] = part.out(torch.cat(heads, -1))
        expected = expected + out.movedim(-2, axis)
    torch.testing.assert_close(layer(x, positions), expected.movedim(-1, 1))


def test_positions_take_widths_that_do_not_divide() -> None:
    positions = AxialPositionEmbedding((2, 3, 4), 11)
    assert positions().shape == (2, 3, 4, 11)
    assert [axis.shape[1] for axis in positions.axes] == [4, 4, 3]


STRIDES = [(1, 4, 4), (2, 2, 2), (4, 2, 4), (3, 4, 1), (1, 2, 2)]


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("mode", ["paper", "stream"])
def test_every_stride_and_mode_trains(stride: tuple[int, int, int], mode: str) -> None:
    config = small(stride=stride, mode=mode, n_codebooks=2)
    model, frames = VQVAE(config), torch.randint(256, (2, 12, 16, 16, 3), dtype=torch.uint8)
    out = model(frames)
    out["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    codes = model.eval().encode(frames)
    assert codes.shape == (2, *config.latent_shape, 2)
    assert model.decode(codes).shape == frames.shape


def test_strides_are_factored_axis_by_axis() -> None:
    assert layer_strides((2, 4, 4)) == [(2, 2, 2), (1, 2, 2)]
    assert layer_strides((1, 16, 16)) == [(1, 2, 2)] * 4
    assert layer_strides((3, 2, 6)) == [(3, 2, 2), (1, 1, 3)]
    assert layer_strides((1, 1, 1)) == [(1, 1, 1)]


@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("stride", STRIDES)
def test_streamed_encoding_and_decoding_equal_whole_ones(stride: tuple[int, int, int], norm: str) -> None:
    model, frames = build(small(stride=stride, norm=norm))
    whole_features, s = model._encode_features(frames), stride[0]
    memory: Memory = {}
    parts = [model._encode_features(frames[:, t : t + s], memory) for t in range(0, 12, s)]
    torch.testing.assert_close(torch.cat(parts, 1), whole_features, rtol=1e-12, atol=1e-12)

    codes = torch.randint(32, (2, 12 // s, *model.config.latent_shape[1:], 1))
    memory = {}
    parts = [model.decode(codes[:, t : t + 1], memory) for t in range(codes.shape[1])]
    whole = model.decode(codes)
    assert whole.std() > 1e-3, "a constant would prove nothing"
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-12, atol=1e-12)


def test_a_slow_encoder_streams_as_it_encodes_a_whole() -> None:
    model, frames = build(small(hysteresis=0.5))
    frames[:] = frames[:, :1] // 2 + frames // 2  # what changes little from frame to frame
    model.quantizer.embedding.copy_(model._encode_features(frames).flatten(0, 3)[:32])
    model.quantizer.ema_count.fill_(1)
    memory: Memory = {}
    parts = [model.encode(frames[:, t : t + 3], memory) for t in range(0, 12, 3)]
    whole = model.encode(frames)
    assert torch.equal(torch.cat(parts, 1), whole)
    nearest = model.quantizer(model._encode_features(frames)).codes
    changes = [int((codes[:, 1:] != codes[:, :-1]).sum()) for codes in (whole, nearest)]
    assert 0 < changes[0] < changes[1] / 2


@pytest.mark.parametrize("stride", [(1, 4, 4), (2, 2, 2)])
def test_a_stream_has_no_gradient_from_the_future(stride: tuple[int, int, int]) -> None:
    model, _ = build(small(stride=stride))
    s = stride[0]
    video = torch.rand(1, 3, 12, 16, 16, dtype=torch.float64, requires_grad=True)
    x = video
    for conv in model.downsample:
        x = torch.relu(conv(x))
    features = model.pre_vq_conv(model.encoder(model.conv_last(x), model._position_embeddings(), None))
    for t in range(features.shape[2]):
        (gradient,) = torch.autograd.grad(features[:, :, t].sum(), video, retain_graph=True)
        assert gradient[:, :, (t + 1) * s :].abs().max() == 0 if (t + 1) * s < 12 else True
        assert gradient[:, :, t * s : (t + 1) * s].abs().max() > 0

    latents = torch.randn(1, 12 // s, *model.config.latent_shape[1:], 4, dtype=torch.float64, requires_grad=True)
    frames = model._decode_features(latents)
    for t in range(12):
        (gradient,) = torch.autograd.grad(frames[:, t].sum(), latents, retain_graph=True)
        assert gradient[:, t // s + 1 :].abs().sum() == 0
        assert gradient[:, t // s].abs().max() > 0


def test_the_paper_mode_sees_the_whole_clip() -> None:
    model, _ = build(small(mode="paper"))
    latents = torch.randn(1, 12, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model._decode_features(latents)[:, 0].sum(), latents)
    assert gradient[:, -1].abs().max() > 0


def test_positions_are_shared_by_encoder_and_decoder() -> None:
    model = VQVAE(small(mode="paper"))
    assert sum(isinstance(m, AxialPositionEmbedding) for m in model.modules()) == 1
    frames = torch.randint(256, (1, 12, 16, 16, 3), dtype=torch.uint8)
    model(frames)["loss"].backward()
    assert all(axis.grad.abs().max() > 0 for axis in model.position_embedding.axes)
    assert not any(
        isinstance(m, (AxialPositionEmbedding, AxialAttention)) for m in VQVAE(small(attention=False)).modules()
    )


def test_loss_is_normalised_error_plus_a_quarter_of_the_commitment() -> None:
    model, frames = VQVAE(small(data_variance=0.02)).eval(), torch.randint(256, (2, 12, 16, 16, 3), dtype=torch.uint8)
    out = model(frames)
    error = (model.decode(model.encode(frames)) - to_float(frames)).square().mean()
    torch.testing.assert_close(out["nmse"], error.detach() / 0.02)
    torch.testing.assert_close(out["loss"], out["nmse"] + 0.25 * out["commitment"])


def test_pixels_survive_the_scale() -> None:
    frames = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16, 1)
    assert to_float(frames).min() == -0.5
    assert to_float(frames).max() == 0.5
    assert torch.equal(to_uint8(to_float(frames)), frames)


def test_mistakes_are_told_in_a_sentence() -> None:
    with pytest.raises(UserError, match="15 frames cannot be divided by a stride of 2"):
        small(n_frames=15, stride=(2, 4, 4))
    with pytest.raises(UserError, match=r"takes clips of \(batch, a multiple of 1, 16, 16, 3\), not \(1, 4, 8, 8, 3\)"):
        VQVAE(small()).encode(torch.zeros(1, 4, 8, 8, 3, dtype=torch.uint8))
    with pytest.raises(UserError, match=r"takes clips of \(batch, 12, 16"):
        VQVAE(small(mode="paper")).encode(torch.zeros(1, 6, 16, 16, 3, dtype=torch.uint8))
    with pytest.raises(UserError, match="hidden_channels = 9"):
        small(hidden_channels=9)
    with pytest.raises(UserError, match="first 1 strided convolutions"):
        small(downsample_channels=(4, 4))


def test_what_moves_weighs_more_in_the_loss() -> None:
    """Two pixels, of which one changes by 0.2 and then by 0.4: mean change 0.2 / 2, 0.2 / 2 and 0.4 / 2."""
    frames = torch.tensor([[0.0, 0.0], [0.2, 0.0], [-0.2, 0.0]]).view(1, 3, 1, 2, 1)
    still, third = 1 / 3, 0.4 / 3  # weight of what is still at focus 2, and the mean change
    expected = torch.tensor([[(1 + 2 * c / third) / 3, still] for c in (0.2, 0.2, 0.4)])
    torch.testing.assert_close(motion_weights(frames, 2.0).view(3, 2), expected, rtol=1e-5, atol=1e-5)
    assert motion_weights(frames, 5.0).mean() == pytest.approx(1, abs=1e-5)
    assert motion_weights(frames[:, :1], 2.0).tolist() == [[[[[1.0], [1.0]]]]], (
        "nothing is known to move in a single frame"
    )
    model, video = build(small(motion_loss_weight=3.0))
    even = model(video)
    model.config = small(motion_loss_weight=0.0)
    assert even["nmse"] == model(video)["nmse"], "the figure stays what it is"
    assert even["loss"] != model(video)["loss"]
