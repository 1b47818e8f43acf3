"""Run every measurement that needs a GPU, in a few minutes: `make gpu`, or `python train/gpu.py`.

Each part is a command with a result in <out>: steps of a dream with up to 4,096 lanes, PPO in it, the tests marked gpu,
training steps of the paper's VQ-VAE and prior, plain and compiled, dense and sparse attention over 8 x 32 x 32 codes,
and sampling. The table has clips, codes, frames or steps per second, the share of a matrix product's rate, and memory.
Predictive sampling needs a trained prior, so the last parts train a small one on moving digits. The most important
parts come first.

When `--minutes` are over, the part that runs is stopped. The next call of the same command first runs the other parts
that are left, and then this one from its start. If a part fails, the others run all the same. Parts that have a result
are not run again. The table of all results is printed and written to <out>/table.md.

    python train/gpu.py                              # at most 8 minutes
    python train/gpu.py --small --device cpu         # the same parts with small models, to try the command
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

if not __package__:  # run as a file: import from the project's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from configs import command
from configs.scripts import PACKAGE, ROOT, command_words, python_arguments
from configs.written import Written
from train.commands import has_failed, run_python
from worldmodel.training.scalars import read_scalars
from worldmodel.utils.errors import UserError
from worldmodel.utils.files import write_atomic, write_json
from worldmodel.utils.settings import AboveZero, Settings

Row = dict[str, Any]
FRAME_CODES = 16 * 16
"""Codes of a frame in the part that counts frames per second, four times as many as in the pretrained models."""
SHARE = "share of a matrix product's rate"
"""A column: operations per second, divided by those of a 2048 x 2048 product in the same process."""
LARGE = "--prior.latent-shape 8 32 32 --prior.d-model 512 --prior.n-layers 16 --prior.d-ff 2048"
LATE = "out of time"
"""Takes the place of what made a part if its time was over."""
TINY = (
    "--vqvae.n-frames 4 --vqvae.frame-size 16 16 --vqvae.stride 2 4 4 --vqvae.hidden-channels 16 "
    "--vqvae.residual-channels 16 --vqvae.n-res-blocks 1 --vqvae.n-codes 16 --vqvae.embedding-dim 8 "
    "--prior.latent-shape 2 4 4 --prior.n-codes 16 --prior.embedding-dim 8 --prior.d-model 32 --prior.n-layers 2 "
    "--prior.d-ff 64"
)


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Run every measurement that needs a GPU."""

    out: Path = Path("runs/gpu")
    """Folder for the results."""
    minutes: AboveZero = 8.0
    """Time for all parts of this call."""
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
            "result": f"{row['rate']:,.2f} {'clips' if row['what'].startswith('vqvae') else 'codes'}/s",
            SHARE: f"{row['matmul_share']:.0%}",
            "memory": f"{row['peak_memory'] / 2**30:.1f} GiB" if "peak_memory" in row else "",
        }
        for row in found["rows"]
    ]
    sizes = {what: f"{size / 2**20:,.1f} MiB" for what, size in found["masks"].items()}
    return rows + [{"what": what, "memory": size} for what, size in sizes.items()]


def frame_rows(path: Path) -> list[Row]:
    """Rows of train/benchmark.py for sampling, in frames per second.

    They leave out the share of a matrix product's rate, which assumes one pass for each code.
    """
    return [
        {
            "what": f"sampling frames of {FRAME_CODES} codes, batch {row['batch']}, {row['precision']}",
            "result": f"{row['rate'] / FRAME_CODES:,.1f} frames/s",
        }
        for row in json.loads(path.read_text())["rows"]
    ]


def dream_rows(path: Path) -> list[Row]:
    """Rows of rollout/benchmark.py."""
    return [
        {
            "what": f"dream, {row['lanes']:,} lanes, {row['precision']}",
            "result": f"{row['steps_per_second']:,.0f} steps/s",
            SHARE: f"{row['matmul_share']:.0%}",
        }
        for row in json.loads(path.read_text())["rows"]
    ]


def ppo_rows(path: Path) -> list[Row]:
    """The speed that Stable-Baselines3 has logged last."""
    speed = read_scalars(path / "log_1", "time/fps")[-1].value
    return [{"what": "PPO in the dream", "result": f"{speed:,.0f} steps/s"}]


def parts(args: Args) -> list[Part]:
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
        *sampling_parts(args),
    ]


def timing(args: Args) -> str:
    """The command of train/benchmark.py with the flags that all its parts have in common."""
    precision, seconds = ("float32", 0.05) if args.small else ("bfloat16", 2)
    times = f"--precision {precision} --rounds 1 --seconds {seconds}"
    return f"train/benchmark.py --device {args.device} {times} --out {{out}}"


def timing_parts(args: Args) -> list[Part]:
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


def sampling_parts(args: Args) -> list[Part]:
    """Sampling code by code; frames of 256 codes, from the prior alone and without a CUDA graph; then several codes
    ahead, from a prior that is trained on moving digits first."""
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
    made = [
        Part(name, line, result=result, needs=before)
        for (name, line), result, before in zip(stages.items(), results, ("", *stages), strict=False)
    ]
    sample = f"{timing(args)} {TINY if small else ''} {batches}"
    ahead = f"{sample} --workloads sample --trained-prior {{folder}}/digits/prior"
    frames = (
        f"{timing(args)} --workloads sample --sample-batch-sizes 1 --prior.latent-shape {2 if small else 16} 16 16 "
        "--prior.mode stream --prior.decoding-order block --prior.patch-size 2 --prior.n-kv-heads 1"
    )
    return [
        Part("sampling", f"{sample} --workloads sample masks", training_rows),
        Part("sampling_frames", frames, frame_rows),
        *made,
        Part("sampling_ahead", ahead, training_rows, needs="digits_prior"),
    ]


def result_path(args: Args, part: Part) -> Path:
    """Where a part's result is."""
    return args.out / (part.result or f"{part.name}.json")


def run_part(args: Args, part: Part, seconds: float) -> Literal["done", "failed", "out of time"]:
    """Run a part, at most this long; returns how it ended."""
    out = result_path(args, part)
    line = [word.format(out=out, folder=args.out) for word in shlex.split(part.line)]
    is_script = line[0].endswith(".py")
    words = [*command_words(line[0]), *line[1:]] if is_script else ["python", *line]
    print(f"{part.name}: {shlex.join(words)}", flush=True)
    if out.is_dir():  # left by other settings, or by a run that did not finish
        shutil.rmtree(out)
    out.unlink(missing_ok=True)
    try:
        with open(out, "w") if part.name == "tests" else nullcontext() as output:
            arguments = [*python_arguments(line[0]), *line[1:]] if is_script else line
            status = run_python(arguments, seconds, output, ROOT if part.name == "tests" else None, is_script)
    except subprocess.TimeoutExpired:
        print(f"{part.name}: stopped, out of time; run the same command again")
        return "out of time"
    if has_failed(status):
        print(f"{part.name} failed\n", file=sys.stderr, flush=True)
        return "failed"
    return "done"


def late_last(every: list[Part], done: dict[str, str]) -> list[Part]:
    """The parts in their order, but at the end those that ran out of time before, and those that need them.

    Otherwise a part that takes too long would keep all after it from ever running.
    """
    late: set[str] = set()
    for part in every:
        if done.get(part.name) == LATE or part.needs in late:
            late.add(part.name)
    return sorted(every, key=lambda part: part.name in late)


def table(rows: list[Row]) -> str:
    """Rows as a table in Markdown."""
    names = ("what", "result", SHARE, "memory")
    lines = [names, ["---"] * len(names), *([row.get(name, "") for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main(args: Args) -> Written:
    end, state = time.monotonic() + 60 * args.minutes, args.out / "done.json"
    args = replace(args, out=args.out.absolute())  # the tests run in the project's root
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        done: dict[str, str] = dict(json.loads(state.read_text())) if state.exists() else {}
    except (ValueError, TypeError):
        raise UserError(f"{state} is damaged; delete it, and every part runs again") from None
    every, rows = parts(args), dict[str, list[Row]]()
    making = {"": args.device}  # what made each part: its line, after those of the parts that it needs
    for part in late_last(every, done):
        left, ended = end - time.monotonic(), "not run"
        making[part.name] = made = f"{making[part.needs]}: {part.line}"
        is_ready = not part.needs or done.get(part.needs, LATE) != LATE
        if done.get(part.name) != made and left > 0 and is_ready:
            done.pop(part.name, None)  # its old result is about to go
            write_json(state, done)
            ended = run_part(args, part, left)
            if ended != "failed":
                done[part.name] = made if ended == "done" else LATE
                write_json(state, done)
        is_done = done.get(part.name) == made
        rows[part.name] = part.rows(result_path(args, part)) if is_done else [{"what": part.name, "result": ended}]
    text = f"{machine(args.device)}\n\n{table([row for part in every for row in rows[part.name]])}"
    print(text)
    write_atomic(args.out / "table.md", text.encode())
    if failed := [name for name, found in rows.items() if found and found[0].get("result") == "failed"]:
        raise UserError(
            f"{', '.join(failed)} failed; the errors are above, or in {args.out / 'tests.txt'} for the tests. The "
            f"other results are in {args.out / 'table.md'}. Fix the errors, and run the same command again"
        )
    return Written(args.out / "table.md")


def machine(device: str) -> str:
    """The device and the version of PyTorch."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else f"{torch.get_num_threads()} threads"
    return f"{name}, PyTorch {torch.__version__}"


if __name__ == "__main__":
    command(main, "gpu")
