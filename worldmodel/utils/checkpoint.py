"""Weights and state on disk: safetensors files, each replaced whole or not at all, and their config as JSON.

    <folder>/checkpoint.safetensors   tensors; in its header the config and the progress, so that one
                                      rename commits everything that belongs together
    <folder>/previous-1.safetensors   the one before it, previous-2 the one before that; only of the same run
    <folder>/config.json              the same config, for people

A damaged file is noticed (`tensor_file`), and the newest whole one is taken instead. No pickle is read or written.
Optimizer state is stored as `optimizer.<parameter index>.<name>`, other state of a run as `run.<name>`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldmodel.utils import tensor_file
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import Count, check_value

CHECKPOINT_FILE = "checkpoint.safetensors"
OPTIMIZER_KEY = re.compile(r"optimizer\.(\d{1,6})\.(\w+)")
STATE_PREFIX = "run."
CURE = "restore a copy, or delete it and train again"


@contextmanager
def atomic_file(path: Path, data: bytes) -> Iterator[Path]:
    """The data on the disk, under a name of its own beside the path, to be renamed to it; gone if it is not."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield part
    finally:
        part.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that it holds either its old bytes or the new ones, also after a power cut."""
    with atomic_file(path, data) as part:
        part.replace(path)


def write_json(path: Path, data: Any) -> None:
    write_atomic(path, (json.dumps(data, indent=2) + "\n").encode())


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds."""

    path: Path
    config: dict[str, Any]
    progress: dict[str, Any]
    weights: dict[str, Tensor]
    optimizer: dict[int, dict[str, Tensor]]
    """By parameter index."""
    state: dict[str, Tensor]
    """What else a training carries from step to step."""

    @property
    def digest(self) -> str:
        """A fingerprint of the weights, to tell whether codes or a prior belong to them."""
        total = hashlib.sha256()
        for name in sorted(self.weights):
            total.update(name.encode() + self.weights[name].flatten().view(torch.uint8).numpy().tobytes())
        return total.hexdigest()[:16]

    @property
    def codes_digest(self) -> str:
        """A fingerprint of the codes that a VQ-VAE makes: of its weights and, if it has one, its hysteresis."""
        hysteresis = self.config.get("model", {}).get("hysteresis", 0)
        return self.digest + (f"+{hysteresis}" if hysteresis else "")

    def steps(self, name: str) -> int:
        """How many steps a run has done, which its progress has under that name."""
        try:
            return check_value(Count, self.progress.get(name), f"{self.path}: {name}")
        except UserError as error:
            raise UserError(f"{error}; {CURE}") from None

    def tensor_of_run(self, name: str, like: Tensor) -> Tensor:
        """A tensor of `state`, which must be like another."""
        found = self.state.get(name)
        if (there := _describe(found)) != (here := _describe(like)):
            raise UserError(f"{self.path}: {STATE_PREFIX}{name} is {there} there and {here} here; {CURE}")
        assert found is not None
        return found

    def check_fit(self, model: nn.Module) -> None:
        """`UserError` naming the first tensor that a model has otherwise."""
        expected = _unique_tensors(model)
        for key in sorted(expected.keys() | self.weights.keys()):
            have, want = self.weights.get(key), expected.get(key)
            there, here = (_describe(have), _describe(want))
            if there != here:
                raise UserError(f"{self.path.parent} belongs to another config: {key} is {there} there and {here} here")

    def fill(self, model: nn.Module) -> None:
        """Give a model its weights, if they fit."""
        self.check_fit(model)
        model.load_state_dict(self.weights, strict=False)


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    config: dict[str, Any],
    progress: dict[str, Any] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    keep: int = 1,
    state: dict[str, Tensor] | None = None,
) -> None:
    """Commit a model with its config, and with what a run needs to go on.

    `keep` checkpoints stay, this one among them: those before it must be of the same run.
    """
    moments = {} if optimizer is None else optimizer.state_dict()["state"]
    _commit(folder, _unique_tensors(model), moments, config, progress or {}, keep, state or {})


def replace_config(folder: Path, config: dict[str, Any]) -> None:
    """Give a checkpoint another config; its tensors and its progress stay."""
    found = read_checkpoint(folder)
    _commit(folder, found.weights, found.optimizer, config, found.progress, 1, found.state)


def _commit(
    folder: Path,
    weights: dict[str, Tensor],
    optimizer: dict[int, dict[str, Tensor]],
    config: dict[str, Any],
    progress: dict[str, Any],
    keep: int,
    run_state: dict[str, Tensor],
) -> None:
    state = {STATE_PREFIX + name: tensor for name, tensor in run_state.items()}
    state |= {f"optimizer.{index}.{name}": value for index, of in optimizer.items() for name, value in of.items()}
    if name := tensor_file.first_not_finite(weights | state):
        raise UserError(
            f"{folder}: {name} has values that are not finite, so nothing was saved; run the same command again, which "
            "goes on from the last checkpoint; if it comes again, --restart with a lower learning rate"
        )
    data = tensor_file.pack(weights | state, {"config": config, "progress": progress})
    try:
        write_json(folder / "config.json", config)
        with atomic_file(folder / CHECKPOINT_FILE, data) as part:
            _rotate(folder, keep)
            part.replace(folder / CHECKPOINT_FILE)
    except OSError as error:
        raise UserError(
            f"{folder} could not be written ({error.strerror}); the last checkpoint is whole: make room, and run the "
            "same command again"
        ) from error


def _rotate(folder: Path, keep: int) -> None:
    """Number the checkpoints anew, as those before a new one: the last keep - 1 stay."""
    names = [folder / CHECKPOINT_FILE, *(folder / f"previous-{i}.safetensors" for i in range(1, keep))]
    for surplus in set(checkpoints(folder)) - set(names):
        surplus.unlink()
    for newer, older in reversed(list(pairwise(names))):
        if newer.exists():
            newer.replace(older)


def checkpoints(folder: Path) -> list[Path]:
    """The files of a folder, newest first."""
    previous = sorted(Path(folder).glob("previous-*.safetensors"), key=lambda path: (len(path.name), path.name))
    return [path for path in (Path(folder) / CHECKPOINT_FILE, *previous) if path.exists()]


def read_checkpoint(folder: Path) -> Checkpoint:
    """The newest whole checkpoint; standard error says if a newer one is damaged."""
    files, newest = checkpoints(folder), Path(folder) / CHECKPOINT_FILE
    fault = f"{newest} is missing; {CURE}" if files and files[0] != newest else ""
    for path in files:
        try:
            found = _read(path)
        except FileNotFoundError:  # renamed by a trainer, and next in the list
            continue
        except UserError as error:
            fault = fault or str(error)
            continue
        if fault:
            _warn_once(f"{fault}; for now {path.name}, which came before it, is used")
        return found
    raise UserError(
        fault or f"{folder} holds no {CHECKPOINT_FILE}; train it first, or give the folder of a finished run"
    )


@cache
def _warn_once(sentence: str) -> None:
    """Once is enough: a folder is read several times."""
    print(sentence, file=sys.stderr)


def _read(path: Path) -> Checkpoint:
    tensors, info = tensor_file.read(path, CURE)
    config, progress = (info.get(name) if isinstance(info, dict) else None for name in ("config", "progress"))
    if not isinstance(config, dict) or not isinstance(progress, dict):
        raise UserError(f"{path} is no checkpoint; {CURE}")
    weights: dict[str, Tensor] = {}
    optimizer: dict[int, dict[str, Tensor]] = {}
    state: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if found := OPTIMIZER_KEY.fullmatch(key):
            optimizer.setdefault(int(found[1]), {})[found[2]] = tensor
        elif key.startswith(STATE_PREFIX):
            state[key.removeprefix(STATE_PREFIX)] = tensor
        else:
            weights[key] = tensor
    return Checkpoint(path, config, progress, weights, optimizer, state)


def restore_newest(folder: Path) -> None:
    """Before a run goes on: put the newest whole checkpoint where the newest belongs, in the place of a damaged one."""
    path = read_checkpoint(folder).path
    path.replace(folder / CHECKPOINT_FILE)


def read_header(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config and the progress of a checkpoint."""
    found = read_checkpoint(folder)
    return found.config, found.progress


def read_tensors(folder: Path) -> tuple[dict[str, Tensor], dict[int, dict[str, Tensor]]]:
    """The model's tensors and the optimizer's, by parameter index."""
    found = read_checkpoint(folder)
    return found.weights, found.optimizer


def weights_digest(folder: Path) -> str:
    """`Checkpoint.digest` of a folder."""
    return read_checkpoint(folder).digest


def codes_digest(vqvae: Path) -> str:
    """`Checkpoint.codes_digest` of a folder."""
    return read_checkpoint(vqvae).codes_digest


def check_vqvae(what: str, digest: str | None, vqvae: Path, codebook_only: bool = False) -> None:
    """`UserError` if codes, a model of codes or contexts were made with another VQ-VAE than the one in a folder.

    With `codebook_only` it need only have the same weights: a prior may begin with one of other codes of that codebook.
    """
    found = read_checkpoint(vqvae)
    known = [found.codes_digest, found.config.get("exported_from")]
    if codebook_only:
        known, digest = [str(name).partition("+")[0] for name in known], str(digest).partition("+")[0]
    if digest is None or digest not in known:
        raise UserError(f"{what} was made with another VQ-VAE than {vqvae}; make it again with --restart")


def load_weights(folder: Path, model: nn.Module) -> None:
    """`Checkpoint.fill` from a folder."""
    read_checkpoint(folder).fill(model)


def _describe(tensor: Tensor | None) -> str:
    """Kind and shape of a tensor, in words."""
    if tensor is None:
        return "missing"
    kind = "complex" if tensor.is_complex() else "float" if tensor.is_floating_point() else str(tensor.dtype)[6:]
    return f"{kind} {tuple(tensor.shape)}"


def _unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model with each shared tensor once, under its first name."""
    names: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if names.setdefault(id(tensor), name) == name}


def load_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Give Adam its state back; its hyperparameters stay those it was built with. `UserError` if it does not fit."""
    found, state = read_checkpoint(folder), optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for i, moments in found.optimizer.items():
        shape = parameters[i].shape if i < len(parameters) else None
        shapes = {name: tensor.shape for name, tensor in moments.items()}
        if shapes != {"step": torch.Size(()), "exp_avg": shape, "exp_avg_sq": shape} or not moments["step"] > 0:
            raise UserError(f"{found.path} has an optimizer that does not fit (parameter {i}); {CURE}")
    if not found.optimizer:
        raise UserError(f"{found.path} has no optimizer, so no run can go on from it; {CURE}")
    state["state"] = found.optimizer
    optimizer.load_state_dict(state)


def check_same_config(folder: Path, config: dict[str, Any]) -> None:
    """`UserError` naming the first difference if the folder holds a run of another config."""
    if not checkpoints(folder):
        return
    differs = config_difference(read_header(folder)[0], json.loads(json.dumps(config)))
    if differs:
        raise UserError(
            f"{folder} holds a run with {differs}; give another folder, the same settings, or --restart to overwrite it"
        )


def config_difference(saved: dict[str, Any], asked: dict[str, Any]) -> str:
    """The first setting in which two JSON configs differ, in words; empty if there is none."""
    a, b = flatten(saved), flatten(asked)
    for key in sorted(a.keys() | b.keys()):
        if a.get(key) != b.get(key):
            return f"{key} = {a.get(key)}, but {b.get(key)} was asked for"
    return ""


def flatten(data: Any, path: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, whose keys are paths: {"model": {"width": 4}} -> {"model.width": 4}."""
    if isinstance(data, dict):
        return {k: v for name, item in data.items() for k, v in flatten(item, f"{path}.{name}".strip(".")).items()}
    return {path: data}
