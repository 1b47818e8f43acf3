"""Trainings on several ranks that are disturbed, and compared bit for bit with trainings that were not.

An attempt trains a tiny model on two or four ranks and disturbs one of them, any one, once:

    kill      SIGKILL when it draws the batch of a random step; torchrun's agent starts all ranks again
    time      SIGKILL at a random time; torchrun's agent starts all ranks again
    stop      SIGTERM at a random step; all ranks stop, and the same command goes on
    error     an error at a random step; one rank tells it, and the same command goes on
    differ    a setting, the data or the folder differ on it; one rank tells it, and nothing is written

The first twenty attempts are kills at a random step. Then all five ways take turns.
Ranks are forked from a process that has imported everything.
"""

from __future__ import annotations

import hashlib
import os
import signal
import tempfile
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from tests.campaign.harness import Tally, Verdict, attempts
from tests.ranks import on_ranks, restarting
from tests.worldmodel.training.split_fits import CLIPS, KINDS, Fault, train
from worldmodel.utils import tensor_file
from worldmodel.utils.checkpoint import CHECKPOINT_FILE, checkpoints
from worldmodel.utils.errors import UserError
from worldmodel.utils.ranks import rank

MODES = ("kill", "time", "stop", "error", "differ")
STEPS = 12
TOLD = "the disk is on fire; put it out"
DIFFERENT: tuple[dict[str, Any], ...] = (
    {"learning_rate": 0.5},
    {"save_every": 5},
    {"seed": 1},
    {"accumulate": 2},
    {"data": {"frames": 1}},
    {"compile": True},
)


VERDICT = "the loss still falls"
"""Part of what a training may say at its end."""


def short(kind: str, out: Path, fault: Fault | None = None, **settings: Any) -> None:
    train(kind, out, fault, **({"steps": STEPS, "save_every": 3, "batch_size": CLIPS} | settings))


def killed(kind: str, out: Path, who: int, seconds: float, mark: Path) -> None:
    """Train, and die after some seconds if it is the first time."""

    def die() -> None:
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)

    timer = threading.Timer(seconds, die)
    timer.daemon = True
    if rank() == who and not mark.exists():
        timer.start()
    short(kind, out)
    timer.cancel()


def differing(kind: str, out: Path, who: int, settings: dict[str, Any]) -> None:
    short(kind, out, **(settings if rank() == who else {}))


def end(out: Path) -> str:
    """A digest of what a training left, all of which is whole."""
    for file in checkpoints(out):
        tensor_file.read(file, "it is damaged")
    parts = [path for path in out.iterdir() if path.suffix == ".part"]
    data = (out / CHECKPOINT_FILE).read_bytes() + (out / "config.json").read_bytes() if not parts else b""
    return hashlib.sha256(data).hexdigest()


def fault(found: list[tuple[int | None, str]], status: int, sentence: str) -> tuple[Verdict, str] | None:
    """What is wrong with how ranks ended that should all have a status, and one of them a sentence."""
    said = "".join(text for _, text in found)
    if any(code is None for code, _ in found):
        return "hang", said
    if "Traceback (most recent call last)" in said:
        return "traceback", said
    lines = [line for line in said.splitlines() if line and "%|" not in line and VERDICT not in line]
    right = len(lines) == (sentence != "") and all(sentence in line for line in lines)
    return None if right and all(code == status for code, _ in found) else ("silent", f"{found}")


class Bench:
    """Folders for attempts, and the ends of trainings that were not disturbed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ends, self.tried = folder, dict[tuple[str, int], str](), 0

    def new(self) -> Path:
        self.tried += 1
        return self.folder / f"{self.tried}"

    def undisturbed(self, kind: str, n: int) -> str:
        if (kind, n) not in self.ends:
            place = self.new()
            if wrong := fault(on_ranks(place, n, short, kind, place / "run"), 0, ""):
                raise AssertionError(wrong)
            self.ends[kind, n] = end(place / "run")
        return self.ends[kind, n]

    def attempt(self, mode: str, kind: str, rng: np.random.Generator) -> tuple[Verdict, str]:
        n = int(rng.choice([2, 4]))
        who, step, place = int(rng.integers(n)), int(rng.integers(1, STEPS)), self.new()
        out, mark = place / "run", place / "mark"
        wanted = self.undisturbed(kind, n)
        try:
            if mode == "kill":
                restarting(place, n, 1, short, kind, out, Fault(who, step, signal.SIGKILL, mark))
            elif mode == "time":
                restarting(place, n, 1, killed, kind, out, who, rng.uniform(0, 1.0), mark)
            elif mode == "differ":
                settings = DIFFERENT[int(rng.integers(len(DIFFERENT)))]
                found = on_ranks(place, n, differing, kind, out, max(who, 1), settings)
                wrong = fault(found, 2, f"rank {max(who, 1)} has ")
                return wrong or (("silent", "something was written") if checkpoints(out) else ("sentence", ""))
            else:
                what = signal.SIGTERM if mode == "stop" else UserError(TOLD)
                work = partial(short, kind, out, Fault(who, step, what, mark))
                status, sentence = (130, "interrupted") if mode == "stop" else (2, f"error: {TOLD}")
                if wrong := fault(on_ranks(place, n, work), status, sentence):
                    return wrong
                if wrong := fault(on_ranks(place / "again", n, work), 0, ""):
                    return wrong
        except TimeoutError as error:
            return "hang", str(error)
        except ChildFailedError as error:
            return "traceback", f"{error} {(place / 'ranks.txt').read_text()}"
        return ("right", "") if end(out) == wanted else ("silent", "another end")


def run(seconds: float, seed: int, kinds: tuple[str, ...] = tuple(KINDS), kills: int = 20) -> Tally:
    tally = Tally("ranks")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for number in attempts(seconds, least=kills + len(MODES)):
            mode = "kill" if number < kills else MODES[number % len(MODES)]
            rng = np.random.default_rng([seed, number])
            kind = kinds[int(rng.integers(len(kinds)))]
            verdict, detail = bench.attempt(mode, kind, rng)
            tally.add(verdict, f"seed {seed}, number {number}: {mode}: {kind}", detail)
    return tally
