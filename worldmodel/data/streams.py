"""Streams: lanes that read episodes from start to end, a few steps per batch, to train a recurrent model.

A recurrent tokenizer must learn to continue from its own reconstructions. So a lane keeps its state from one batch to
the next, and needs the rows that follow. What a lane reads at a step depends only on the seed, the lane and the step.
A resumed run therefore reads the same rows as an uninterrupted one.

Dimensions: b lanes, n steps of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from worldmodel.data.clips import ALL, read_windows
from worldmodel.data.store import Store
from worldmodel.utils.errors import UserError

PIECE_STEPS, START_STEPS = 64, 32
"""Steps of a piece of an episode, and of a start."""


class Streams:
    """`lanes` streams through the episodes of a split, each in an order of its own.

    An episode of r rows has (r - 1) // n batches of n steps; rows that are left over at its end are not read. Lanes
    start at different places, so that a batch is not full of first frames.

    A recurrent model is given the first frame of what a lane reads, and keeps it. In some games the first frame of an
    episode looks like no other frame: Pong begins with another background. A model that is only given such frames fails
    when it is given any other. With long episodes it also sees few of them. So there are three kinds of lanes, by their
    number modulo 8: 0, 2, 4 and 6 read whole episodes, 1, 3 and 5 read pieces from anywhere, 7 reads starts.
    """

    def __init__(
        self,
        store: Store,
        split: str,
        lanes: int,
        n: int,
        array_names: Sequence[str],
        seed: int = 0,
    ) -> None:
        self.store, self.lanes, self.n, self.seed = store, lanes, n, seed
        self.array_names = tuple(array_names)
        bounds = np.array([store.episode_bounds(i) for i in store.episode_indices(split)])
        batches = (bounds[:, 1] - bounds[:, 0] - 1) // n
        if not batches.any():
            raise UserError(
                f"no episode in split {split!r} of {store.path} has {n + 1} rows; lower --model.n-frames, or record "
                "longer episodes"
            )
        first, batches = bounds[batches > 0, 0], batches[batches > 0]
        self._whole = first, batches
        self._starts = first, np.minimum(batches, max(1, START_STEPS // n))
        self._pieces = cut(first, batches, max(1, PIECE_STEPS // n), n)
        self.epoch = int(batches.sum())
        """Batches in which a lane reads every episode once."""

    def read(self, step: int, share: slice = ALL) -> dict[str, np.ndarray]:
        """The batch of a step: arrays (b, n + 1, ...), whose first row is the last row of the previous batch.

        `share` selects the lanes that are read.

        "fresh" (b) is True for lanes that begin an episode, a piece or a start. At step 0 it is True for all lanes,
        even those that begin in the middle of an episode.
        """
        places = np.array([self._place(lane, step) for lane in range(self.lanes)[share]])
        arrays = {name: read_windows(self.store, name, places[:, 0], self.n + 1) for name in self.array_names}
        return arrays | {"fresh": (places[:, 1] == 0) | (step == 0)}

    def _place(self, lane: int, step: int) -> tuple[int, int]:
        """The row at which a lane begins to read at a step, and the number of that batch in its episode or piece."""
        first, batches = self._parts(lane)
        epoch = int(batches.sum())
        round_, within = divmod(int(np.random.default_rng([self.seed, lane]).integers(epoch)) + step, epoch)
        order, ends = self._order(lane, round_)
        i = int(np.searchsorted(ends, within, side="right"))
        batch = within - int(ends[i] - batches[order[i]])
        return int(first[order[i]] + batch * self.n), batch

    @lru_cache(maxsize=1024)  # noqa: B019 - the cache may live as long as the streams
    def _order(self, lane: int, round_: int) -> tuple[np.ndarray, np.ndarray]:
        """The parts in the order in which a lane reads them in a round, and where each ends, in batches."""
        batches = self._parts(lane)[1]
        order = np.random.default_rng([self.seed, lane, round_]).permutation(len(batches))
        return order, batches[order].cumsum()

    def _parts(self, lane: int) -> tuple[np.ndarray, np.ndarray]:
        """What a lane reads: the first row of each episode, piece or start, and its number of batches."""
        return self._starts if lane % 8 == 7 else self._pieces if lane % 2 else self._whole


def cut(first: np.ndarray, batches: np.ndarray, most: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut episodes into pieces of at most `most` batches of n steps: their first rows, and numbers of batches."""
    pieces = [
        (row + n * k, min(most, count - k))
        for row, count in zip(first.tolist(), batches.tolist(), strict=True)
        for k in range(0, count, most)
    ]
    rows, counts = zip(*pieces, strict=True)
    return np.array(rows), np.array(counts)
