"""The order of codes, worked out by hand on a small frame."""

from __future__ import annotations

import pytest
import torch

from worldmodel.errors import UserError
from worldmodel.order import NONE, Order
from worldmodel.sparsity import clip_mask


def test_diagonals_of_a_two_by_three_frame() -> None:
    order = Order("diagonal", 2, 3)  # positions 0 1 2 / 3 4 5
    assert [p.tolist() for p in order.passes] == [[0], [1, 3], [2, 4], [5]]
    assert order.parents.tolist() == [[NONE, NONE], [NONE, 0], [NONE, 1], [0, NONE], [1, 3], [2, 4]]


def test_raster_is_one_code_a_pass() -> None:
    order = Order("raster", 2, 2, 2)
    assert [p.tolist() for p in order.passes] == [[i] for i in range(8)]
    assert order.parents[:, 0].tolist() == [NONE, *range(7)]


def test_books_of_one_place_follow_each_other() -> None:
    order = Order("diagonal", 2, 2, 2)  # place (i, j) has positions 2(2i + j), 2(2i + j) + 1
    assert [p.tolist() for p in order.passes] == [[0], [1], [2, 4], [3, 5], [6], [7]]
    assert order.parents.tolist() == [
        [NONE, NONE],
        [0, NONE],
        [NONE, 1],
        [2, NONE],
        [1, NONE],
        [4, NONE],
        [3, 5],
        [6, NONE],
    ]


def test_each_pass_is_told_every_code_of_the_pass_before() -> None:
    for order in (Order("diagonal", 5, 3), Order("diagonal", 3, 4, 3), Order("raster", 3, 4, 2)):
        for before, now in zip(order.passes, order.passes[1:], strict=False):
            told = set(order.parents[now].flatten().tolist()) - {NONE}
            assert told == set(before.tolist())


def test_clip_mask_by_hand() -> None:
    mask = clip_mask(Order("diagonal", 1, 2), frames=3, window=2).int()
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
    order = Order("block", 2, 4)  # positions 0 1 2 3 / 4 5 6 7, blocks 0 1 4 5 and 2 3 6 7
    assert [p.tolist() for p in order.passes] == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert order.parents[:, 0].tolist() == [NONE, 0, NONE, 2, 1, 4, 3, 6]
    assert order.first.tolist() == [0, 2]
    assert order.last.tolist() == [5, 7], "of the same blocks"
    books = Order("block", 2, 2, 2)
    assert [p.tolist() for p in books.passes] == [[i] for i in range(8)]
    assert books.parents[:, 0].tolist() == [NONE, *range(7)]
    with pytest.raises(UserError, match="3 x 4 positions have no 2 x 2 blocks"):
        Order("block", 3, 4)
