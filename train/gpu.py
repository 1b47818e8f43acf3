"""Run every measurement that needs a GPU, in a few minutes: `make gpu`, or `python train/gpu.py`.

Each part is a command with a result in <out>: steps of a dream with up to 4,096 lanes, PPO in it, the tests marked gpu,
training steps of the paper's VQ-VAE and prior, plain and compiled, dense and sparse attention over 8 x 32 x 32 codes, a
dream with 256 codes per frame, and sampling. The table has clips, codes or steps per second, the share of a matrix
product's rate, and memory. Predictive sampling needs a trained prior, so the last parts train a small one on moving
digits. The most important parts come first.

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
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

if not __package__:  # run as a file: import from the project's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from configs import command
from configs.scripts import ROOT, command_words, python_arguments
from configs.written import Written
from train.commands import has_failed, run_python
from train.gpu_parts import SHARE, Part, PartArgs, Row, list_parts
from worldmodel.utils.errors import UserError
from worldmodel.utils.files import write_atomic, write_json
from worldmodel.utils.settings import AboveZero

LATE: Final = "out of time"
"""Takes the place of what made a part if its time was over."""


@dataclass(frozen=True, kw_only=True)
class Args(PartArgs):
    """Run every measurement that needs a GPU."""

    out: Path = Path("runs/gpu")
    """Folder for the results."""
    minutes: AboveZero = 8.0
    """Time for all parts of this call."""


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
        print(f"{part.name}: stopped, {LATE}; run the same command again")
        return LATE
    if has_failed(status):
        print(f"{part.name} failed\n", file=sys.stderr, flush=True)
        return "failed"
    return "done"


def late_last(every: list[Part], done: dict[str, str]) -> list[Part]:
    """The parts in their order. Those that ran out of time come last, and after them the parts that need them.

    Otherwise a part that takes too long would keep all after it from ever running. Several such parts take turns.
    """
    late = [name for name, made in done.items() if made == LATE]
    for part in every:
        if part.needs in late and part.name not in late:
            late.append(part.name)
    return sorted(every, key=lambda part: late.index(part.name) if part.name in late else -1)


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
    every, rows = list_parts(args), dict[str, list[Row]]()
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
