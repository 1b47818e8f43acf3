"""How reading scales: clips per second and memory of a training's reader, from stores of 100,000 to 10 million frames.

    python collect/benchmark.py                         # 10 GB in runs/benchmark/frames, deleted at the end
    python collect/benchmark.py --rows 100000 1000000   # without the largest store
    python collect/benchmark.py --keep                  # the next call of the same command writes nothing

The stores hold small frames of noise, with actions, in episodes of 300 rows. The largest number of frames is read from
one store, and from many stores that a manifest joins, which are copies of one. Both ways of reading are measured: from
the decoded arrays that a store keeps in its folder ("disk"), and decoding each clip ("off").

Each measurement has a process of its own, and the stores take turns in every round, so that other load on the machine
falls on all of them. The median of the rounds counts. Before the clock starts, every page of the mapped files is
touched: the first access to a page is slow, and a training has soon touched all of them. Copying the same number of
bytes from random places in the arrays, without a reader, is timed too. It is slower if less of an array fits into the
processor's caches.

Memory is the anonymous memory of the process (RssAnon in /proc/self/status). Pages of mapped files are not part of it:
the system drops them when it needs room.
"""

from __future__ import annotations

import itertools
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: import from the project's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from configs import command
from configs.written import Written
from worldmodel.data.clips import CacheMode, Clips
from worldmodel.data.env_spec import ActionSpec, EnvSpec
from worldmodel.data.opening import open_store, write_manifest
from worldmodel.data.writer import StoreWriter
from worldmodel.utils.errors import UserError
from worldmodel.utils.files import write_json
from worldmodel.utils.processes import in_new_process
from worldmodel.utils.progress import Progress
from worldmodel.utils.settings import AboveZero, AtLeast2, NonEmpty, Pixels, Positive, Settings

Row = dict[str, Any]
ARRAYS = ("frames", "action")
EPISODE = 300
"""Rows of an episode."""
POOL = 256
"""Different frames of noise. Episodes repeat them, so that a store is written quickly and takes little room."""
PAGE = 4096
"""Bytes of a page of memory."""
SPARE = 1.3
"""Free space that is required, as a multiple of the size of the decoded frames."""


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Measure how reading clips scales with the number of frames and stores."""

    rows: NonEmpty[Positive] = (100_000, 1_000_000, 10_000_000)
    """Frames of each store."""
    n_stores: AtLeast2 = 100
    """Stores that the largest number of frames is split into once more."""
    frame_size: Pixels = 12
    """Height and width of a frame, which has three channels."""
    modes: NonEmpty[CacheMode] = ("disk", "off")
    """Where decoded frames are kept; off decodes every clip."""
    batch_size: Positive = 32
    """Clips per batch."""
    n_frames: Positive = 16
    """Frames of a clip."""
    rounds: Positive = 5
    """Processes per measurement; the median counts."""
    seconds: AboveZero = 1.0
    """Seconds per measurement."""
    folder: Path = Path("runs/benchmark/frames")
    """Folder for the stores."""
    keep: bool = False
    """Keep the stores for the next call; by default they are deleted."""
    results: Path = Path("runs/benchmark/reading.json")
    """File for the results."""


def fill(path: Path, rows: int, size: int) -> None:
    """Write a store of noise, or its missing episodes."""
    rng = np.random.default_rng(0)
    pool = rng.integers(0, 256, (POOL, size, size, 3), dtype=np.uint8)
    pool = np.concatenate([pool] * (2 + EPISODE // POOL))
    spec = EnvSpec(name="noise", frame_shape=(size, size, 3), action=ActionSpec(kind="Discrete", nvec=(4,)))
    with (
        StoreWriter(path, spec, {"rows": rows}, wait_in_files=False) as writer,
        Progress(total=rows, unit=" frames", desc=path.name) as bar,
    ):
        bar.update(writer.n_rows)
        while writer.n_rows < rows:
            n, first = min(EPISODE, rows - writer.n_rows), rng.integers(POOL)
            writer.append({"frames": pool[first : first + n], "action": rng.integers(4, size=n)})
            bar.update(n)


def make_stores(args: Args) -> dict[str, Path]:
    """Write the stores and their decoded arrays, unless they exist; returns paths by name, the largest also in parts.

    Raises:
        UserError: If there is too little space, or a folder holds stores of other settings.
    """
    args.folder.mkdir(parents=True, exist_ok=True)
    largest, many = max(args.rows), args.folder / f"{args.n_stores}-stores"
    stores = {f"{rows:,} frames": args.folder / f"{rows}.zarr" for rows in args.rows}
    wanted = int(SPARE * (sum(args.rows) + largest) * 3 * args.frame_size**2)
    if not many.exists() and (free := shutil.disk_usage(args.folder).free) < wanted:
        raise UserError(
            f"{args.folder} has {free / 1e9:.1f} GB of free space, but the stores take {wanted / 1e9:.1f}; ask for "
            "fewer --rows, or give another --folder"
        )
    for rows, path in zip(args.rows, stores.values(), strict=True):
        fill(path, rows, args.frame_size)
        in_new_process(decode, path)
    parts = [many / str(i) for i in range(args.n_stores)]
    fill(parts[0], largest // args.n_stores, args.frame_size)
    in_new_process(decode, parts[0])
    for part in parts[1:]:
        if not part.exists():
            shutil.copytree(parts[0], part.with_suffix(".part"), dirs_exist_ok=True)
            part.with_suffix(".part").rename(part)
    write_manifest(str(many), [part.name for part in parts])
    return stores | {f"{largest:,} frames in {args.n_stores} stores": many}


def decode(path: Path) -> None:
    """Fill the cache of a store."""
    Clips(open_store(path), "all", 1, ARRAYS, "disk").sample(np.random.default_rng(0), 1)


def measure(path: Path, mode: CacheMode, args: Args) -> Row:
    """Open a store and read clips for some time."""
    start = time.perf_counter()
    clips = Clips(open_store(path), "train", args.n_frames, ARRAYS, mode)
    opened, rng = time.perf_counter() - start, np.random.default_rng(0)
    clips.sample(rng, args.batch_size)
    arrays = [clips.store.decoded[name].arrays for name in ARRAYS] if mode != "off" else []
    for array in itertools.chain(*arrays):
        array.reshape(-1).view(np.uint8)[::PAGE].max()
    rate, cpu = repeat(lambda: clips.sample(rng, args.batch_size), args)
    row = {"rate": rate, "cpu_seconds": cpu, "opened": opened, "memory": anonymous_memory()}
    return row | ({"copy_seconds": repeat(lambda: copy_clips(arrays, rng, args), args)[1]} if arrays else {})


def repeat(work: Callable[[], object], args: Args) -> tuple[float, float]:
    """Clips per second, and seconds of all processors per clip, of a call that reads a batch."""
    start, start_cpu, n = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < args.seconds:
        work()
        n += args.batch_size
    return n / (time.perf_counter() - start), (time.process_time() - start_cpu) / n


def copy_clips(arrays: Sequence[Sequence[np.ndarray]], rng: np.random.Generator, args: Args) -> None:
    """Copy as many rows as a batch has, from random places: a lower bound of the time to read a batch."""
    parts = rng.integers(len(arrays[0]), size=args.batch_size).tolist()
    starts = rng.integers(min(map(len, arrays[0])) - args.n_frames, size=args.batch_size).tolist()
    for of_name in arrays:
        np.concatenate([of_name[i][row : row + args.n_frames] for i, row in zip(parts, starts, strict=True)])


def anonymous_memory() -> int:
    """Bytes of anonymous memory of this process."""
    (found,) = re.findall(r"^RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return 1024 * int(found)


def compare(stores: dict[str, Path], args: Args) -> list[Row]:
    """A row for each store and mode: the medians of the rounds, in which the stores take turns."""
    what: list[tuple[str, CacheMode]] = [(name, mode) for mode in args.modes for name in stores]
    found: dict[tuple[str, CacheMode], list[Row]] = {key: [] for key in what}
    for _ in Progress(range(args.rounds), desc="measuring", unit="round"):
        for name, mode in what:
            found[name, mode].append(in_new_process(measure, stores[name], mode, args))
    rows: list[Row] = []
    for (name, mode), each in found.items():
        row: Row = {key: float(np.median([one[key] for one in each])) for key in each[0]}
        first = next((first for first in rows if first["mode"] == mode), row)
        share = {f"{key}_share": row[key] / first[key] for key in ("cpu_seconds", "memory")}
        rows.append({"store": name, "mode": mode} | row | share)
    return rows


def format_row(row: Row) -> str:
    copied = f"{1e6 * row['copy_seconds']:,.1f}" if "copy_seconds" in row else ""
    return (
        f"| {row['store']} | {row['mode']} | {row['rate']:,.0f} | {1e6 * row['cpu_seconds']:,.1f} "
        f"| {row['cpu_seconds_share']:.2f} | {copied} | {row['memory'] / 1e6:,.1f} | {row['memory_share']:.2f} "
        f"| {row['opened']:.2f} |"
    )


def main(args: Args) -> Written:
    stores = make_stores(args)
    rows = compare(stores, args)
    print(
        "| store | cache | clips/s | CPU microseconds per clip | relative to the first row | microseconds to copy only "
        "| anonymous memory, MB | relative to the first row | seconds to open |"
    )
    print("|" + "---|" * 9)
    for row in rows:
        print(format_row(row))
    write_json(args.results, {"rows": rows})
    if not args.keep:
        for path in stores.values():
            shutil.rmtree(path)
    return Written(args.results)


if __name__ == "__main__":
    command(main, "collect_benchmark")
