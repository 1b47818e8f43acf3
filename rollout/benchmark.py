"""Benchmark dreams: environment steps and codes per second, and the fraction of the machine's peak rates.

    python rollout/benchmark.py                                                        # the pretrained dream
    python rollout/benchmark.py --run runs/raster runs/block                           # compare decoding orders
    python rollout/benchmark.py --run runs/demo --num-envs 1 256 1024 --device cuda    # --eager: without CUDA graphs

Every batch size is timed on the same dream in one process, through the vector environment with autoreset, as a policy
steps it. Between them the peak rates of the machine are measured: a 2048 x 2048 matrix product in the dream's
precision, and a copy of 256 MB. The FLOPs of a step and the bytes it has to read (all weights and each lane's cached
keys and values, once per pass) give the fraction of these rates. The table also has bits per code and delta-PSNR of a
run, if rollout/evaluate.py and rollout/controllability.py have measured them, because a decoding order with fewer
passes costs quality.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch

import envs  # noqa: F401 - registers
from configs import command
from configs.written import Written
from envs.vector import DreamVectorEnv
from rollout.results import read_results
from worldmodel.utils.files import write_json
from worldmodel.utils.hardware import Precision, calls_per_second, flop_counter, machine_rates
from worldmodel.utils.run_args import DEVICE
from worldmodel.utils.settings import AboveZero, NonEmpty, Positive, Settings


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Benchmark the speed of dreams."""

    run: NonEmpty[str] = ("",)
    """Run folders of dreams, or hf://owner/name; by default the pretrained model of `world`."""
    world: str = "health_gathering_supreme"
    """Name of the pretrained model; used without a run folder."""
    precision: NonEmpty[Precision] = ("float32", "bfloat16")
    """Precisions of the dream's models to time."""
    num_envs: NonEmpty[Positive] = (1, 16, 64)
    """Numbers of lanes to time."""
    seconds: AboveZero = 5.0
    """Seconds per measurement, in three parts of which the median counts."""
    out: Path = Path("runs/benchmark/dream.json")
    """File for the results."""
    device: str = DEVICE
    """Device of the dream: cpu or cuda."""
    eager: bool = False
    """Do not use CUDA graphs, to measure what they gain."""


def step_cost(env: DreamVectorEnv) -> dict[str, float]:
    """FLOPs of one step of all lanes, and the bytes it reads: weights and cache once per pass."""
    assert env.lanes is not None
    lanes, dream = env.lanes.clone(), env.dream
    captures, dream.use_cuda_graphs = dream.use_cuda_graphs, False  # operations cannot be counted in a graph replay
    with flop_counter() as count:
        dream.step(lanes, np.zeros((env.num_envs, *dream.env_spec.action.shape), dream.env_spec.action.dtype))
    dream.use_cuda_graphs = captures
    passes = len(dream.prior.order.passes)
    size = lambda model: sum(p.nbytes for p in model.parameters())  # noqa: E731
    cache = sum(t.nbytes for t in lanes.kv_cache.kv)
    rest = [*dream.vqvae.dream_parts(), dream.outcome]
    read = passes * (size(dream.prior) + cache) + sum(map(size, rest))
    return {"flops": float(count.get_total_flops()), "bytes": float(read)}


def measure(args: Args, run: str, precision: Precision, lanes: int) -> dict[str, Any]:
    """The measurements of one batch size."""
    env = DreamVectorEnv(lanes, run, world=args.world, precision=precision, device=args.device)
    env.dream.use_cuda_graphs = env.dream.use_cuda_graphs and not args.eager
    env.reset(seed=0)
    env.action_space.seed(0)
    steps = calls_per_second(lambda: env.step(env.action_space.sample()), args.seconds, args.device)
    used = str(env.dream.prior.start_token.dtype).removeprefix("torch.")  # what "auto" resolved to
    work, can = step_cost(env), machine_rates(args.device, used)
    config = env.dream.prior.config
    return {
        "run": run or args.world,
        "precision": used,
        "order": config.decoding_order,
        "patch": config.patch_size,
        "lanes": lanes,
        "steps_per_second": steps * lanes,
        "codes_per_frame": config.codes_per_frame,
        "codes_per_second": steps * lanes * config.codes_per_frame,
        "passes": len(env.dream.prior.order.passes) * config.codes_per_position,
        "matmul_share": steps * work["flops"] / can["matmul"],
        "copy_share": steps * work["bytes"] / can["copy"],
        **{f"machine_{name}": value for name, value in can.items()},
    }


def quality(run: str) -> dict[str, Any]:
    """Bits per code and delta-PSNR of a run, if rollout/evaluate.py and rollout/controllability.py measured them."""
    results = read_results(Path(run))[0] if run else {}
    found: dict[str, Any] = {}
    if "results" in results:
        found["bits"] = results["results"]["bits_per_dim"]["true actions"]["mean"]
    if "controllability" in results:
        found["delta_psnr"] = results["controllability"]["delta_psnr"]["mean"]
    return found


def format_row(row: dict[str, Any]) -> str:
    rates = f"{row['machine_matmul'] / 1e9:.0f} GFLOP/s, {row['machine_copy'] / 1e9:.1f} GB/s"
    bits, gain = (f"{row[k]:.2f}" if k in row else "-" for k in ("bits", "delta_psnr"))
    return (
        f"{row['run'][-24:]:26}{row['precision']:10}{row['lanes']:>6}{row['steps_per_second']:>10.1f}"
        f"{row['codes_per_second']:>10,.0f}{row['matmul_share']:>11.0%}{row['copy_share']:>9.0%}{bits:>10}{gain:>8}"
        f"  {rates}"
    )


def main(args: Args) -> Written:
    rows = []
    print(
        f"{'dream':26}{'precision':10}{'lanes':>6}{'steps/s':>10}{'codes/s':>10}{'of matmul':>11}{'of copy':>9}"
        f"{'bits/code':>10}{'dPSNR':>8}  the machine itself"
    )
    for run, precision, lanes in product(args.run, args.precision, args.num_envs):
        row = measure(args, run, precision, lanes)
        rows.append(row | (quality(run) if row["precision"] == "float32" else {}))
        print(format_row(rows[-1]), flush=True)
    write_json(args.out, {"device": args.device, "eager": args.eager, "threads": torch.get_num_threads(), "rows": rows})
    print(f"{torch.get_num_threads()} threads")
    return Written(args.out)


if __name__ == "__main__":
    command(main, "rollout_benchmark")
