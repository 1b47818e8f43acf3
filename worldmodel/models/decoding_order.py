"""The order in which the codes of a latent frame are predicted, and the input of each prediction.

Raster order predicts one code per pass. Anti-diagonal order predicts all codes with the same row + column in one pass:
h + w - 1 passes (times the number of codebooks) instead of h * w. Block order divides the frame into 2 x 2 blocks, and
each pass predicts one code of every block: 4 passes (times the number of codebooks) for any frame size. All are
factorizations with an exact likelihood. With fewer passes, more codes are sampled independently of each other. The
position that predicts a code takes the codes of its parents as input:

    raster     the code before it
    diagonal   the codes above it and to its left
    block      the code before it in its block

and may attend to all positions of its own pass and of earlier ones. Each code, except those of the last pass, is a
parent in some later pass. A pass therefore depends on all codes of all earlier passes and on none of its own. The
positions of the first pass take codes of the previous frame's last pass: the last code, or in block order that of the
same block.

Dimensions: positions are numbered in raster order over (h, w, g), g the codebooks; n = h*w*g.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from worldmodel.utils.errors import UserError

OrderName = Literal["raster", "diagonal", "block"]
NO_PARENT = -1


@dataclass(frozen=True)
class DecodingOrder:
    """The order of a frame of h x w positions with g codebooks."""

    name: OrderName
    h: int
    w: int
    g: int = 1

    def __post_init__(self) -> None:
        if self.name == "block" and (self.h % 2 or self.w % 2):
            raise UserError(
                f"{self.h} x {self.w} positions cannot be divided into 2 x 2 blocks; choose decoding_order = diagonal"
            )

    def __len__(self) -> int:
        return self.h * self.w * self.g

    @cached_property
    def passes(self) -> list[Tensor]:
        """The positions of each pass, in order."""
        rank = self.pass_index
        return [torch.nonzero(rank == p).flatten() for p in range(int(rank.max()) + 1)]

    @cached_property
    def pass_index(self) -> Tensor:
        """(n,) the pass of each position; always on the CPU, even if the model is built on another device."""
        each = product(range(self.h), range(self.w), range(self.g))
        if self.name == "raster":
            ranks = list(range(len(self)))
        elif self.name == "block":
            ranks = [(i % 2 * 2 + j % 2) * self.g + c for i, j, c in each]
        else:
            ranks = [(i + j) * self.g + c for i, j, c in each]
        return torch.tensor(ranks, device="cpu")

    @property
    def first_pass(self) -> Tensor:
        """(f,) positions of the first pass, which take as input the previous frame's codes at `last_pass`."""
        return self.passes[0]

    @property
    def last_pass(self) -> Tensor:
        """(f,) positions of the last pass."""
        return self.passes[-1]

    @cached_property
    def parents(self) -> Tensor:
        """(n, 2) the parents of each position, padded with `NO_PARENT`."""
        return torch.tensor([self._parents(*p) for p in product(range(self.h), range(self.w), range(self.g))])

    def _parents(self, i: int, j: int, c: int) -> list[int]:
        at = (i * self.w + j) * self.g + c
        if self.name == "raster" or c > 0:
            return [at - 1 if at else NO_PARENT, NO_PARENT]
        if self.name == "block":  # (0, 0), (0, 1), (1, 0), (1, 1)
            before = {(0, 0): 0, (0, 1): 1, (1, 0): self.w - 1, (1, 1): 1}[i % 2, j % 2]
            return [at - before * self.g + self.g - 1 if before else NO_PARENT, NO_PARENT]
        last = self.g - 1
        above = at - self.w * self.g + last if i else NO_PARENT
        left = at - self.g + last if j else NO_PARENT
        return [above, left]
