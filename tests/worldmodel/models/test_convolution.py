"""Convolutions leave out what sees only zeros, and are right in bfloat16 on any processor, in every preset's shapes.

Run as a script it reads shapes and prints which are wrong, for processes of other instruction sets.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs import FOLDER, overlay, read_preset
from train import prior as train_prior
from train import vqvae as train_vqvae
from worldmodel.models.convolution import NO_PADDING, Conv3d, Pads, conv3d
from worldmodel.models.layers import Conv, ConvTranspose, Memory
from worldmodel.models.outcome_config import OutcomeConfig
from worldmodel.models.resnet import ResNet
from worldmodel.models.reward_done import OutcomeModel
from worldmodel.models.vqvae import VQVAE
from worldmodel.models.vqvae_config import VQVAEConfig
from worldmodel.utils.hardware import flop_counter

ROOT = Path(__file__).parents[3]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Shares of a norm; bfloat16 has 8 bits, and what is right is within 0.004."""
Shape = tuple[int, int, tuple[int, ...], tuple[int, ...], Pads, int]
"""Input and output channels, kernel, stride, zeros around, zeros for the past."""


def sides(*axes: tuple[int, int]) -> Pads:
    return axes  # type: ignore[return-value]


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("kernel", "stride", "pads"),
    [
        ((3, 3, 3), (1, 1, 1), sides((1, 1), (1, 1), (1, 1))),
        ((3, 3, 3), (1, 2, 2), sides((1, 1), (1, 0), (1, 0))),
        ((3, 3, 3), (1, 1, 1), sides((2, 0), (1, 1), (1, 1))),
        ((2, 2, 2), (1, 1, 1), sides((1, 1), (1, 1), (1, 1))),
        ((4, 3, 3), (2, 1, 1), sides((2, 2), (1, 1), (0, 0))),
        ((5, 1, 1), (1, 1, 1), sides((2, 2), (0, 0), (0, 0))),
        ((7, 3, 3), (3, 1, 1), sides((4, 2), (1, 1), (2, 1))),
    ],
)
def test_what_is_left_out_changes_nothing(
    frames: int, kernel: tuple[int, ...], stride: tuple[int, ...], pads: Pads
) -> None:
    """Values and gradients of the whole kernel over explicit zeros."""
    torch.manual_seed(0)
    leaves = [torch.randn(s, dtype=torch.float64) for s in ((2, 3, frames, 5, 6), (4, 3, *kernel), (4,))]
    around = [n for pair in reversed(pads) for n in pair]
    results = []
    for convolve in (
        lambda x, w, b: conv3d(x, w, b, stride, pads),
        lambda x, w, b: F.conv3d(F.pad(x, around), w, b, stride),
    ):
        x, w, b = (leaf.clone().requires_grad_() for leaf in leaves)
        y = convolve(x, w, b)
        y.backward(torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1)))
        results.append((y, x.grad, w.grad, b.grad))
    for mine, whole in zip(*results, strict=True):
        torch.testing.assert_close(mine, whole, rtol=1e-12, atol=1e-12)


def operations(work: Callable[[], object]) -> int:
    with flop_counter() as count:
        work()
    return count.get_total_flops()


def test_an_output_may_see_nothing_but_zeros() -> None:
    x, weight = torch.ones(1, 2, 1, 3, 3, dtype=torch.float64), torch.ones(1, 2, 2, 1, 1, dtype=torch.float64)
    pads = ((2, 0), (0, 0), (0, 0))
    whole = F.conv3d(F.pad(x, (0, 0, 0, 0, 2, 0)), weight, None, (3, 1, 1))
    assert torch.equal(conv3d(x, weight, None, (3, 1, 1), pads), whole)


def test_a_single_frame_is_a_third_of_the_work() -> None:
    """By hand: 2 operations for each of 4 x 5 channels, 9 taps and 6 x 6 places."""
    one, x = 2 * 4 * 5 * 9 * 36, torch.randn(1, 4, 1, 6, 6)
    assert operations(lambda: Conv(4, 5, (3, 3, 3))(x)) == one
    assert operations(lambda: Conv(4, 5, (3, 3, 3), causal=True)(x)) == one
    assert operations(lambda: Conv(4, 5, (3, 3, 3))(x.expand(-1, -1, 3, -1, -1))) == 9 * one
    assert operations(lambda: ConvTranspose(4, 5, (1, 1, 1))(x)) == one
    assert operations(lambda: ConvTranspose(4, 5, (1, 1, 1), causal=True)(x)) == one


def test_the_stem_of_a_resnet_uses_the_middle_tap_of_a_frame() -> None:
    """The outer taps have no gradient, and may hold anything."""
    torch.manual_seed(0)
    net, frame = ResNet(18, 1, (16, 16, 3), 16), torch.rand(2, 1, 16, 16, 3) - 0.5
    before = net(frame)
    before.square().sum().backward()
    kernels = [m.weight for m in net.modules() if isinstance(m, Conv3d) and m.kernel_size[0] == 3]
    assert len(kernels) == 1 + 2 * 8
    for weight in kernels:
        assert weight.grad is not None and not weight.grad[:, :, [0, 2]].any()
        weight.data[:, :, [0, 2]] = float("nan")
    torch.testing.assert_close(net(frame), before, rtol=0, atol=0)


@pytest.mark.parametrize("layer", [Conv(4, 5, (3, 3, 3), causal=True), ConvTranspose(4, 5, (1, 1, 1), causal=True)])
def test_a_new_frame_of_a_stream_needs_the_whole_kernel(layer: Conv | ConvTranspose) -> None:
    """The first one has only zeros before it; the second sees the first."""
    one, memory, parts = 2 * 4 * 5 * 9 * 36, Memory(), list[Tensor]()
    layer, x = layer.double(), torch.randn(1, 4, 2, 6, 6, dtype=torch.float64)
    for frame, expected in zip(x.split(1, dim=2), (one, 3 * one), strict=True):
        assert operations(lambda frame=frame: parts.append(layer(frame, memory))) == expected
    torch.testing.assert_close(torch.cat(parts, dim=2), layer(x), rtol=1e-12, atol=1e-12)


def few(channels: int) -> int:
    """Fewer channels that divide into vectors as these do."""
    return channels if channels < 32 else 16 + channels % 16


def shapes_of(model: nn.Module) -> set[Shape]:
    past = {m.conv: m.n_past for m in model.modules() if isinstance(m, Conv | ConvTranspose)}
    return {
        (
            few(m.in_channels),
            few(m.out_channels),
            m.kernel_size,
            m.stride,
            getattr(m, "pads", NO_PADDING),
            past.get(m, 0),
        )
        for m in model.modules()
        if isinstance(m, nn.Conv3d)
    }


@cache
def shapes() -> list[Shape]:
    """Of the models of every preset, in colour and in grey, and of an outcome model with sight."""
    with torch.device("meta"):
        found = shapes_of(OutcomeModel(OutcomeConfig(n_codes=4, embedding_dim=4, n_stacked_frames=3)))
        for preset in FOLDER.glob("*.yaml"):
            sections = read_preset(preset.stem)
            sections |= sections.get("ablate", {})
            if "vqvae" in sections:
                chosen = overlay(train_vqvae.Args(), sections["vqvae"], "vqvae").model
                found |= shapes_of(VQVAE(VQVAEConfig(**vars(chosen))))
            if "prior" in sections:
                prior = overlay(train_prior.Args(), sections["prior"], "prior").model
                if prior.n_cond_frames:
                    found |= shapes_of(ResNet(prior.resnet_depth, prior.n_cond_frames, (16, 16, 3), prior.cond_dim))
    grey = {(1, *rest) for inputs, *rest in found if inputs == 3}
    return sorted(found | grey)  # type: ignore[arg-type]


def dirty() -> None:
    """Leave NaN in the memory that the next tensors get, so that what is never written shows."""
    for size in (2**10, 2**12, 2**14):
        _ = [torch.full((size,), float("nan")) for _ in range(2)]


def passes(conv: Conv3d, x: Tensor, past: int, kind: torch.dtype) -> list[Tensor]:
    """Output and gradients of input, weight and bias: in float64 without oneDNN, in bfloat16 under autocast."""
    conv = conv.to(torch.float32 if kind == torch.bfloat16 else kind)
    x = x.to(conv.weight.dtype, copy=True).requires_grad_()
    conv.zero_grad()
    dirty()
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16):
        y = conv(x, past)
    dirty()
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y.dtype))
    return [t.double() for t in (y.detach(), x.grad, conv.weight.grad, conv.bias.grad) if t is not None]


def wrong(found: list[Shape]) -> list[str]:
    """What is not within tolerance, of each shape with one frame of output and with more, after others and without."""
    torch.manual_seed(0)
    faults = []
    for shape in found:
        *sizes, pads, past = shape
        conv = Conv3d(*sizes, pads)  # type: ignore[arg-type, misc]
        for frames, known, kind in product((1, 2, 4), {0, past}, TOLERANCE):
            x = torch.randn(2, sizes[0], frames * sizes[3][0] + known, 8, 8)
            exact, rounded = (passes(conv, x, past - known, k) for k in (torch.float64, kind))
            for name, a, b in zip(("output", "input", "weight", "bias"), exact, rounded, strict=True):
                off = float((a - b).norm() / a.norm())
                if not off <= TOLERANCE[kind]:
                    faults.append(f"{shape}, {frames} frames after {known}, {kind}: {name} is off by {off:.3g}")
    return faults


def test_every_shape_is_right_in_bfloat16() -> None:
    assert len(shapes()) > 20
    faults = wrong(shapes())
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("isa", ["AVX512_CORE_BF16", "AVX2"])
def test_and_so_it_is_with_other_instructions(isa: str) -> None:
    """Above, oneDNN used AMX where there is any; here it does without. The variable is read as torch starts."""
    env = os.environ | {"ONEDNN_MAX_CPU_ISA": isa, "PYTHONPATH": str(ROOT)}
    command, given = [sys.executable, __file__], repr(shapes())
    done = subprocess.run(command, input=given, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == f"{len(shapes())} shapes\n"


if __name__ == "__main__":
    given = ast.literal_eval(sys.stdin.read())
    print(f"{len(given)} shapes", *wrong(given), sep="\n")
