"""Run the campaign and print its table: `python -m tests.campaign --minutes 20 --seed 0`, or `make campaign`."""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import sys
from pathlib import Path

import torch

from tests.campaign.harness import table

AREAS = {
    "kills": 5.0,
    "ranks": 3.0,
    "stores": 2.0,
    "checkpoints": 2.0,
    "inputs": 3.0,
    "command_lines": 4.0,
    "environment": 1.0,
    "page": 2.0,
}
"""Each area's module, and its share of the time."""


PAGE = """# Fault campaign

`make campaign` damages stores, caches and checkpoints, kills every stage of a training, and feeds the readers, the
command lines, the environments and the page with what they should refuse. Each attempt is drawn from a seed and a
number, so it can be made again.

An attempt is good if its result is **right**, or if it ends in one **sentence** that names the cause and the cure. It
is bad if it ends in a **traceback**, if it **hangs**, or if it is **silent** about a wrong result.

At least twenty of the attempts on ranks kill a rank at a random step of a training. The training goes on from its last
checkpoint, and has to end bit for bit like one that was not killed.

{table}

*{date}, seed {seed}, {minutes:g} minutes, {machine}.*
"""


def page(table: str, minutes: float, seed: int) -> str:
    """The table with its date and machine."""
    machine = f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, PyTorch {torch.__version__}"
    return PAGE.format(table=table, minutes=minutes, seed=seed, date=datetime.date.today(), machine=machine)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=19.0, help="time for all areas together")
    parser.add_argument("--seed", type=int, default=0, help="other attempts")
    parser.add_argument("--areas", nargs="+", default=list(AREAS), choices=list(AREAS), help="only these")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    seconds = 60 * args.minutes / sum(AREAS[area] for area in args.areas)
    tallies = []
    for area in args.areas:
        print(f"{area} ...", file=sys.stderr, flush=True)
        tallies.append(importlib.import_module(f"tests.campaign.{area}").run(AREAS[area] * seconds, args.seed))
        print("\n".join(tallies[-1].faults), file=sys.stderr)
    print(table(tallies))
    if args.out:
        args.out.write_text(page(table(tallies), args.minutes, args.seed))
    return 0 if all(tally.clean for tally in tallies) else 1


if __name__ == "__main__":
    sys.exit(main())
