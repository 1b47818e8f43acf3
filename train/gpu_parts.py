"""The parts of `make gpu`: commands, and how the result of each becomes rows of a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.scripts import PACKAGE
from worldmodel.training.scalars import read_scalars
from worldmodel.utils.settings import Settings

Row = dict[str, Any]
SHARE = "share of a matrix product's rate"
"""A column: operations per second, divided by those of a 2048 x 2048 product in the same process."""
LARGE = "--prior.latent-shape 8 32 32 --prior.d-model 512 --prior.n-layers 16 --prior.d-ff 2048"
TINY = (
    "--vqvae.n-frames 4 --vqvae.frame-size 16 16 --vqvae.stride 2 4 4 --vqvae.hidden-channels 16 "
    "--vqvae.residual-channels 16 --vqvae.n-res-blocks 1 --vqvae.n-codes 16 --vqvae.embedding-dim 8 "
    "--prior.latent-shape 2 4 4 --prior.n-codes 16 --prior.embedding-dim 8 --prior.d-model 32 --prior.n-layers 2 "
    "--prior.d-ff 64"
)


@dataclass(frozen=True, kw_only=True)
class PartArgs(Settings):
    """Settings that the parts depend on."""

    device: str = "cuda"
    """Device to measure on: cuda, or cpu to try the command."""
    small: bool = False
    """Take small models and few lanes."""


def no_rows(path: Path) -> list[Row]:
    """For a part that only makes what a later one needs."""
    return []


@dataclass(frozen=True)
class Part:
    """A command and how its result becomes rows of the table."""

    name: str
    line: str
    """A script and its flags, or arguments of `python`. {out} is where its result goes, {folder} the folder of all."""
    rows: Callable[[Path], list[Row]] = no_rows
    """The rows of the table, from the result."""
    result: str = ""
    """File or folder of the result in the folder of all results; <name>.json by default."""
    needs: str = ""
    """Name of the part that has to be done before this one."""


def test_rows(path: Path) -> list[Row]:
    """The last line of pytest."""
    return [{"what": "tests marked gpu", "result": path.read_text().strip().splitlines()[-1].strip("= ")}]


def training_rows(path: Path) -> list[Row]:
    """Rows of train/benchmark.py."""
    found = json.loads(path.read_text())
    rows = [
        {
            "what": f"{path.stem}: {row['what']}, batch {row['batch']}, {row['precision']}",
            "result": rates(row),
            SHARE: f"{row['matmul_share']:.0%}",
            "memory": f"{row['peak_memory'] / 2**30:.1f} GiB" if "peak_memory" in row else "",
        }
        for row in found["rows"]
    ]
    sizes = {what: f"{size / 2**20:,.1f} MiB" for what, size in found["masks"].items()}
    return rows + [{"what": what, "memory": size} for what, size in sizes.items()]


def rates(row: Row) -> str:
    """The speed of a row of train/benchmark.py, in the units that it has."""
    if "clips_per_second" in row:
        return f"{row['clips_per_second']:,.2f} clips/s, {row['rate']:,.0f} codes/s"
    return f"{row['rate']:,.2f} {'clips' if row['what'].startswith('vqvae') else 'codes'}/s"


def dream_rows(path: Path) -> list[Row]:
    """Rows of rollout/benchmark.py."""
    return [
        {
            "what": f"dream, {row['lanes']:,} lanes, {row['codes_per_frame']} codes per frame, {row['precision']}",
            "result": f"{row['steps_per_second']:,.0f} steps/s",
            SHARE: f"{row['matmul_share']:.0%}",
        }
        for row in json.loads(path.read_text())["rows"]
    ]


def ppo_rows(path: Path) -> list[Row]:
    """The speed that Stable-Baselines3 has logged last."""
    speed = read_scalars(path / "log_1", "time/fps")[-1].value
    return [{"what": "PPO in the dream", "result": f"{speed:,.0f} steps/s"}]


def list_parts(args: PartArgs) -> list[Part]:
    """All parts, the most important first."""
    small, dev = args.small, f"--device {args.device}"
    lanes = "1 2" if small else "1 64 1024 4096"
    envs = "2 --n-steps 8 --total-timesteps 32" if small else "1024 --n-steps 16 --total-timesteps 65536"
    both = "float32" if small else "float32 bfloat16"  # many CPUs are slow in bfloat16
    dream = f"rollout/benchmark.py {dev} --precision {both} --seconds {0.1 if small else 3} --out {{out}}"
    ppo = f"train/policy.py {dev} --env-id VideoGPTDream-v0 --precision auto --out {{out}}"
    tests = Part("tests", "-m pytest -m gpu -p no:cacheprovider", test_rows, "tests.txt")
    return [
        Part("dream", f"{dream} --num-envs {lanes}", dream_rows),
        Part("ppo", f"{ppo} --num-envs {envs}", ppo_rows, "ppo"),
        *([] if PACKAGE else [tests]),  # which are not in the wheel
        *timing_parts(args),
        *frame_parts(args),
        *sampling_parts(args),
    ]


def timing(args: PartArgs) -> str:
    """The command of train/benchmark.py with the flags that all its parts have in common."""
    precision, seconds = ("float32", 0.05) if args.small else ("bfloat16", 2)
    times = f"--precision {precision} --rounds 1 --seconds {seconds}"
    return f"train/benchmark.py --device {args.device} {times} --out {{out}}"


def timing_parts(args: PartArgs) -> list[Part]:
    """Training steps of the paper's models, plain and compiled, and attention over 8 x 32 x 32 codes."""
    both = f"{timing(args)} --workloads vqvae prior --attention-dropout 0"
    sizes = f"--prior-batch-size 1 {TINY}" if args.small else f"--prior-batch-size 4 {LARGE}"
    prior = f"{timing(args)} --workloads prior --attention-dropout 0 {sizes}"
    attention = [
        Part("attention_dense", prior, training_rows),
        Part("attention_sparse", f"{prior} --prior.local-window 128", training_rows),
    ]
    if args.small:
        return [Part("tiny", f"{both} {TINY}", training_rows), *attention]
    models = {name: f"{both} --vqvae-batch-size 16 --preset-models {name}" for name in ("bair", "ucf101")}
    plain = [Part(name, line, training_rows) for name, line in models.items()]
    compiled = [Part(f"{name}_compiled", f"{line} --compile", training_rows) for name, line in models.items()]
    return [*plain, *attention, *compiled]


def sampling_parts(args: PartArgs) -> list[Part]:
    """Sampling code by code, and several codes ahead from a prior that is trained on moving digits first."""
    small, batches = args.small, "--sample-batch-sizes 1 2" if args.small else "--sample-batch-sizes 1 64"
    device, steps = f"--device {args.device}", "2 --trainer.batch-size 2" if small else "600 --trainer.batch-size 32"
    digits, run = "--data {folder}/digits.zarr", "--preset speed --run {folder}/digits"
    eval_clips, size = ("--n-eval-clips 2", 32) if small else ("--n-eval-clips 32", 64)
    stages = {
        "digits": f"collect/moving_mnist.py --episodes {50 if small else 1000} --size {size} --out {{out}}",
        "digits_vqvae": f"train/vqvae.py {run} {digits} {device} --trainer.steps {steps} {eval_clips} "
        f"--model.frame-size {size} {size}",
        "digits_tokens": f"train/tokens.py {run} {digits} {device}",
        "digits_prior": f"train/prior.py {run} {device} --trainer.steps {steps} {eval_clips}",
    }
    results = ("digits.zarr", "digits/vqvae", "digits/tokens.zarr", "digits/prior")
    sample = f"{timing(args)} {TINY if small else ''} {batches}"
    ahead = f"{sample} --workloads sample --trained-prior {{folder}}/digits/prior"
    return [
        Part("sampling", f"{sample} --workloads sample masks", training_rows),
        *chain(stages, results),
        Part("sampling_ahead", ahead, training_rows, needs="digits_prior"),
    ]


def frame_parts(args: PartArgs) -> list[Part]:
    """A dream with 256 codes per frame. Its speed does not depend on its weights, so training takes two steps."""
    run, few = "--run {folder}/frames", "--trainer.steps 2 --trainer.batch-size 2 --n-eval-clips 2"
    preset = f"{run} --device {args.device} --preset health_gathering_supreme"
    stages = {
        "frames_data": "collect/gym.py --env-id CartPole-v1 --size 64 --episodes 20 --out {out}",
        "frames_vqvae": f"train/vqvae.py {preset} {few} --model.stride 1 4 4 --n-eval-frames 8",
        "frames_tokens": f"train/tokens.py {preset} --n-contexts 4",
        "frames_prior": f"train/prior.py {preset} {few} --actions --n-latent-frames 8",
        "frames_outcome": f"train/outcome.py {preset} {few} --n-dreams 0",
    }
    results = ("frames/data.zarr", "frames/vqvae", "frames/tokens.zarr", "frames/prior", "frames/outcome")
    how = "1 --precision float32 --seconds 0.1" if args.small else "1 64 --precision float32 bfloat16 --seconds 3"
    timed = f"{run} --device {args.device} --num-envs {how}"
    return [
        *chain(stages, results),
        Part("frames", f"rollout/benchmark.py {timed} --out {{out}}", dream_rows, needs="frames_outcome"),
    ]


def chain(lines: dict[str, str], results: Sequence[str]) -> list[Part]:
    """Parts that only make what the next one needs."""
    return [
        Part(name, line, result=result, needs=before)
        for (name, line), result, before in zip(lines.items(), results, ("", *lines), strict=False)
    ]
