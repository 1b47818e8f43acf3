"""How fast training, sampling and reading are: clips and codes a second, and the share of what the machine can do.

    python train/benchmark.py                                # VQ-VAE of BAIR, prior of 1,024 codes a clip
    python train/benchmark.py --official ../VideoGPT         # and a checkout of the official code, with ratios
    python train/benchmark.py --preset speed                 # and sampling of a prior that was trained
    python train/benchmark.py --models ucf101 --what vqvae prior --precision bfloat16 --device cuda

Each figure is taken in a process of its own, ours and the official one in turns, `rounds` times; the median counts.
Both sides have the same sizes, batch, threads, dropout and allocator: glibc's by default gives freed memory back and
faults it in again, which costs both up to 40%, so it is told to keep it, as our training does (`--allocator default`
leaves it). The machine's own rates, a matrix product of 2048 and a copy of 256 MB, are measured in the same process.
Three ratios are printed: in float32, in bfloat16, and ours in its fastest precision over the official code in float32,
which is how it ships. Its prior ships with a dropout of 0.3 inside its attention, which the paper does not have; the
prior is timed on both sides with it and without. Sampling is timed code by code, of random weights, and ahead
(worldmodel/ahead.py), which gains by what was learned, of a prior that is `--trained`. Last comes what attention over
8 x 32 x 32 codes stores for its mask.

Tiny operations vary by a quarter from run to run, and other work on the machine changes everything: leave it alone.
On a GPU the share of the matrix product is the model FLOPs utilisation, and peak memory is printed too.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch

from configs import command, overlay, read_preset
from train import official, work
from train.masks import memory
from train.work import Task
from worldmodel.checkpoint import write_json
from worldmodel.errors import UserError
from worldmodel.fit import keep_memory
from worldmodel.models import load_prior
from worldmodel.prior import PriorConfig
from worldmodel.rates import chosen, machine, rate
from worldmodel.settings import AboveZero, Positive, Settings, ShareBelow1, Some
from worldmodel.vqvae import VQVAEConfig

What = Literal["vqvae", "prior", "sample", "store", "masks"]
Precision = Literal["float32", "bfloat16"]
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Time training, sampling and reading."""

    what: Some[What] = ("vqvae", "prior", "sample", "store", "masks")
    """What to time: training steps, drawing codes, clips from a store; masks are counted."""
    official: Path | None = None
    """A checkout of github.com/wilson1yan/VideoGPT to time as well."""
    models: str = ""
    """Preset whose VQ-VAE and prior are timed, instead of the two below."""
    vqvae: VQVAEConfig = field(default_factory=VQVAEConfig)
    prior: PriorConfig = field(
        default_factory=lambda: PriorConfig(latent=(4, 16, 16), width=256, layers=4, feedforward=1024)
    )
    trained: Path | None = None
    """A trained prior, unconditional and in raster order, whose sampling is timed too: drawing ahead gains by what was
    learned."""
    attention_dropout: tuple[ShareBelow1, ...] = (0.3, 0.0)
    """Of the prior in training; the official code ships with 0.3."""
    precision: Some[Precision] = ("float32", "bfloat16")
    vqvae_batch: Positive = 2
    """Clips of a step."""
    prior_batch: Positive = 8
    """Clips of a step."""
    sample_batch: tuple[Positive, ...] = (1, 16)
    """Clips drawn side by side."""
    store_batch: Positive = 32
    """Clips read at a time."""
    rounds: Positive = 2
    """Processes of each figure."""
    seconds: AboveZero = 3.0
    """Time of a measurement, in three parts of at least one call, of which the median counts."""
    allocator: Literal["keep", "default"] = "keep"
    """Of both sides: freed memory is kept, or left to glibc."""
    out: Path = Path("runs/benchmark/train.json")
    """Where the figures go."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trained is not None and "sample" not in self.what:
            raise UserError("--trained is for sampling; add sample to --what, or leave it out")


def sized(args: Args) -> tuple[VQVAEConfig, PriorConfig]:
    """The models that are timed: those of a preset, the prior over its VQ-VAE's codes, or those of the flags."""
    if not args.models:
        return args.vqvae, args.prior
    preset = read_preset(args.models)
    settings = [preset.get(stage, {}).get("model", {}) for stage in ("vqvae", "prior")]
    vqvae = overlay(VQVAEConfig(), settings[0], f"{args.models}.yaml: vqvae.model")
    of_codes = {"latent": list(vqvae.latent), "books": vqvae.books, "codes": vqvae.codes, "code_dim": vqvae.dim}
    seen = {"seen_shape": [*vqvae.size, vqvae.channels]}
    return vqvae, overlay(PriorConfig(), settings[1] | of_codes | seen, f"{args.models}.yaml: prior.model")


def of_trained(folder: Path) -> PriorConfig:
    """The sizes of a trained prior that can be sampled without anything given, in runs."""
    config = load_prior(folder).config
    if config.order != "raster" or config.condition != "none" or config.seen or config.patch > 1:
        raise UserError(
            f"{folder} has a condition, patches or another order; give an unconditional prior in raster order"
        )
    return config


def tasks(args: Args, folder: Path) -> Iterator[Task]:
    """All that is timed, in the order of the table."""
    vqvae, prior = sized(args)
    for precision in [chosen(torch.device(args.device), precision) for precision in args.precision]:
        base = Task(what="", precision=precision, batch=1, vqvae=vqvae, prior=prior, device=args.device)
        if "vqvae" in args.what:
            yield replace(base, what="vqvae", batch=args.vqvae_batch)
        for share in args.attention_dropout if "prior" in args.what else ():
            yield replace(base, what="prior", batch=args.prior_batch, prior=replace(prior, attention_dropout=share))
        for batch in args.sample_batch if "sample" in args.what else ():
            yield replace(base, what="sample", batch=batch)
            if args.trained is not None:
                yield replace(base, what="sample", batch=batch, prior=of_trained(args.trained), trained=args.trained)
    if "store" in args.what:
        yield Task(what="store", precision="uint8", batch=args.store_batch, vqvae=vqvae, prior=prior, store=folder)


def measure(task: Task, checkout: Path | None, seconds: float, allocator: str) -> Row:
    """The figures of a task, ours or a checkout's; in a process of its own."""
    if allocator == "keep":
        keep_memory()
    cuda = task.device == "cuda"
    made = work.build(task) if checkout is None else official.build(task, checkout)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    calls = rate(made.call, seconds, task.device)
    can = machine(task.device, "bfloat16" if task.precision == "bfloat16" else "float32")
    return {
        "rate": calls * made.units,
        "matmul_share": calls * made.flops / can["matmul"],
        "copy_share": calls * made.bytes / can["copy"],
        **({"peak_memory": torch.cuda.max_memory_allocated()} if cuda else {}),
        **{f"machine_{name}": value for name, value in can.items()},
    }


def alone(task: Task, checkout: Path | None, args: Args) -> Row:
    """`measure` in a new process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measure, task, checkout, args.seconds, args.allocator).result()


def compare(task: Task, args: Args, folder: Path) -> list[Row]:
    """A row of ours and, if there is a checkout, one of it; processes take turns."""
    sides: dict[str, Path | None] = {"ours": None} | ({"official": args.official} if args.official else {})
    found: dict[str, list[Row]] = {side: [] for side in sides}
    for _ in range(args.rounds):
        for side, checkout in sides.items():
            h5 = checkout is not None and task.what == "store"
            found[side].append(alone(replace(task, store=folder / "noise.hdf5") if h5 else task, checkout, args))
    same = {"what": task.name(), "precision": task.precision, "batch": task.batch}
    return [
        same | {"side": side} | {key: float(np.median([row[key] for row in rows])) for key in rows[0]}
        for side, rows in found.items()
    ]


def line(row: Row) -> str:
    memory = f"{row['peak_memory'] / 2**30:10.1f} GiB" if "peak_memory" in row else ""
    return (
        f"{row['what']:30}{row['side']:10}{row['precision']:10}{row['batch']:>6}{row['rate']:>12,.2f}"
        f"{row['matmul_share']:>11.0%}{row['copy_share']:>9.0%}{memory}"
        f"  {row['machine_matmul'] / 1e9:.0f} GFLOP/s, {row['machine_copy'] / 1e9:.1f} GB/s"
    )


def ratios(rows: list[Row]) -> list[Row]:
    """Ours over the official code, of each work and batch: by precision, and our best over its float32."""
    found: dict[tuple[str, int], dict[tuple[str, str], float]] = {}
    for row in rows:
        found.setdefault((row["what"], row["batch"]), {})[row["side"], row["precision"]] = row["rate"]
    table = []
    for (what, batch), rate_of in found.items():
        both = [p for side, p in rate_of if side == "official"]
        entry: Row = {p: rate_of["ours", p] / rate_of["official", p] for p in both}
        if "float32" in both:
            best = max(value for (side, _), value in rate_of.items() if side == "ours")
            entry["as_shipped"] = best / rate_of["official", "float32"]
        if entry:
            table.append({"what": what, "batch": batch} | entry)
    return table


def main(args: Args) -> None:
    os.environ["TQDM_DISABLE"] = "1"
    if args.trained is not None:
        of_trained(args.trained)  # what is wrong with it is told before anything is timed
    rows = []
    print(
        f"{'clips/s or codes/s':30}{'':10}{'precision':10}{'batch':>6}{'rate':>12}{'of matmul':>11}{'of copy':>9}"
        "  the machine itself"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "store" in args.what:
            frames = work.fill(folder / "noise.zarr", sized(args)[0])
            if args.official is not None:
                official.fill(folder / "noise.hdf5", frames)
        for task in tasks(args, folder / "noise.zarr"):
            for row in compare(task, args, folder):
                rows.append(row)
                print(line(row), flush=True)
    table = ratios(rows)
    for entry in table:
        values = ", ".join(f"{key} {value:.2f}" for key, value in entry.items() if key not in ("what", "batch"))
        print(f"ours / official: {entry['what']}, batch {entry['batch']}: {values}")
    masks = memory(args.device) if "masks" in args.what else {}
    for what, size in masks.items():
        print(f"{what}: {size / 2**20:,.1f} MiB")
    write_json(
        args.out,
        {
            "device": args.device, "threads": torch.get_num_threads(), "allocator": args.allocator,
            "rows": rows, "ratios": table, "masks": masks,
        },
    )  # fmt: skip
    print(f"{torch.get_num_threads()} threads, allocator: {args.allocator}; figures: {args.out}")


if __name__ == "__main__":
    command(main, "speed")
