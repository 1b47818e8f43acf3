"""The order of codes, worked out by hand on a small frame."""

from __future__ import annotations

import pytest
import torch

from worldmodel.models.decoding_order import NO_PARENT, DecodingOrder
from worldmodel.models.sparse_attention import clip_mask
from worldmodel.utils.errors import UserError


def test_diagonals_of_a_two_by_three_frame() -> None:
    order = DecodingOrder("diagonal", 2, 3)  # positions 0 1 2 / 3 4 5
    assert [p.tolist() for p in order.passes] == [[0], [1, 3], [2, 4], [5]]
    assert order.parents.tolist() == [
        [NO_PARENT, NO_PARENT],
        [NO_PARENT, 0],
        [NO_PARENT, 1],
        [0, NO_PARENT],
        [1, 3],
        [2, 4],
    ]


def test_raster_is_one_code_a_pass() -> None:
    order = DecodingOrder("raster", 2, 2, 2)
    assert [p.tolist() for p in order.passes] == [[i] for i in range(8)]
    assert order.parents[:, 0].tolist() == [NO_PARENT, *range(7)]


def test_books_of_one_place_follow_each_other() -> None:
    order = DecodingOrder("diagonal", 2, 2, 2)  # place (i, j) has positions 2(2i + j), 2(2i + j) + 1
    assert [p.tolist() for p in order.passes] == [[0], [1], [2, 4], [3, 5], [6], [7]]
    assert order.parents.tolist() == [
        [NO_PARENT, NO_PARENT],
        [0, NO_PARENT],
        [NO_PARENT, 1],
        [2, NO_PARENT],
        [1, NO_PARENT],
        [4, NO_PARENT],
        [3, 5],
        [6, NO_PARENT],
    ]


def test_each_pass_is_told_every_code_of_the_pass_before() -> None:
    for order in (
        DecodingOrder("diagonal", 5, 3),
        DecodingOrder("diagonal", 3, 4, 3),
        DecodingOrder("raster", 3, 4, 2),
    ):
        for before, now in zip(order.passes, order.passes[1:], strict=False):
            told = set(order.parents[now].flatten().tolist()) - {NO_PARENT}
            assert told == set(before.tolist())


def test_clip_mask_by_hand() -> None:
    mask = clip_mask(DecodingOrder("diagonal", 1, 2), frames=3, window=2).int()
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 1, 1, 1, 1],
    ]
    assert torch.equal(mask, torch.tensor(expected, dtype=torch.int32))


def test_blocks_are_walked_side_by_side() -> None:
    order = DecodingOrder("block", 2, 4)  # positions 0 1 2 3 / 4 5 6 7, blocks 0 1 4 5 and 2 3 6 7
    assert [p.tolist() for p in order.passes] == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert order.parents[:, 0].tolist() == [NO_PARENT, 0, NO_PARENT, 2, 1, 4, 3, 6]
    assert order.first_pass.tolist() == [0, 2]
    assert order.last_pass.tolist() == [5, 7], "of the same blocks"
    books = DecodingOrder("block", 2, 2, 2)
    assert [p.tolist() for p in books.passes] == [[i] for i in range(8)]
    assert books.parents[:, 0].tolist() == [NO_PARENT, *range(7)]
    with pytest.raises(UserError, match="3 x 4 positions cannot be divided into 2 x 2 blocks"):
        DecodingOrder("block", 3, 4)
