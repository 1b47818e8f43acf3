"""All figures of a world model in one table, beside those of other runs.

    python rollout/report.py --run runs/mine --compare-runs runs/another

The figures come from the files that the scripts of evaluation wrote into <run>/evaluation (`rollout/results.py`).
A file that is missing, damaged, or made of other weights than those in the run folder is not used: the command that
writes it is printed. Bits are per frame, because models differ in how many codes a frame has. Writes
<run>/evaluation/report.md, a Markdown table. Nothing is measured here, so it takes seconds.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs import command
from configs.written import Written
from rollout.results import read_results, trained_models
from worldmodel.utils.errors import UserError
from worldmodel.utils.files import write_atomic
from worldmodel.utils.settings import Settings

Column = dict[str, str]
"""Row of the table -> its text for one run."""


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Print all figures of a world model, beside those of others."""

    run: Path = Path("runs/health_gathering_supreme")
    """Run folder."""
    compare_runs: tuple[Path, ...] = ()
    """More run folders to compare with, a column each."""


def interval(value: dict[str, float], digits: int = 2, factor: float = 1.0) -> str:
    """A mean and its interval, as the result files have them."""
    mean, low, high = (f"{factor * value[k]:.{digits}f}" for k in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def frame_rows(result: dict[str, Any]) -> Column:
    """Rows of results.json."""
    prior, steps = result["models"]["prior"], result["protocol"]["steps_ahead"]
    codes = prod(prior["latent_shape"][1:]) * prior["n_codebooks"]
    ahead = ", ".join(map(str, steps))
    means = {name: ", ".join(f"{v['mean']:.2f}" for v in values) for name, values in result["psnr"].items()}
    gain = result["difference"]["psnr"]
    return {
        "held-out episodes": f"{result['protocol']['episodes']}",
        "codes per frame": f"{codes} of {prior['n_codes']:,}",
        **{f"{name}: PSNR {ahead} steps ahead, dB": text for name, text in means.items()},
        **{f"true minus shuffled, {n} ahead, dB": interval(v) for n, v in zip(steps, gain, strict=True)},
        **{f"bits per frame, {name}": interval(v, 0, codes) for name, v in result["bits_per_dim"].items()},
    }


def control_rows(result: dict[str, Any]) -> Column:
    """Rows of controllability.json."""
    return {
        f"delta-PSNR, {result['protocol']['steps_ahead']} ahead, dB": interval(result["delta_psnr"]),
        **{f"action read from {name}, over real": interval(value) for name, value in result["ratio"].items()},
    }


def outcome_rows(result: dict[str, Any]) -> Column:
    """Rows of outcome.json."""
    end = result["end"]["predicted"]
    error = f"{end['auroc']:.3f}, {end['expected_calibration_error']:.4f}"
    steps = result["protocol"]["steps"]
    return {
        "end with the next step: AUROC, calibration error": error,
        **{f"return of {steps} steps, {k}: correlation": interval(v) for k, v in result["return"].items()},
        **{
            f"{name}, mean absolute error of the {who}": interval(value, 1)
            for name, parts in result["variables"].items()
            for who, value in parts.items()
        },
    }


def long_rows(result: dict[str, Any]) -> Column:
    """Rows of long_horizon.json at temperature 1, or at the first one that was measured."""
    windows: dict[str, Any] = {}
    for label, curves in result["windows"].items():  # the run itself comes before those of --compare-runs
        windows.setdefault(label.rpartition("temperature ")[2], curves)
    real = windows.pop("real")
    dream = windows.get("1") or next(iter(windows.values()))
    steps = result["protocol"]["steps"]
    ends = {name: f"{values[0]:.2f}, {values[-1]:.2f}" for name, values in dream.items()}
    return {
        f"{steps:,} steps, {name}: first, last window": f"{text} (real {min(real[name]):.2f} to {max(real[name]):.2f})"
        for name, text in ends.items()
    }


ROWS = {"results": frame_rows, "controllability": control_rows, "outcome": outcome_rows, "long_horizon": long_rows}


def training_rows(run: Path) -> Column:
    """How long each model was trained."""
    return {f"{part}: training steps": f"{model.steps('step'):,}" for part, model in trained_models(run).items()}


def table(columns: dict[str, Column]) -> str:
    """A Markdown table; a run that lacks a row has an empty cell."""
    rows = list(dict.fromkeys(row for column in columns.values() for row in column))
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    lines += [[row, *(column.get(row, "") for column in columns.values())] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(args: Args) -> Written:
    columns, faults = {}, list[str]()
    for run in (args.run, *args.compare_runs):
        results, unread = read_results(run)
        faults += unread
        rows = [ROWS[name](result) for name, result in results.items()]
        columns[str(run)] = {k: v for part in (training_rows(run), *rows) for k, v in part.items()}
        if not results:
            raise UserError(f"{run} has no results of its models; " + unread[0].partition("; ")[2])
    write_atomic(path := args.run / "evaluation" / "report.md", table(columns).encode())
    print("\n".join([table(columns), *faults]))
    return Written(path)


if __name__ == "__main__":
    command(main, "report")
