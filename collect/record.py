"""Records played episodes into a store: several processes play groups of episodes until there are enough.

Episodes may be cut into segments. Each commit includes the index of the next episode and the number of its segments in
the store. So the same command resumes after it was killed and ends with the same store, with any number of processes.

Under torchrun each rank records groups of its own into a store of its own, and a manifest joins the stores (see
`worldmodel.data.joined`). Whole episodes are the same with any number of ranks; they are only in another order. A rank
that dies loses only the groups that it is playing, and groups that wait for an earlier one. A store in a folder keeps
every appended episode. A store in a bucket keeps the committed ones; there is a commit every few seconds.

An episode with a NaN or infinite reward, action or variable (in float32, as stored) would break training. It is
skipped, counted, and named in `<store>/skipped.txt`, like an unreadable file.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from collect.episodes import Exploration, cut_episode
from collect.files import SKIPPED_FILE, not_finite, store_size, write_skipped
from collect.pool import WorkerContext, WorkerPool
from worldmodel.data.env_spec import EnvSpec
from worldmodel.data.opening import check_joinable, write_manifest
from worldmodel.data.writer import StoreWriter
from worldmodel.training.distributed import check_equal
from worldmodel.utils.errors import UserError
from worldmodel.utils.progress import Progress
from worldmodel.utils.ranks import n_ranks, rank, wait_for_ranks
from worldmodel.utils.settings import Seed, Workers

MAX_SHORT_EPISODES = 100
"""Recording stops after this many unusable episodes in a row."""
COMMIT_EVERY = 5.0
"""Seconds after which recorded episodes are committed: others can read them, and they are safe in a bucket, and from a
power cut."""


@dataclass(frozen=True, kw_only=True)
class RecordArgs(Exploration):
    """Settings of all recorders."""

    num_workers: Workers = min(os.cpu_count() or 1, 16)
    """Number of processes that play; under torchrun, on each rank."""
    seed: Seed = 0
    """Seed of the episodes, the actions and the split."""


def record_store(
    out: str,
    env_spec: EnvSpec,
    settings: dict[str, Any],
    args: RecordArgs,
    worker: WorkerContext,
    group_size: int,
    total: int,
    length: int = 0,
    bare_rate: Callable[[], float] | None = None,
) -> None:
    """Fill a store with `total` episodes or segments, or resume it, and print its size and the speed.

    Under torchrun each rank fills its share, in <out>/<rank>.

    Args:
        out: Store to write.
        env_spec: Spec of the environment.
        settings: Settings that must be equal to resume.
        args: Seed and number of processes.
        worker: Yields the function that plays a group, in each process.
        group_size: Episodes per group.
        total: Episodes, or segments if `length` is set.
        length: Rows per segment; 0 keeps episodes whole.
        bare_rate: Measures the frames per second of the engine alone in one process, for comparison.

    Raises:
        UserError: The store has other settings, ranks differ, or too many episodes in a row are unusable.
    """
    same = {"settings": settings, "env_spec": env_spec.to_json(), "episodes": total, "length": length}
    check_equal(**same, out=out, seed=args.seed, group_size=group_size)
    address, settings, share = rank_share(out, settings, group_size, total)
    with StoreWriter(address, env_spec, settings, split_seed(args.seed)) if share else nullcontext() as writer:
        join_ranks(out, group_size, total)
        if writer:
            fill(writer, args, worker, group_size, share, length, bare_rate)


def split_seed(seed: int) -> int:
    """The seed of a rank's splits; with equal seeds, the small stores of all ranks could lack the same split."""
    return seed if n_ranks() == 1 else int(np.random.SeedSequence([seed, rank()]).generate_state(1)[0] >> 1)


def shares(group_size: int, total: int) -> list[int]:
    """How many of `total` episodes each rank records; groups go to the ranks in turn."""
    return [sum(i // group_size % n_ranks() == r for i in range(total)) for r in range(n_ranks())]


def rank_share(out: str, settings: dict[str, Any], group_size: int, total: int) -> tuple[str, dict[str, Any], int]:
    """What this rank records: its store, the store's settings, and how many of `total` episodes; all of it if alone."""
    if n_ranks() == 1:
        return out, settings, total
    check_joinable(out)
    return f"{out}/{rank()}", settings | {"rank": [rank(), n_ranks()]}, shares(group_size, total)[rank()]


def join_ranks(out: str, group_size: int, total: int) -> None:
    """Write the manifest of the ranks' stores, once every rank has opened its own."""
    wait_for_ranks()
    if n_ranks() > 1 and rank() == 0:
        write_manifest(out, [str(r) for r, share in enumerate(shares(group_size, total)) if share])
        print(f"data: {out} joins the stores of {n_ranks()} ranks; the figures below are for rank 0")


def fill(
    writer: StoreWriter,
    args: RecordArgs,
    worker: WorkerContext,
    group_size: int,
    total: int,
    length: int,
    bare_rate: Callable[[], float] | None,
) -> None:
    """Fill an open store, and print its size and the speed; the arguments are those of `record_store`."""
    complete = writer.n_episodes >= total
    if not complete:
        with WorkerPool(worker, args.num_workers, Progress.write) as pool:
            rate = record_episodes(pool, writer, group_size, total, length)
            bare = sum(pool.run_everywhere(bare_rate)) if bare_rate else 0
        share = f": {rate / bare:.0%} of the bare engine's {bare:,.0f} frames/s" if bare else ""
        print(f"{rate:,.0f} frames/s with {args.num_workers} processes{share}")
    state = "was complete already" if complete else "is complete"
    mean = writer.n_rows / writer.n_episodes
    print(f"data: {writer.path} {state}: {store_size(writer)}, {mean:.1f} frames per episode")


def record_episodes(pool: WorkerPool, writer: StoreWriter, group_size: int, total: int, length: int) -> float:
    """Write episodes or segments until there are `total`; returns the frames per second.

    The pool's processes return the `group_size` episodes of a group, as `collect.episodes.play_group` does.
    """
    bad: list[str]  # reasons of skipped episodes
    first, written, *bad = writer.progress or (0, 0)  # the next episode, and the number of its segments in the store
    before, start, rate, useless = writer.n_rows, time.perf_counter(), 0.0, 0
    commit_at = time.monotonic() + COMMIT_EVERY
    groups = pool.map(g * n_ranks() + rank() for g in itertools.count(first // group_size))
    with Progress(total=total, initial=writer.n_episodes, unit=" episodes", desc=writer.env_spec.name) as bar:
        for i, episode in enumerate(itertools.chain.from_iterable(groups), first // group_size * group_size):
            why = not_finite(episode)
            if why and i >= first:
                number = (i // group_size * n_ranks() + rank()) * group_size + i % group_size
                bad.append(f"episode {number}: {why}")
                Progress.write(f"skipped: {bad[-1]}")
                write_skipped(writer.path, bad)
            parts = [] if why else cut_episode(episode, length)
            useless = 0 if parts else useless + 1
            if useless == MAX_SHORT_EPISODES:
                raise UserError(given_up(why, length))
            for k, part in enumerate(parts, 1):
                if (i, k) > (first, written) and writer.n_episodes < total:
                    place = [i, k] if k < len(parts) else [i + 1, 0]
                    writer.append(part, progress=[*place, *bad])
                    bar.update()
                    if time.monotonic() > commit_at:
                        writer.commit()
                        commit_at = time.monotonic() + COMMIT_EVERY
            rate = (writer.n_rows - before) / (time.perf_counter() - start)
            bar.set_postfix_str(f"{rate:,.0f} frames/s")
            if writer.n_episodes == total:
                break
        writer.commit()
    if bad:
        print(f"{len(bad):,} episodes were skipped; see {writer.path}/{SKIPPED_FILE} for the reasons")
    return rate


def given_up(why: str, length: int) -> str:
    if why:
        return (
            f"{MAX_SHORT_EPISODES} episodes in a row could not be recorded (the last one: {why}); fix the environment "
            "or the policy"
        )
    return f"{MAX_SHORT_EPISODES} episodes in a row had fewer than {length} frames; ask for a shorter length"
