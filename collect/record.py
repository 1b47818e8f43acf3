"""Playing into a store: groups of episodes by several processes, cut into pieces, until there are enough.

The index of the next episode, and how many of its pieces are in the store, are committed with each piece. So the same
command goes on where it was killed, and ends with the same store, whatever the number of processes.
"""

from __future__ import annotations

import itertools
import time

from tqdm import tqdm

from collect.episodes import pieces
from collect.pool import Pool
from worldmodel.errors import UserError
from worldmodel.writer import StoreWriter

PATIENCE = 100
"""Episodes in a row that may be too short for one piece."""


def record(pool: Pool, writer: StoreWriter, lanes: int, total: int, length: int) -> float:
    """Write pieces of episodes until there are `total`; returns frames a second.

    The pool's processes make of the index of a group its `lanes` episodes, as `collect.episodes.play` does.
    """
    first, written = writer.progress or (0, 0)  # the next episode, and how many of its pieces there are already
    before, begin, rate, too_short = writer.rows, time.perf_counter(), 0.0, 0
    groups = pool.map(itertools.count(first // lanes))
    with tqdm(total=total, initial=writer.episodes, unit=" episodes", desc=writer.world.name) as bar:
        for i, episode in enumerate(itertools.chain.from_iterable(groups), first // lanes * lanes):
            parts = pieces(episode, length)
            too_short = 0 if parts else too_short + 1
            if too_short == PATIENCE:
                raise UserError(
                    f"{PATIENCE} episodes in a row had fewer than {length} frames; ask for a shorter length"
                )
            for k, part in enumerate(parts, 1):
                if (i, k) > (first, written) and writer.episodes < total:
                    writer.append(part, progress=[i, k] if k < len(parts) else [i + 1, 0])
                    bar.update()
            rate = (writer.rows - before) / (time.perf_counter() - begin)
            bar.set_postfix_str(f"{rate:,.0f} frames/s")
            if writer.episodes == total:
                break
        writer.commit()
    return rate
