"""Scores of train/loop.py against engine steps: TensorBoard, a picture, JSON and a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from worldmodel.training.logging import open_log
from worldmodel.utils.files import write_json

Curves = dict[str, list[tuple[int, dict[str, Any]]]]
"""Label of a curve -> pairs of engine steps and score."""


def read_score(folder: Path) -> dict[str, Any]:
    """Tics that the policy in a folder survives: "mean" and "interval95", and the mean of random play, "random"."""
    scores = json.loads((folder / "scores.json").read_text())["scores"]
    random = scores.pop("random")
    (policy,) = scores.values()
    return policy["tics"] | {"random": random["tics"]["mean"]}


def draw(path: Path, curves: Curves) -> None:
    """Draw scores against engine steps."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for label, points in curves.items():
        frames, means = [n for n, _ in points], [score["mean"] for _, score in points]
        bars = [[abs(score["interval95"][side] - score["mean"]) for _, score in points] for side in (0, 1)]
        axes.errorbar(frames, means, yerr=bars, marker="o", capsize=3, label=label)
    first = next(iter(curves.values()))[0][1]
    axes.axhline(first["random"], color="gray", linestyle=":", label="random actions")
    axes.set(xlabel="engine steps", ylabel="tics survived, with 95% intervals", ylim=0)
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def report(run: Path, curves: Curves) -> None:
    """Rewrite score.json, score.png and the TensorBoard log with all scores so far, and print the last one."""
    for old in (run / "log").glob("*/events.*"):
        old.unlink()
    for label, points in curves.items():
        with open_log(run / "log" / label.replace(" ", "_")) as writer:
            for frames, score in points:
                writer.add_scalar("score/tics", score["mean"], frames)
    draw(run / "score.png", curves)
    write_json(run / "score.json", {label: [{"steps": n} | s for n, s in points] for label, points in curves.items()})
    label, (frames, score) = next((label, points[-1]) for label, points in reversed(curves.items()))
    low, high = score["interval95"]
    print(f"{label}, {frames:,} engine steps: {score['mean']:.0f} tics [{low:.0f}, {high:.0f}]", flush=True)
