"""Attention of whole clips on a CPU against PyTorch's own, forward and backward; dropout's shares and scale."""

import pytest
import torch
import torch.nn.functional as F

from worldmodel.models.attention import attend
from worldmodel.models.cpu_attention import BLOCK_ROWS, MAX_KEYS, row_blocks
from worldmodel.models.decoding_order import DecodingOrder
from worldmodel.models.dropout import Dropout, dropout_mask
from worldmodel.models.prior import PriorConfig
from worldmodel.models.sparse_attention import clip_mask
from worldmodel.utils.errors import UserError


def problem(n: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, n, 8, dtype=dtype, generator=generator).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("n", [BLOCK_ROWS // 2, 2 * BLOCK_ROWS + 7])
@pytest.mark.parametrize("order", ["raster", "block"])
def test_blocks_of_rows_are_the_whole(n: int, order: str) -> None:
    if order == "raster":
        mask, seen = "causal", torch.ones(n, n, dtype=torch.bool).tril()
    else:
        seen = clip_mask(DecodingOrder("block", 4, 4, 1), -(-n // 16), 5)[:n, :n]
        mask = seen
    q, k, v = problem(n)
    weight = torch.randn(2, 3, n, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    truth = ((q @ k.mT) * 8**-0.5).masked_fill(~seen, float("-inf")).softmax(-1) @ v
    wanted = torch.autograd.grad((truth * weight).sum(), (q, k, v))
    out = attend(q, k, v, mask)
    assert type(out.grad_fn).__name__ != type(truth.grad_fn).__name__, "another way than the plain one"
    torch.testing.assert_close(out, truth, rtol=1e-10, atol=1e-12)
    for have, want in zip(torch.autograd.grad((out * weight).sum(), (q, k, v)), wanted, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-10, atol=1e-12)


def test_hidden_keys_are_not_multiplied() -> None:
    rows = row_blocks(torch.ones(1024, 1024, dtype=torch.bool).tril(), torch.float32)
    assert [(r.start, r.stop, r.keys) for r in rows] == [(256 * i, 256 * (i + 1), 256 * (i + 1)) for i in range(4)]


def test_longer_clips_take_the_fused_kernel() -> None:
    q, k, v = problem(MAX_KEYS + 1, torch.float32)
    assert "ScaledDotProduct" in type(attend(q, k, v, "causal").grad_fn).__name__


def test_bfloat16_under_autocast() -> None:
    q, k, v = problem(300, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(q, k, v, "causal")
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    truth = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(out.float(), truth, atol=0.03, rtol=0.03)
    assert q.grad is not None and q.grad.isfinite().all()


def test_dropout_of_shares_is_unbiased_and_has_its_gradient() -> None:
    q, k, v = problem(64)
    truth = attend(q, k, v, "causal")
    torch.manual_seed(0)
    mean = torch.stack([attend(q, k, v, "causal", 0.3).detach() for _ in range(400)]).mean(0)
    error = (mean - truth).abs().mean() / truth.abs().mean()
    assert 0.001 < error < 0.06

    q, k, v = problem(16)  # the check goes through every number of v

    def value(v: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)  # the same masks
        return attend(q, k, v, "causal", 0.3)

    assert torch.autograd.gradcheck(value, (v,), atol=1e-6)


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
def test_masks_keep_their_share_and_scale(p: float) -> None:
    torch.manual_seed(0)
    mask = dropout_mask((1000, 1001), p, torch.empty(0, dtype=torch.float64))
    kept = (mask > 0).double().mean().item()
    assert abs(kept - (1 - p)) < 4 * (p * (1 - p) / mask.numel()) ** 0.5 + 1 / 65536
    assert mask.unique().tolist() == pytest.approx([0, 1 / (1 - p)], rel=1e-4)
    torch.manual_seed(0)
    again, other = (dropout_mask((1000, 1001), p, mask) for _ in range(2))
    assert again.equal(mask) and not other.equal(mask)


def test_dropout_layer() -> None:
    x, layer = torch.ones(50, 41, requires_grad=True), Dropout(0.25)
    y = layer(x)
    y.sum().backward()
    assert x.grad is not None and x.grad.equal(y.detach()) and 0.6 < (y > 0).float().mean() < 0.9
    assert layer.eval()(x) is x


def test_sparse_attention_refuses_dropout_of_shares() -> None:
    with pytest.raises(UserError, match="attention_dropout"):
        PriorConfig(local_window=16, attention_dropout=0.1)
