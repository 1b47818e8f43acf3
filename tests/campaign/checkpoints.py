"""Damaged and exchanged files of a run: each is noticed, or what came before it is used and a sentence says so.

An attempt damages one file of a small run (see `runs`), opens what it belongs to, and puts the file back; in half of
the attempts an older checkpoint lies beside it. Right is what the undamaged run gives; where the older checkpoint is
used, what that gives, if a sentence on standard error says so; and for a policy of another run, what that gives, since
no other file depends on it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from envs.policies import load_policy
from tests.campaign.damage import DAMAGES
from tests.campaign.harness import Tally, attempts, judge_call
from tests.campaign.runs import make_run
from tests.conftest import TOY
from worldmodel.generation.context import CONTEXTS_FILE, Context
from worldmodel.generation.dream import Dream
from worldmodel.utils import checkpoint
from worldmodel.utils.checkpoint import CHECKPOINT_FILE

OLDER = "previous-1.safetensors"
PARTS = ("vqvae", "prior", "outcome", "policy")
FILES = (*(f"{part}/{CHECKPOINT_FILE}" for part in PARTS), CONTEXTS_FILE)
KINDS = (*DAMAGES, "another part's", "another run's", "missing", "config.json")
WORLD = replace(TOY, frame_shape=(36, 36, 3))


def opened(run: Path, name: str) -> str:
    """A digest of all that opening a file, and what it belongs to, gives."""
    total = hashlib.sha256()
    if name.startswith("policy"):
        tensors = load_policy(run / "policy", WORLD).state_dict()
    else:
        dream, contexts = Dream.load(run), Context.load(run)
        total.update(repr((dream.vqvae.config, dream.prior.config, dream.outcome.config, dream.env_spec)).encode())
        parts = {part: getattr(dream, part).state_dict() for part in ("vqvae", "prior", "outcome")}
        tensors = {f"{part}.{key}": value for part, state in parts.items() for key, value in state.items()}
        tensors |= contexts.tensors()
    for key, value in tensors.items():
        total.update(key.encode() + value.contiguous().numpy().tobytes())
    return total.hexdigest()


def listened(run: Path, name: str) -> tuple[str, str]:
    """The same, and what is said on standard error."""
    checkpoint._warn_once.cache_clear()
    with contextlib.redirect_stderr(io.StringIO()) as said:
        return opened(run, name), said.getvalue()


class Target:
    """A file of a run, and what opening it may give."""

    def __init__(self, run: Path, other: Path, name: str) -> None:
        self.run, self.other, self.name = run, other, name
        self.path, self.older = run / name, (run / name).with_name(OLDER)
        self.bytes, self.right = self.path.read_bytes(), opened(run, name)
        self.older_bytes = self.older.read_bytes() if self.older.exists() else b""
        self.before = ""
        if self.older_bytes and not name.startswith("vqvae"):  # of whose newest weights the others were made
            self.path.write_bytes(self.older_bytes)
            self.before = opened(run, name)
            self.path.write_bytes(self.bytes)

    def damage(self, kind: str, rng: np.random.Generator) -> None:
        if kind == "missing":
            self.path.unlink()
        elif kind == "config.json":
            config = self.path.with_name("config.json")
            config.write_bytes(DAMAGES["flips"](rng, config.read_bytes()))
        elif kind == "another run's":
            self.path.write_bytes((self.other / self.name).read_bytes())
        elif kind == "another part's":
            name = str(rng.choice([name for name in FILES if name != self.name]))
            self.path.write_bytes((self.run / name).read_bytes())
        else:
            self.path.write_bytes(DAMAGES[kind](rng, self.bytes))
        if self.older.exists() and rng.random() < 0.5:
            self.older.unlink()

    def is_right(self, kind: str, found: str, said: str) -> bool:
        if kind == "another run's" and self.name.startswith("policy"):
            return found == opened(self.other, self.name)
        return (found == self.right and not said) or (found == self.before and said.count("\n") == 1)

    def restore(self) -> None:
        self.path.write_bytes(self.bytes)
        if self.older_bytes:
            self.older.write_bytes(self.older_bytes)


def run(seconds: float, seed: int) -> Tally:
    tally = Tally("checkpoints")
    with tempfile.TemporaryDirectory() as folder:
        mine, other = Path(folder) / "mine", Path(folder) / "other"
        make_run(mine, 0)
        make_run(other, 1)
        targets = [Target(mine, other, name) for name in FILES]
        for number in attempts(seconds, least=len(KINDS) * len(FILES)):
            target, kind = targets[number % len(FILES)], KINDS[number // len(FILES) % len(KINDS)]
            if kind == "config.json" and target.name == CONTEXTS_FILE:
                continue
            target.damage(kind, np.random.default_rng([seed, number]))
            verdict, detail = judge_call(
                lambda target=target: listened(mine, target.name),  # type: ignore[misc]
                lambda result, target=target, kind=kind: target.is_right(kind, *result),  # type: ignore[misc]
            )
            tally.add(verdict, f"seed {seed}, number {number}: {kind}: {target.name}", detail)
            target.restore()
    return tally
