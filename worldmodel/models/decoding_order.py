"""The order in which the codes of one latent frame are predicted, and what each prediction is told.

Raster order predicts one code a pass. In anti-diagonal order all codes with the same row + column (times the
books) are predicted in one pass: h + w - 1 passes instead of h * w. In block order the frame is cut into 2 x 2 blocks,
and each pass predicts one code of every block: 4 passes (times the books), however large the frame. All are
factorisations with an honest likelihood; the fewer the passes, the more codes are drawn without knowing of each other.
The position that predicts a code is given the codes of its parents:

    raster     the code before it
    diagonal   the codes above it and to its left
    block      the code before it in its block

and may attend to every position of its own pass and of earlier ones. Each code but the last pass's is the parent of
someone in a later pass, so a pass knows all codes of all earlier passes and none of its own. The positions of the first
pass are told what the last ones of the frame before became: the last code, or in block order that of the same block.

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
            raise UserError(f"{self.h} x {self.w} positions have no 2 x 2 blocks; choose decoding_order = diagonal")

    def __len__(self) -> int:
        return self.h * self.w * self.g

    @cached_property
    def passes(self) -> list[Tensor]:
        """Positions predicted together, in the order of prediction."""
        rank = self.pass_index
        return [torch.nonzero(rank == p).flatten() for p in range(int(rank.max()) + 1)]

    @cached_property
    def pass_index(self) -> Tensor:
        """(n,) the pass of each position; on the CPU even where a model is built on another device, or on none."""
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
        """(f,) the positions of the first pass, each told what became of ..."""
        return self.passes[0]

    @property
    def last_pass(self) -> Tensor:
        """(f,) ... these positions in the frame before."""
        return self.passes[-1]

    @cached_property
    def parents(self) -> Tensor:
        """(n, 2) the positions whose codes a position is told, `NO_PARENT` where there is none."""
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
