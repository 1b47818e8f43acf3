"""Sparse attention: the pattern by hand, and the same result from every kernel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from worldmodel.models.attention import attend
from worldmodel.models.decoding_order import DecodingOrder
from worldmodel.models.prior import Prior, PriorConfig
from worldmodel.models.sparse_attention import block_mask, clip_mask
from worldmodel.utils.errors import UserError


def test_the_pattern_by_hand() -> None:
    """Three frames of 2 x 3: the last position sees two before it, its column, and its place in earlier frames."""
    mask = clip_mask(DecodingOrder("raster", 2, 3), frames=3, window=3, local_window=2)
    assert torch.nonzero(mask[17]).flatten().tolist() == [5, 11, 14, 16, 17]
    assert torch.nonzero(mask[12]).flatten().tolist() == [0, 6, 11, 12], "the end of the frame before is local"
    assert torch.nonzero(clip_mask(DecodingOrder("raster", 2, 3), 3, 2, 2)[17]).flatten().tolist() == [11, 14, 16, 17]


def test_of_two_codebooks_the_column_is_the_same_book() -> None:
    mask = clip_mask(DecodingOrder("raster", 2, 2, 2), frames=1, window=1, local_window=1)
    assert torch.nonzero(mask[7]).flatten().tolist() == [3, 7]


@pytest.mark.parametrize("order", ["raster", "diagonal", "block"])
def test_sparse_is_part_of_dense_and_everything_local_is_dense(order: str) -> None:
    shape = DecodingOrder(order, 4, 4)  # type: ignore[arg-type]
    dense = clip_mask(shape, 4, 3)
    sparse = clip_mask(shape, 4, 3, local_window=3)
    assert not (sparse & ~dense).any()
    assert sparse.sum() < dense.sum() / 2
    assert sparse.diagonal().all()
    assert torch.equal(clip_mask(shape, 4, 3, local_window=64), dense)


def test_blocks_say_the_same_as_the_mask() -> None:
    """FlexAttention, here without its kernel, against the dense fallback."""
    order = DecodingOrder("raster", 8, 8)
    q, k, v = torch.randn(3, 2, 4, 4 * 64, 16, generator=torch.Generator().manual_seed(0)).double().float()
    blocks = block_mask(order, 4, 4, 9, torch.device("cpu"))
    dense = F.scaled_dot_product_attention(q, k, v, attn_mask=clip_mask(order, 4, 4, 9))
    torch.testing.assert_close(attend(q, k, v, blocks), dense, rtol=1e-5, atol=1e-6)
    assert blocks.sparsity() > 20, "of two by two blocks the one above the diagonal is skipped"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: the compiled FlexAttention kernel")
def test_the_compiled_kernel_equals_the_dense_fallback_in_training() -> None:
    config = PriorConfig(
        latent_shape=(4, 16, 16),
        n_codes=64,
        embedding_dim=16,
        d_model=128,
        n_heads=4,
        n_layers=2,
        local_window=64,
        dropout=0.0,
    )
    prior = Prior(config, torch.randn(1, 64, 16))
    torch.nn.init.normal_(prior.head.out[0].weight, std=0.1)
    codes = torch.randint(64, (2, 4, 16, 16, 1))
    gradients = []
    for device in ("cpu", "cuda"):
        prior = prior.to(device)
        prior.zero_grad()
        prior.loss(codes.to(device)).mean().backward()
        gradients.append(prior.blocks[0].attention.qkv.weight.grad.cpu())
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_a_clip_longer_than_it_was_trained_on_is_refused_only_where_time_is_absolute() -> None:
    prior = Prior(
        PriorConfig(
            latent_shape=(2, 2, 2), n_codes=3, embedding_dim=2, d_model=8, n_heads=2, n_layers=1, local_window=2
        )
    )
    with pytest.raises(UserError, match="ends after 2"):
        prior(torch.zeros(1, 3, 2, 2, 1, dtype=torch.long))
