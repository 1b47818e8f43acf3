"""How a training step scales: predicted from rates measured here, measured on two ranks, and predicted for GPUs.

    python train/scaling.py

1. Steps of a small VQ-VAE and a small prior are timed at `batch_sizes`: in one process, and in two that train
   independently at the same time, because processes share caches, memory and power. All-reduces of gloo are timed on
   two ranks at many sizes. Lines are fitted: time against clips, and time against bytes.
2. With them, train/step_cost.py predicts a step at `batch_size` clips on one rank, on two ranks that share them (strong
   scaling), and on two ranks with as many each (weak scaling). All are then measured. The bytes that a step sends are
   counted too. Ranks are started as torchrun starts them, and have `threads` threads each.
3. The same model predicts steps of the paper's models on 1 to 1,024 GPUs, from the published rates of `gpu`. This table
   is not measured.

The fastest step counts, because other load on the machine can only add time. Rounds on one rank and on two take turns.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: import from the project's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor, nn

from configs import command
from configs.written import Written
from train.step_cost import Compute, Links, fit_line, n_bytes, step_seconds, step_traffic
from train.step_timing import Operations, Times, Timing, best, on_ranks
from train.workloads import Task
from worldmodel.models.prior import Prior, PriorConfig
from worldmodel.models.vqvae import VQVAE
from worldmodel.models.vqvae_config import VQVAEConfig
from worldmodel.utils.errors import UserError
from worldmodel.utils.files import write_json
from worldmodel.utils.hardware import Precision, flop_counter, resolve_precision
from worldmodel.utils.progress import Progress
from worldmodel.utils.settings import AboveZero, AtLeast2, Fraction, NonEmpty, Positive, Settings

Row = dict[str, Any]
Ranks = tuple[int, bool]
"""A number of processes, and whether they are connected."""
MODELS = ("vqvae", "prior")
REDUCED = tuple(4**k for k in range(5, 14))
"""Bytes of the reductions that are timed: a kilobyte to 67 megabytes."""
GPUS = tuple(2**k for k in range(11))


@dataclass(frozen=True, kw_only=True)
class GPU(Settings):
    """Published rates of GPUs and of what connects them."""

    tflops: AboveZero = 989.0
    """Matrix products in bfloat16, 10^12 operations a second: H100 SXM."""
    utilization: Fraction = 0.14
    """Part of that rate that a step reaches: measured with the VQ-VAE of UCF-101 at batch 16 on an H200."""
    launch_us: AboveZero = 5.0
    """Microseconds that the host takes to launch an operation."""
    per_machine: Positive = 8
    """GPUs of a machine."""
    nvlink_gb: AboveZero = 450.0
    """Gigabytes a second from a GPU to the others of its machine: half of NVLink's 900, which are both ways."""
    network_gb: AboveZero = 50.0
    """Gigabytes a second from a GPU to other machines: one adapter of 400 gigabits for each."""
    latency_us: AboveZero = 10.0
    """Fixed latency of a collective operation in microseconds."""
    near_us: AboveZero = 1.2
    """Microseconds from GPU to GPU in a machine."""
    far_us: AboveZero = 8.5
    """Microseconds from machine to machine."""
    overlap: Fraction = 0.6
    """Part of a step in which gradients can be reduced: the backward pass."""
    batch_size: Positive = 32
    """Clips on each GPU, for weak scaling."""
    global_batch_size: Positive = 1024
    """Clips of all GPUs together, for strong scaling."""

    def links(self) -> Links:
        """What connects the GPUs."""
        return Links(
            bandwidth=1e9 * self.nvlink_gb, latency=1e-6 * self.latency_us, near=1e-6 * self.near_us,
            far=1e-6 * self.far_us, network=1e9 * self.network_gb, ranks_per_machine=self.per_machine,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Predict how a training step scales, and measure it on one and two ranks."""

    vqvae: VQVAEConfig = field(
        default_factory=lambda: VQVAEConfig(
            n_frames=4, frame_size=(32, 32), hidden_channels=32, residual_channels=32, n_res_blocks=1
        )
    )
    """Sizes of the VQ-VAE that is measured."""
    prior: PriorConfig = field(
        default_factory=lambda: PriorConfig(latent_shape=(2, 8, 8), d_model=256, n_layers=2, d_ff=1024)
    )
    """Sizes of the prior that is measured."""
    batch_sizes: NonEmpty[Positive] = (2, 4, 16)
    """Clips of the steps that lines are fitted to."""
    batch_size: AtLeast2 = 8
    """Clips of the steps that are predicted, an even number."""
    shard: bool = False
    """Also spread the models over two ranks with FSDP2."""
    precision: Precision = "auto"
    """Precision of the steps."""
    threads: Positive = 1
    """Threads of a rank."""
    steps: Positive = 20
    """Steps of a measurement; the fastest counts."""
    rounds: Positive = 3
    """Times that ranks are started for a measurement."""
    large_vqvae: VQVAEConfig = field(default_factory=VQVAEConfig)
    """Sizes of the VQ-VAE that is predicted on GPUs."""
    large_prior: PriorConfig = field(default_factory=PriorConfig)
    """Sizes of the prior that is predicted on GPUs."""
    gpu: GPU = field(default_factory=GPU)
    """The GPUs."""
    out: Path = Path("runs/benchmark/scaling.json")
    """File for the results."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % 2:
            raise UserError(f"batch_size = {self.batch_size} cannot be shared by two ranks; give an even number")
        if len(set(self.batch_sizes)) < 2:
            raise UserError("batch_sizes needs two different numbers or more, because a line is fitted to them")


def step_work(model: nn.Module, clips: Tensor) -> tuple[float, int]:
    """FLOPs of the forward and backward pass of some clips, and how many operations the host launches for it."""
    model.train()
    with flop_counter() as count, Operations() as operations:
        loss = model.loss(clips).mean() if isinstance(model, Prior) else model(clips)["loss"]
        loss.backward()
    return float(count.get_total_flops()), operations.n


def build_model(name: str, vqvae: VQVAEConfig, prior: PriorConfig) -> tuple[nn.Module, Tensor]:
    """A model and a clip for it. The prior and its clip have no values (meta device), because none are needed."""
    if name == "vqvae":
        clip = torch.zeros(1, vqvae.n_frames, *vqvae.frame_size, vqvae.channels, dtype=torch.uint8)
        return VQVAE(vqvae), clip
    with torch.device("meta"):
        codebook = torch.empty(prior.n_codebooks, prior.n_codes, prior.embedding_dim)
        return Prior(prior, codebook), torch.zeros(1, *prior.latent_shape, prior.n_codebooks, dtype=torch.int64)


def list_tasks(args: Args, n: int, connected: bool) -> list[Task]:
    """The steps that are timed on n ranks, or on n processes that are not connected."""
    base = Task(
        workload="", precision=resolve_precision(torch.device("cpu"), args.precision), batch_size=1, vqvae=args.vqvae,
        prior=args.prior,
    )  # fmt: skip
    sizes = sorted({args.batch_size // n, args.batch_size}) if connected else args.batch_sizes
    spread = (False, True) if n > 1 and connected and args.shard else (False,)
    return [
        replace(base, workload=name, batch_size=size, shard=shard)
        for name in MODELS for shard in spread for size in sizes
    ]  # fmt: skip


def measure(args: Args) -> dict[Ranks, Times]:
    """The fastest times on one rank and on two, connected or not."""
    found: dict[Ranks, list[Times]] = {(n, connected): [] for n in (1, 2) for connected in (False, True)}
    for _ in Progress(range(args.rounds), desc="measuring", unit="round"):
        for (n, connected), times in found.items():
            tasks = tuple(list_tasks(args, n, connected))
            times.append(on_ranks(n, Timing(tasks, REDUCED, args.steps, args.threads, connected)))
    return {which: best(times) for which, times in found.items()}


def compare(args: Args, times: dict[Ranks, Times]) -> tuple[dict[str, Any], list[Row]]:
    """The fitted lines, and a row for each step: predicted and measured, in seconds and in bytes that a rank sends."""
    latency, per_byte = fit_line(REDUCED, times[2, True].reduced)  # of two ranks, each sends the tensor's size
    links, rows = Links(bandwidth=1 / per_byte, latency=latency), list[Row]()
    fitted: dict[str, Any] = {"latency": latency, "bandwidth": 1 / per_byte, "lines": []}
    for name in MODELS:
        model, _ = build_model(name, args.vqvae, args.prior)
        for n in (1, 2):
            alone = zip(list_tasks(args, n, False), times[n, False].steps, strict=True)
            seconds = [time for task, time in alone if task.workload == name]
            compute = Compute(*fit_line(args.batch_sizes, seconds))
            line = {"per_step": compute.per_step, "per_clip": compute.per_clip}
            fitted["lines"].append({"model": name, "processes": n} | line)
            for i, task in enumerate(list_tasks(args, n, True)):
                if task.workload == name:
                    traffic = step_traffic(model, args.vqvae if name == "vqvae" else None, task.shard)
                    rows.append({
                        "model": name, "ranks": n, "shard": task.shard, "batch": n * task.batch_size,
                        "predicted": step_seconds(compute, traffic, links, n, task.batch_size, overlap=0),
                        "measured": times[n, True].steps[i], "sent": traffic.sent(n),
                        "counted_bytes": times[n, True].collectives[i],
                    })  # fmt: skip
    return fitted, rows


def predict_gpus(args: Args) -> tuple[dict[str, Any], list[Row]]:
    """What a step of the large models takes, and a row for each model and number of GPUs."""
    gpu, rows, sizes = args.gpu, list[Row](), {}
    for name in MODELS:
        model, clip = build_model(name, args.large_vqvae, args.large_prior)
        flops, operations = step_work(model, clip)
        compute = Compute(0.0, flops / (1e12 * gpu.tflops * gpu.utilization), operations * 1e-6 * gpu.launch_us)
        sizes[name] = {"bytes": n_bytes(model), "flops_per_clip": flops, "operations": operations}
        for n in GPUS:
            row: Row = {"model": name, "gpus": n}
            for shard in (False, True):
                traffic = step_traffic(model, args.large_vqvae if name == "vqvae" else None, shard)
                row["bytes_sharded" if shard else "bytes"] = traffic.sent(n)
                for how, clips in (("weak", gpu.batch_size), ("strong", gpu.global_batch_size / n)):
                    seconds = step_seconds(compute, traffic, gpu.links(), n, clips, gpu.overlap)
                    row[f"{how}_sharded" if shard else how] = {
                        "seconds": seconds,
                        "clips_per_second": n * clips / seconds,
                    }
            rows.append(row)
    return sizes, rows


def print_here(fitted: dict[str, Any], rows: list[Row]) -> None:
    """Print what was measured beside its prediction."""
    print(f"all-reduce on two ranks: {1e6 * fitted['latency']:.0f} us + bytes / {fitted['bandwidth'] / 1e9:.2f} GB/s")
    for line in fitted["lines"]:
        step, clip = 1e3 * line["per_step"], 1e3 * line["per_clip"]
        print(f"{line['model']}, {line['processes']} at once: {step:.1f} ms + {clip:.1f} ms per clip")
    print("| model | ranks | clips | predicted, ms | measured, ms | measured / predicted | MB sent by a rank |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['model']}{', sharded' if row['shard'] else ''} | {row['ranks']} | {row['batch']} "
            f"| {1e3 * row['predicted']:.1f} | {1e3 * row['measured']:.1f} | {row['measured'] / row['predicted']:.2f} "
            f"| {row['sent'] / 1e6:.1f} |"
        )


def print_gpus(gpu: GPU, sizes: dict[str, Any], rows: list[Row]) -> None:
    """Print the prediction for GPUs."""
    for name, what in sizes.items():
        print(
            f"{name}: {what['flops_per_clip'] / 1e12:.2f} TFLOP per clip, gradients of {what['bytes'] / 1e6:.0f} MB, "
            f"{what['operations']:,} operations"
        )
    for name in MODELS:
        print(
            f"| GPUs ({name}; a prediction) | ms, {gpu.batch_size} clips per GPU | clips/s | efficiency "
            f"| ms, {gpu.global_batch_size} clips in all | clips/s | efficiency | MB sent by a GPU | sharded: ms | MB |"
        )
        print("|" + "---|" * 10)
        of_model = [row for row in rows if row["model"] == name]
        for row in of_model:
            each = [
                f"{1e3 * row[how]['seconds']:,.1f} | {row[how]['clips_per_second']:,.0f} "
                f"| {row[how]['clips_per_second'] / of_model[0][how]['clips_per_second'] / row['gpus']:.0%}"
                for how in ("weak", "strong")
            ]
            print(
                f"| {row['gpus']:,} | {' | '.join(each)} | {row['bytes'] / 1e6:.1f} "
                f"| {1e3 * row['weak_sharded']['seconds']:,.1f} | {row['bytes_sharded'] / 1e6:.1f} |"
            )


def main(args: Args) -> Written:
    times = measure(args)
    fitted, here = compare(args, times)
    print_here(fitted, here)
    sizes, gpus = predict_gpus(args)
    print_gpus(args.gpu, sizes, gpus)
    reduced = dict(zip(map(str, REDUCED), times[2, True].reduced, strict=True))
    write_json(args.out, {"fitted": fitted, "reduced": reduced, "here": here, "sizes": sizes, "gpus": gpus})
    return Written(args.out)


if __name__ == "__main__":
    command(main, "scaling")
