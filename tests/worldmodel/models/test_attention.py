"""Attention of passes: plain products or the fused kernel, from caches with gaps or without, come to the same."""

from __future__ import annotations

import pytest
import torch

from worldmodel.models.attention import attend


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lanes", [2, 17])
@pytest.mark.parametrize("rows", [1, 16, 32, 33])
@pytest.mark.parametrize("gaps", [False, True], ids=["whole", "gaps"])
def test_passes_come_to_the_softmax(dtype: torch.dtype, lanes: int, rows: int, gaps: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(lanes, 4, rows, 16, generator=generator).to(dtype)
    k, v = torch.randn(2, lanes, 4, 400, 16, generator=generator).to(dtype)
    if gaps:
        k, v = torch.stack([k, v], 2)[:, :, :, :300].unbind(2)
    seen = torch.rand(lanes, 1, rows, k.shape[2], generator=generator) < 0.7
    bias = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, float("-inf"))
    scores = q.double() @ k.double().mT / 4
    for mask, hidden in ((None, torch.zeros_like(seen)), (seen, ~seen), (bias, ~seen)):
        truth = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v.double()
        tolerance = 1e-5 if dtype == torch.float32 else 0.02
        torch.testing.assert_close(attend(q, k, v, mask).double(), truth, atol=tolerance, rtol=tolerance)


def test_the_plain_way_has_its_gradient_under_a_mask() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(17, 1, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    bias = torch.zeros(1, 3, 3, dtype=torch.float64).masked_fill(torch.ones(3, 3).triu(1) > 0, float("-inf"))
    assert "ScaledDotProduct" not in type(attend(q, k, v, bias).grad_fn).__name__
    assert torch.autograd.gradcheck(lambda *given: attend(*given, bias), (q, k, v))
