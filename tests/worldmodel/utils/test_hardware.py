"""What a step asks of a machine, counted by hand, and what the machine can do."""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask

from worldmodel.models import attention
from worldmodel.models.prior import Prior, PriorConfig
from worldmodel.training.step import train_step
from worldmodel.training.trainer_config import TrainerConfig
from worldmodel.utils.hardware import calls_per_second, flop_counter, machine_rates, peak_flops

half = pytest.mark.parametrize("half", [False, True])


def back(y: Tensor) -> None:
    y.float().sum().backward()


@half
def test_a_convolution_there_and_back(half: bool) -> None:
    """One product of (out channels, in channels x kernel, positions) forward and two backward."""
    conv, x = nn.Conv3d(3, 5, 3, padding=1), torch.randn(2, 3, 4, 6, 8, requires_grad=True)
    with flop_counter() as count, torch.autocast("cpu", torch.bfloat16, enabled=half):
        back(conv(x))
    assert count.get_total_flops() == 3 * 2 * 5 * (3 * 27) * (2 * 4 * 6 * 8)


@half
@pytest.mark.parametrize("mask", ["causal", "bits", "none"])
def test_attention_is_two_products_forward_and_four_backward(half: bool, mask: str) -> None:
    """The kernel for CPUs, which PyTorch's counter leaves out; the mask hides nothing from the count."""
    q, k, v = (torch.randn(2, 3, 6, 4, requires_grad=True) for _ in range(3))
    bits = torch.ones(6, 6, dtype=torch.bool).tril() if mask == "bits" else None
    with flop_counter() as count, torch.autocast("cpu", torch.bfloat16, enabled=half):
        back(F.scaled_dot_product_attention(q, k, v, attn_mask=bits, is_causal=mask == "causal"))
    product = 2 * (2 * 3) * 6 * 6 * 4
    assert count.get_total_flops() == 6 * product


@pytest.mark.parametrize("trained", [False, True])
def test_flex_attention_adds_the_blocks_that_its_mask_keeps(trained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block of keys for the first block of queries, and two for each later one. The kernel itself is not seen."""
    monkeypatch.setattr(attention, "compiled_flex_attention", lambda: lambda q, k, v, block_mask: q @ k.mT @ v)
    q, k, v = (torch.randn(2, 3, 12, 4, requires_grad=trained) for _ in range(3))
    mask = create_block_mask(lambda b, h, q, k: (q // 4 - k // 4 < 2) & (q >= k), None, None, 12, 12, "cpu", 4)
    with flop_counter() as count:
        attention.flex_attention_cuda(q, k, v, mask)
    product = 2 * (2 * 3) * 4 * 4 * 4
    assert count.get_total_flops() == (1 + 2 + 2) * 2 * product * (3 if trained else 1)


def test_a_step_of_the_prior_by_hand_and_not_changed_by_counting() -> None:
    """Every weight of a matrix is used once a position, forward and twice backward; attention comes on top."""
    width, layers, feedforward, positions, codes, dim = 16, 3, 32, 4 * 2 * 2, 8, 4
    config = PriorConfig(
        latent_shape=(4, 2, 2),
        n_codes=codes,
        embedding_dim=dim,
        d_model=width,
        n_heads=2,
        n_layers=layers,
        d_ff=feedforward,
        dropout=0.3,
    )
    batch = {"codes": torch.randint(codes, (5, 4, 2, 2, 1))}

    def step() -> Prior:
        torch.manual_seed(0)
        model = Prior(config, torch.randn(1, codes, dim))
        optimizer = torch.optim.Adam(model.parameters())
        train_step(model, lambda b: {"loss": model.loss(b["codes"]).mean()}, batch, optimizer, TrainerConfig(), 0)
        return model

    plain = step().state_dict()
    with flop_counter() as count:
        model = step()
    assert all(torch.equal(value, plain[name]) for name, value in model.state_dict().items())
    block = 4 * width * width + 2 * width * feedforward  # queries, keys, values and what becomes of them; feed-forward
    trained = 2 * 5 * positions * (layers * block + width * codes)
    attention = layers * 2 * (2 * 5 * positions**2 * width)
    inputs = 2 * 5 * positions * dim * width  # codes have no gradient, so that one product less goes backward
    assert count.get_total_flops() == 3 * (trained + attention) + 2 * inputs


def test_rates_are_measured_and_leave_chance_alone() -> None:
    before = torch.random.get_rng_state()
    can = machine_rates("cpu", "float32", 0.01)
    assert 1e8 < can["matmul"] < 1e14
    assert 1e8 < can["copy"] < 1e13
    assert peak_flops("cpu", "float32") is peak_flops("cpu", "float32"), "once in a process"
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_rate_is_calls_a_second() -> None:
    assert calls_per_second(lambda: time.sleep(0.01), 0.15, "cpu") == pytest.approx(100, rel=0.2)
