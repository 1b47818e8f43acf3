"""Streams: lanes that read episodes from start to end, a few steps at a time, as a recurrent model is trained.

A recurrent tokenizer must learn to go on from its own reconstructions. So a lane keeps its state from one batch to the
next, and needs the rows that follow. What a lane reads at a step depends on the seed, the lane and the step alone: a
run that goes on after a break reads what it would have read.

Dimensions: b lanes, n steps of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from worldmodel.data.clips import ALL, CacheMode, _default_cache, read_windows
from worldmodel.data.store import Store
from worldmodel.utils.errors import UserError

START_LANES, START_STEPS = 8, 32
"""One lane in so many reads only so many first steps of each episode."""


class Streams:
    """`lanes` streams through the episodes of a split, each in an order of its own.

    An episode of r rows has (r - 1) // n batches of n steps; rows that are left over at its end are not read. Lanes
    start at different places, so that a batch is not full of first frames. Where episodes are long, a start is seldom
    read, but every episode is encoded from its start, and in some games the first frame looks like no other. So one
    lane in eight reads only the starts.
    """

    def __init__(
        self,
        store: Store,
        split: str,
        lanes: int,
        n: int,
        array_names: Sequence[str],
        seed: int = 0,
        cache: CacheMode | None = None,
    ) -> None:
        self.store, self.lanes, self.n, self.seed = store, lanes, n, seed
        self.array_names, self.cache = tuple(array_names), cache or _default_cache(store)
        bounds = np.array([store.episode_bounds(i) for i in store.episode_indices(split)])
        batches = (bounds[:, 1] - bounds[:, 0] - 1) // n
        if not batches.any():
            raise UserError(f"no {split} episode of {store.path} has {n + 1} rows; ask for fewer steps at a time")
        self._first, self._batches = bounds[batches > 0, 0], batches[batches > 0]
        self._of_starts = np.minimum(self._batches, max(1, START_STEPS // n))
        self.epoch = int(self._batches.sum())
        """Batches in which a lane reads every episode once."""

    def read(self, step: int, share: slice = ALL) -> dict[str, np.ndarray]:
        """The batch of a step: arrays (b, n + 1, ...), whose first row is the last one of the batch before.

        Only a share of the lanes is read if asked for.

        "fresh" (b) is True for lanes that are at the first batch of an episode. At step 0 all are, wherever they are.
        """
        places = np.array([self._place(lane, step) for lane in range(self.lanes)[share]])
        arrays = {
            name: read_windows(self.store, name, places[:, 0], self.n + 1, self.cache) for name in self.array_names
        }
        return arrays | {"fresh": (places[:, 1] == 0) | (step == 0)}

    def _place(self, lane: int, step: int) -> tuple[int, int]:
        """The row at which a lane begins to read at a step, and the number of that batch in its episode."""
        batches = self._batches_of(lane)
        epoch = int(batches.sum())
        round_, within = divmod(int(np.random.default_rng([self.seed, lane]).integers(epoch)) + step, epoch)
        order, ends = self._order(lane, round_)
        i = int(np.searchsorted(ends, within, side="right"))
        batch = within - int(ends[i] - batches[order[i]])
        return int(self._first[order[i]] + batch * self.n), batch

    @lru_cache(maxsize=1024)  # noqa: B019 - as long as the streams live
    def _order(self, lane: int, round_: int) -> tuple[np.ndarray, np.ndarray]:
        """The episodes in the order in which a lane reads them in a round, and where each ends, in batches."""
        order = np.random.default_rng([self.seed, lane, round_]).permutation(len(self._first))
        return order, self._batches_of(lane)[order].cumsum()

    def _batches_of(self, lane: int) -> np.ndarray:
        """How many batches a lane reads of each episode."""
        return self._of_starts if lane % START_LANES == START_LANES - 1 else self._batches
