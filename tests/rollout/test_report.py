"""The table of all figures: what it takes from the files, and what it refuses to take."""

from __future__ import annotations

import io
import re
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from rollout import controllability, evaluate, evaluate_outcome, long_horizon, report
from rollout.results import read_results
from worldmodel.utils.errors import UserError


@pytest.fixture(scope="module")
def run(toy_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "run"
    shutil.copytree(toy_run, folder)
    short = {"run": folder, "context_frames": 4}
    with redirect_stdout(io.StringIO()) as said:
        evaluate.main(evaluate.Args(**short, n_clips=4, steps_ahead=(1, 5), n_dreams=1))
        controllability.main(controllability.Args(**short, n_clips=4, steps_ahead=2, steps=4, train_steps=4))
        evaluate_outcome.main(
            evaluate_outcome.Args(**short, n_clips=4, steps=4, n_dreams=1, n_negatives=20, n_particles=2)
        )
    assert (
        len(re.findall(rf"^{folder}: there (?:is|are) \d held-out episodes?, so", said.getvalue(), re.MULTILINE)) == 3
    )
    long_horizon.main(long_horizon.Args(run=folder, steps=40, window=10, num_envs=4, temperature=(0.5, 1.0)))
    return folder


def test_a_run_and_another_have_a_column_each(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    (other / "evaluation" / "controllability.json").unlink()
    capsys.readouterr()
    report.main(report.Args(run=run, compare_runs=(other,)))
    text = (run / "evaluation" / "report.md").read_text()
    lines = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in text.splitlines()[1:]]
    rows = {row: cells for row, *cells in lines}
    assert {len(cells) for cells in rows.values()} == {2}
    psnr = rows["true actions: PSNR 1, 5 steps ahead, dB"]
    assert psnr[0] == psnr[1]
    assert len(psnr[0].split(", ")) == 2
    first, second = rows["delta-PSNR, 2 ahead, dB"]
    assert "[" in first
    assert second == ""
    printed = capsys.readouterr().out
    assert printed.startswith(text)
    (missing,) = printed[len(text) :].split("\n")[1:-1]
    assert missing.startswith(f"{other}/evaluation/controllability.json: not there; run ")
    assert missing.endswith(f"rollout/controllability.py --run {other}")


def test_figures_are_those_of_the_files() -> None:
    value = {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 3}
    result = {
        "models": {"prior": {"latent_shape": [4, 2, 3], "n_codebooks": 2, "n_codes": 1024}},
        "protocol": {"steps_ahead": [1], "episodes": 7},
        "psnr": {"true actions": [value]},
        "difference": {"psnr": [value]},
        "bits_per_dim": {"true actions": value},
    }
    assert report.frame_rows(result) == {
        "held-out episodes": "7",
        "codes per frame": "12 of 1,024",
        "true actions: PSNR 1 steps ahead, dB": "0.50",
        "true minus shuffled, 1 ahead, dB": "0.50 [0.25, 0.75]",
        "bits per frame, true actions": "6 [3, 9]",
    }
    windows = {"real": {"bits": [2.0, 1.0]}, "run, temperature 0.5": {"bits": [0.0, 0.0]}}
    windows["run, temperature 1"] = {"bits": [3.0, 9.0, 4.0]}
    windows["another run, temperature 1"] = {"bits": [8.0, 8.0]}
    long = report.long_rows({"windows": windows, "protocol": {"steps": 1000}})
    assert long == {"1,000 steps, bits: first, last window": "3.00, 4.00 (real 1.00 to 2.00)"}


def test_results_of_other_weights_are_not_used(run: Path, tmp_path: Path, toy_run: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(run, changed)
    shutil.rmtree(changed / "prior")
    shutil.copytree(changed / "vqvae", changed / "prior")
    results, missing = read_results(changed)
    assert list(results) == ["outcome"]
    assert sum("made of other weights; run " in line for line in missing) == 3
    with pytest.raises(UserError, match=r"has no results of its models; run .*evaluate"):
        report.main(report.Args(run=toy_run))


def test_a_damaged_file_is_not_used_and_its_command_is_named(run: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn"
    shutil.copytree(run, torn)
    for name, text in {
        "results": '{"protocol": {',
        "outcome": "[]",
        "long_horizon": "{}",
    }.items():
        (torn / "evaluation" / f"{name}.json").write_text(text)
    found, faults = read_results(torn)
    assert list(found) == ["controllability"]
    assert [fault.split(": ")[1].partition(";")[0] for fault in faults] == ["damaged"] * 3
