"""Benchmark training, sampling and reading: clips or codes per second, and the fraction of the machine's peak rates.

    python train/benchmark.py                                # VQ-VAE of BAIR, prior of 1,024 codes per clip
    python train/benchmark.py --official ../VideoGPT         # also a checkout of the official code, with ratios
    python train/benchmark.py --profile                      # also where the time goes, operation by operation
    python train/benchmark.py --preset speed                 # also sampling from a trained prior
    python train/benchmark.py --workloads store bucket --bucket s3://mine/benchmark.zarr    # clips/s local and remote
    python train/benchmark.py --preset-models ucf101 --workloads vqvae prior --precision bfloat16 --device cuda

Each measurement runs in a separate process, alternating between our code and the official code, `rounds` times. The
median is reported. Both sides use the same sizes, batch, threads, dropout and allocator settings. By default glibc
returns freed memory to the system and faults it in again, which costs both sides up to 40%. So the allocator is set to
keep it, as in our training (`--allocator default` does not). The machine's peak rates are measured in the same
process: a 2048 x 2048 matrix product and a copy of 256 MB.

Three ratios are printed: float32, bfloat16, and our fastest precision over the official code in float32, its default.
The official prior has a dropout of 0.3 inside its attention, which the paper does not have, so the prior is timed with
and without it. Sampling is timed code by code with random weights. With `--trained-prior` it is also timed with
predictive sampling (worldmodel/generation/predictive_sampling.py), whose speed depends on the training. A bucket is
read clip by clip, and then through a full cache of shards. The last lines are the memory of the attention mask over
8 x 32 x 32 codes.

Short operations vary by a quarter between runs, and other load on the machine changes everything, so keep it idle. On
a GPU the fraction of the matrix product rate is the model FLOPs utilization, and peak memory is printed too.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch

from configs import command, overlay, read_preset
from configs.written import Written
from train import workloads, workloads_official
from train.mask_memory import mask_memory
from train.step_profile import time_shares
from train.workloads import Task
from worldmodel.models.loading import load_prior
from worldmodel.models.prior import PriorConfig
from worldmodel.models.vqvae_config import VQVAEConfig
from worldmodel.training.prior_stage import PriorStage
from worldmodel.training.vqvae_stage import VQVAEStage
from worldmodel.utils.errors import UserError
from worldmodel.utils.files import write_json
from worldmodel.utils.hardware import calls_per_second, machine_rates, resolve_precision
from worldmodel.utils.memory import keep_freed_memory
from worldmodel.utils.processes import in_new_process
from worldmodel.utils.run_args import DEVICE
from worldmodel.utils.settings import AboveZero, Address, FractionBelow1, NonEmpty, Positive, Settings

WorkloadName = Literal["vqvae", "prior", "sample", "store", "bucket", "masks"]
Precision = Literal["float32", "bfloat16"]
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Benchmark training, sampling and reading."""

    workloads: NonEmpty[WorkloadName] = ("vqvae", "prior", "sample", "store", "masks")
    """What to measure. masks counts the memory of attention masks; the others are timed. bucket needs --bucket."""
    bucket: Address = Address("")
    """URL to write a store of noise to and read it from; it stays there."""
    official: Path | None = None
    """Checkout of github.com/wilson1yan/VideoGPT to compare with; by default only our code is timed."""
    preset_models: str = ""
    """Preset whose VQ-VAE and prior are timed; by default those of the settings vqvae and prior."""
    vqvae: VQVAEConfig = field(default_factory=VQVAEConfig)
    """Sizes of the VQ-VAE that is timed."""
    prior: PriorConfig = field(
        default_factory=lambda: PriorConfig(latent_shape=(4, 16, 16), d_model=256, n_layers=4, d_ff=1024)
    )
    """Sizes of the prior that is timed."""
    trained_prior: Path | None = None
    """Folder of a trained prior to time predictive sampling with; by default it is not timed. The prior must be
    unconditional and in raster order."""
    attention_dropout: tuple[FractionBelow1, ...] = (0.3, 0.0)
    """Attention dropouts of the prior's training to time; the official code uses 0.3."""
    precision: NonEmpty[Precision] = ("float32", "bfloat16")
    """Precisions to time."""
    vqvae_batch_size: Positive = 2
    """Clips per training step of the VQ-VAE."""
    prior_batch_size: Positive = 8
    """Clips per training step of the prior."""
    sample_batch_sizes: tuple[Positive, ...] = (1, 16)
    """Numbers of clips sampled in a batch."""
    store_batch_size: Positive = 32
    """Clips read per batch."""
    compile: bool = False
    """Compile our training steps with torch.compile."""
    profile: bool = False
    """Also print which operations the time of training and sampling goes to."""
    rounds: Positive = 2
    """Processes per measurement; the median counts."""
    seconds: AboveZero = 3.0
    """Seconds per measurement; the median of three parts of at least one call counts."""
    allocator: Literal["keep", "default"] = "keep"
    """Memory allocator of both sides: keep freed memory, or glibc's default."""
    out: Path = Path("runs/benchmark/train.json")
    """File for the results."""
    device: str = DEVICE
    """Device to time on: cpu or cuda."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if ("bucket" in self.workloads) != (self.bucket != ""):
            raise UserError("the workload bucket and --bucket belong together; give both, or none")
        if self.compile and self.official is not None:
            raise UserError("the official code is not compiled; leave out --compile or --official")
        if self.trained_prior is not None and "sample" not in self.workloads:
            raise UserError(
                "--trained-prior has no effect without the workload sample; add sample to --workloads, or leave "
                "--trained-prior out"
            )


def model_configs(args: Args) -> tuple[VQVAEConfig, PriorConfig]:
    """The models to time: those of a preset, without actions, or those of the flags."""
    if not args.preset_models:
        return args.vqvae, args.prior
    preset = read_preset(args.preset_models)
    stages = preset.get("vqvae", {}), preset.get("prior", {})
    defaults = [asdict(VQVAEStage().model), asdict(PriorStage().model)]
    settings = [own | stage.get("model", {}) for own, stage in zip(defaults, stages, strict=True)]
    vqvae = overlay(VQVAEConfig(), settings[0], f"{args.preset_models}.yaml: vqvae.model")
    frames = stages[1].get("n_latent_frames", PriorStage.n_latent_frames) if vqvae.causal else vqvae.latent_shape[0]
    of_codes = {
        "latent_shape": [frames, *vqvae.latent_shape[1:]],
        "n_codebooks": vqvae.n_codebooks,
        "n_codes": vqvae.n_codes,
        "embedding_dim": vqvae.embedding_dim,
    }
    seen = {"cond_frame_shape": [*vqvae.frame_size, vqvae.channels]}
    prior = overlay(PriorConfig(), settings[1] | of_codes | seen, f"{args.preset_models}.yaml: prior.model")
    if prior.image_input and "sample" in args.workloads:
        raise UserError(
            f"the prior of {args.preset_models} needs the last reconstruction as input, so it can only be sampled in a "
            "dream; give --workloads vqvae prior, and time the dream with rollout/benchmark.py"
        )
    if args.official is not None and (vqvae.past_frames or prior.image_input):
        raise UserError(
            f"the official code has no models like those of {args.preset_models}; leave out --official, or name "
            "another preset"
        )
    return vqvae, prior


def trained_config(folder: Path) -> PriorConfig:
    """The config of a trained prior; `UserError` unless it is unconditional and in raster order."""
    config = load_prior(folder).config
    if (
        config.decoding_order != "raster"
        or config.conditioning != "none"
        or config.n_cond_frames
        or config.patch_size > 1
    ):
        raise UserError(
            f"{folder} has conditioning, patches or another decoding order; use an unconditional prior in raster order"
        )
    return config


def list_tasks(args: Args, folder: Path) -> Iterator[Task]:
    """All measurements, in the order of the table."""
    vqvae, prior = model_configs(args)
    for precision in [resolve_precision(torch.device(args.device), precision) for precision in args.precision]:
        base = Task(
            workload="", precision=precision, batch_size=1, vqvae=vqvae, prior=prior, device=args.device,
            compile=args.compile,
        )  # fmt: skip
        if "vqvae" in args.workloads:
            yield replace(base, workload="vqvae", batch_size=args.vqvae_batch_size)
        for share in args.attention_dropout if "prior" in args.workloads else ():
            yield replace(
                base, workload="prior", batch_size=args.prior_batch_size, prior=replace(prior, attention_dropout=share)
            )
        for batch in args.sample_batch_sizes if "sample" in args.workloads else ():
            yield replace(base, workload="sample", batch_size=batch)
            if args.trained_prior is not None:
                yield replace(
                    base,
                    workload="sample",
                    batch_size=batch,
                    prior=trained_config(args.trained_prior),
                    trained_prior=args.trained_prior,
                )
    base = Task(workload="", precision="uint8", batch_size=args.store_batch_size, vqvae=vqvae, prior=prior)
    if "store" in args.workloads:
        yield replace(base, workload="store", store=str(folder / "noise.zarr"))
    if "bucket" in args.workloads:
        for kept in (None, folder / "shards"):
            yield replace(base, workload="bucket", store=args.bucket, shard_cache=kept)


def measure(task: Task, checkout: Path | None, seconds: float, allocator: str, is_profiled: bool = False) -> Row:
    """Measure a task in this process: our code, or that of a checkout. Rates are numbers, and "profile" has shares."""
    if allocator == "keep":
        keep_freed_memory()
    cuda = task.device == "cuda"
    made = workloads.build_workload(task) if checkout is None else workloads_official.build_workload(task, checkout)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    calls = calls_per_second(made.call, seconds, task.device)
    can = machine_rates(task.device, "bfloat16" if task.precision == "bfloat16" else "float32")
    return {
        "rate": calls * made.n_units,
        **({"clips_per_second": calls * task.batch_size} if task.workload == "prior" else {}),
        "matmul_share": calls * made.flops / can["matmul"],
        "copy_share": calls * made.bytes / can["copy"],
        **({"peak_memory": torch.cuda.max_memory_allocated()} if cuda else {}),
        **{f"machine_{name}": value for name, value in can.items()},
        **({"profile": time_shares(made.call, task.device)} if is_profiled else {}),
    }


def measure_in_process(task: Task, checkout: Path | None, args: Args) -> Row:
    """Run `measure` in a new process."""
    is_profiled = args.profile and task.workload in ("vqvae", "prior", "sample")
    return in_new_process(measure, task, checkout, args.seconds, args.allocator, is_profiled)


def compare(task: Task, args: Args, folder: Path) -> list[Row]:
    """The rows of our code and, if given, of the checkout, in alternating processes."""
    official = args.official if task.workload != "bucket" else None  # the official code reads HDF5 files only
    sides: dict[str, Path | None] = {"ours": None} | ({"official": official} if official else {})
    found: dict[str, list[Row]] = {side: [] for side in sides}
    for _ in range(args.rounds):
        for side, checkout in sides.items():
            h5 = checkout is not None and task.workload == "store"
            found[side].append(
                measure_in_process(replace(task, store=str(folder / "noise.hdf5")) if h5 else task, checkout, args)
            )
    same = {"what": task.name(), "precision": task.precision, "batch": task.batch_size}
    return [same | {"side": side} | median_row(rows) for side, rows in found.items()]


def median_row(rows: list[Row]) -> Row:
    """The median of each number, and the last profile."""
    last = rows[-1]
    return {k: v if k == "profile" else float(np.median([row[k] for row in rows])) for k, v in last.items()}


def format_row(row: Row) -> str:
    memory = f"{row['peak_memory'] / 2**30:10.1f} GiB" if "peak_memory" in row else ""
    return (
        f"{row['what']:30}{row['side']:10}{row['precision']:10}{row['batch']:>6}{row['rate']:>12,.2f}"
        f"{row['matmul_share']:>11.0%}{row['copy_share']:>9.0%}{memory}"
        f"  {row['machine_matmul'] / 1e9:.0f} GFLOP/s, {row['machine_copy'] / 1e9:.1f} GB/s"
    )


def ratios(rows: list[Row]) -> list[Row]:
    """Speed of our code over the official code, per workload and batch size: by precision, and best over float32."""
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


def main(args: Args) -> Written:
    os.environ["TQDM_DISABLE"] = "1"
    if args.trained_prior is not None:
        trained_config(args.trained_prior)  # report an error before anything is timed
    rows = []
    print(
        f"{'clips/s or codes/s':30}{'':10}{'precision':10}{'batch':>6}{'rate':>12}{'of matmul':>11}{'of copy':>9}"
        "  the machine itself"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "store" in args.workloads:
            frames = workloads.fill_store(folder / "noise.zarr", model_configs(args)[0])
            if args.official is not None:
                workloads_official.write_hdf5(folder / "noise.hdf5", frames)
        if args.bucket:
            workloads.fill_store(args.bucket, model_configs(args)[0])
        for task in list_tasks(args, folder):
            for row in compare(task, args, folder):
                rows.append(row)
                print(format_row(row), flush=True)
                if "profile" in row:
                    print("  " + ", ".join(f"{share:.0%} {name}" for name, share in row["profile"].items()))
    table = ratios(rows)
    for entry in table:
        values = ", ".join(f"{key} {value:.2f}" for key, value in entry.items() if key not in ("what", "batch"))
        print(f"ours / official: {entry['what']}, batch {entry['batch']}: {values}")
    masks = mask_memory(args.device) if "masks" in args.workloads else {}
    for what, size in masks.items():
        print(f"{what}: {size / 2**20:,.1f} MiB")
    write_json(
        args.out,
        {
            "device": args.device, "threads": torch.get_num_threads(), "allocator": args.allocator,
            "rows": rows, "ratios": table, "masks": masks,
        },
    )  # fmt: skip
    print(f"{torch.get_num_threads()} threads, allocator: {args.allocator}")
    return Written(args.out)


if __name__ == "__main__":
    command(main, "train_benchmark")
