"""Stages that are killed, run again, and compared bit for bit with stages that were not.

An attempt begins a stage in a folder of its own and disturbs it once or twice: by SIGKILL or SIGTERM at a random
time, by SIGKILL just before its n-th call that changes a file there (open for writing, fsync, rename, remove, ...), by
a limit on the size of its files, as a full disk would, or by a second process that begins the same. Then the same
command runs to its end, and that has to be the end of the undisturbed stage, with whole checkpoints and nothing half
written.

What PPO plays after a cut depends on where the cut was, so the policy's end is compared with that of a run which was
asked to stop there and then goes on (train/ppo.py).

Stages are forked from a process that has imported everything: one begins in a tenth of a second.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partialmethod
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from collect.record import record_episodes
from tests.campaign.harness import Tally, Verdict, attempts
from tests.campaign.runs import make_run
from tests.conftest import TOY, fill, stages, toy_episode
from tests.ranks import CONTEXT
from train import outcome, prior, pusher, tokens, vqvae
from worldmodel.data.store import Store
from worldmodel.data.writer import StoreWriter
from worldmodel.generation.context import CONTEXTS_FILE
from worldmodel.training import trainer
from worldmodel.utils import tensor_file
from worldmodel.utils.checkpoint import CHECKPOINT_FILE, checkpoints, read_checkpoint, restore_newest, save_checkpoint
from worldmodel.utils.errors import UserError
from worldmodel.utils.lock import folder_lock

EPISODES, STEPS, LIMIT = 80, 100, 120.0
"""Of a store, so that a commit comes before the last one; of the policy; and seconds after which a stage hangs."""
MODES = ("call", "SIGKILL", "SIGTERM", "second", "full")


class Toys:
    """In the place of the processes that play."""

    def map(self, groups: Iterator[int]) -> Iterable[list[dict[str, np.ndarray]]]:
        return ([toy_episode(np.random.default_rng([group, lane])) for lane in range(4)] for group in groups)


def collect(run: Path) -> None:
    with StoreWriter(run / "data.zarr", TOY, {}) as writer:
        record_episodes(Toys(), writer, 4, 2 * EPISODES, 0)  # type: ignore[arg-type]


def commit(run: Path) -> None:
    """Nothing but checkpoints: the cheapest stage, killed most often."""
    folder, model = run / "model", torch.nn.Linear(8, 8)
    with folder_lock(folder):
        if done := len(checkpoints(folder)) and read_checkpoint(folder).progress["step"]:
            restore_newest(folder)
        for step in range(done + 1, 6):
            torch.nn.init.constant_(model.weight, step)
            torch.nn.init.zeros_(model.bias)
            save_checkpoint(folder, model, {}, {"step": step}, keep=3)


def short(args: Any) -> Any:
    few = {"steps": 8, "batch_size": 2, "save_every": 2, "eval_every": 8, "log_every": 4}
    return replace(args, trainer=replace(args.trainer, **few), n_eval_clips=2)


def train_vqvae(run: Path) -> None:
    vqvae.main(short(stages(run)[0]))


def encode(run: Path) -> None:
    tokens.main(stages(run)[1])


def train_prior(run: Path) -> None:
    prior.main(short(stages(run)[2]))


def train_outcome(run: Path) -> None:
    outcome.main(short(stages(run)[3]))


def train_policy(run: Path, until: int = 0) -> None:
    few: dict[str, Any] = {"num_envs": 2, "n_steps": 10, "hidden_dim": 4, "n_epochs": 1, "save_every": 1}
    pusher.main(pusher.Args(out=run / "policy", total_timesteps=STEPS, stop_at_step=until, **few))


@dataclass(frozen=True)
class Stage:
    """What a stage does in a run folder, what it finds there, and what it leaves."""

    work: Callable[..., None]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


STAGES = {
    "commit": Stage(commit, (), ("model",)),
    "collect": Stage(collect, (), ("data.zarr",)),
    "vqvae": Stage(train_vqvae, ("data.zarr",), ("vqvae",)),
    "tokens": Stage(encode, ("data.zarr", "vqvae"), ("tokens.zarr", CONTEXTS_FILE)),
    "prior": Stage(train_prior, ("tokens.zarr", "vqvae"), ("prior",)),
    "outcome": Stage(train_outcome, ("tokens.zarr", "vqvae"), ("outcome",)),
    "policy": Stage(train_policy, (), ("policy",)),
}


def act(work: Callable[..., None], run: Path, log: Path, last: int = 0, size: int = 0, **how: int) -> None:
    """In a process of its own: work as its script would do it, with what it says in a file."""
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    tqdm.set_lock(RLock())  # its own is shared by processes, and outlives those that are killed
    tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)  # the file has room for sentences
    trainer.peak_flops = lambda device, precision: 1e12  # measuring it takes a second
    calls = count_calls(str(run), last)
    if size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        work(run, **how)
        log.with_suffix(".calls").write_text(str(next(calls) - 1))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def count_calls(run: str, last: int) -> Iterator[int]:
    """Count the calls that change a file of a run, but for its log; die before the one of that number."""
    calls, sync = itertools.count(1), os.fsync

    def call() -> None:
        if next(calls) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
            inside = str(args[0]).startswith(run) and "/log" not in str(args[0])
            if inside and (event != "open" or args[2] & (os.O_WRONLY | os.O_RDWR)):
                call()

    def fsync(handle: int) -> None:
        call()
        sync(handle)

    sys.addaudithook(hook)
    os.fsync = fsync
    return calls


def begin(name: str, run: Path, log: Path, **how: int) -> BaseProcess:
    process = CONTEXT.Process(target=act, args=(STAGES[name].work, run, log), kwargs=how)
    process.start()
    return process


def fault(process: BaseProcess, log: Path, allowed: tuple[int, ...]) -> tuple[Verdict, str] | None:
    """Wait for the end of a process; what is wrong with it, if anything is."""
    process.join(LIMIT)
    if process.exitcode is None:
        process.kill()
        return "hang", f"no end within {LIMIT} s"
    said = log.read_text(errors="replace") if log.exists() else ""
    if "Traceback (most recent call last)" in said:
        return "traceback", said
    if process.exitcode not in allowed:
        return "silent", f"status {process.exitcode}: {said}"
    return None


def end(run: Path, name: str) -> str:
    """A digest of what a stage left; empty, or a word, if some of that is not whole."""
    total = hashlib.sha256()
    for path in (run / output for output in STAGES[name].outputs):
        if path.suffix == ".zarr":
            store = Store(path)
            total.update((path / "zarr.json").read_bytes() + store.episode_ends.tobytes())
            for array in store.array_names:
                total.update(store.read(array, 0, store.n_rows).tobytes())
        elif path.is_dir():
            for file in checkpoints(path):
                tensor_file.read(file, "it is damaged")
            total.update((path / CHECKPOINT_FILE).read_bytes() + (path / "config.json").read_bytes())
        else:
            total.update(path.read_bytes())
    left = [path.name for path in run.rglob("*.part")]
    return f"left: {left}" if left else total.hexdigest()


class Bench:
    """Folders for the stages, and the ends that they should have."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.inputs, self.number = folder, folder / "inputs", itertools.count()
        self.ends: dict[tuple[str, int], tuple[str, float, int]] = {}
        warm = CONTEXT.Process(target=int)  # or the first stage would be timed with all imports
        warm.start()
        warm.join()

    def make_inputs(self) -> None:
        """What stages find in their run folders, made by the first that needs any of it."""
        make_run(self.inputs, 0)
        fill(self.inputs / "data.zarr", EPISODES)
        encode(self.inputs)

    def fresh(self, name: str) -> tuple[Path, Path]:
        """A run folder that has what a stage needs, and a file for what it says."""
        if STAGES[name].inputs and not self.inputs.exists():
            self.make_inputs()
        run = self.folder / f"{name}{next(self.number)}"
        run.mkdir()
        for needed in STAGES[name].inputs:
            (run / needed).symlink_to(self.inputs / needed)
        return run, run.with_suffix(".log")

    def undisturbed(self, name: str, cut: int = 0) -> tuple[str, float, int]:
        """The end of a stage, the seconds that it takes, and its calls; for a policy, of one that stops and goes on."""
        if (name, cut) not in self.ends:
            (run, log), start = self.fresh(name), time.monotonic()
            for how in ({"until": cut}, {}) if cut else ({},):
                if wrong := fault(begin(name, run, log, **how), log, (0,)):
                    raise RuntimeError(f"{name} fails by itself: {wrong}")
            seconds = time.monotonic() - start
            self.ends[name, cut] = end(run, name), seconds, int(log.with_suffix(".calls").read_text())
        return self.ends[name, cut]

    def attempt(self, name: str, mode: str, rng: np.random.Generator) -> tuple[Verdict, str]:
        _, seconds, calls = self.undisturbed(name)
        run, log = self.fresh(name)
        for _ in range(1 if name == "policy" else int(rng.integers(1, 3))):
            if wrong := disturb(name, mode, run, log, rng, seconds, calls):
                return wrong
        cut = (
            read_checkpoint(run / "policy").progress["steps"] if name == "policy" and checkpoints(run / "policy") else 0
        )
        if wrong := fault(begin(name, run, log), log, (0,)):
            return wrong
        found, right = end(run, name), self.undisturbed(name, cut if cut < STEPS else 0)[0]
        return ("right", "") if found == right else ("silent", f"{found} after a cut at {cut}")


def disturb(
    name: str, mode: str, run: Path, log: Path, rng: np.random.Generator, seconds: float, calls: int
) -> tuple[Verdict, str] | None:
    """Begin a stage and see that it comes to no good end; what is wrong with how it ends, if anything is."""
    if mode == "call":
        return fault(begin(name, run, log, last=int(rng.integers(1, calls + 1))), log, (0, -signal.SIGKILL))
    if mode == "full":
        return fault(begin(name, run, log, size=int(2 ** rng.uniform(12, 20))), log, (0, 2))
    first = begin(name, run, log)
    time.sleep(rng.uniform(0, seconds))
    if mode == "second":
        return fault(begin(name, run, log), log, (0, 2)) or fault(first, log, (0, 2))
    number = getattr(signal, mode)
    if first.is_alive() and first.pid:
        os.kill(first.pid, number)
    return fault(first, log, (0, 130, -number))


def run(seconds: float, seed: int, names: Iterable[str] = tuple(STAGES)) -> Tally:
    often = [("call", "commit")] * 3  # a tenth of a second each
    tally, every = Tally("kills"), [each for pair in itertools.product(MODES, names) for each in (pair, *often)]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for number in attempts(seconds, least=4 * len(MODES)):
            mode, name = every[number % len(every)]
            verdict, detail = bench.attempt(name, mode, np.random.default_rng([seed, number]))
            tally.add(verdict, f"seed {seed}, number {number}: {mode}: {name}", detail)
    return tally
