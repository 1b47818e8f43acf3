"""Checkpoints: safetensors files, each replaced atomically, and their config as JSON.

    <folder>/checkpoint.safetensors   tensors; its header has config and progress, so that one rename commits
                                      everything that belongs together
    <folder>/previous-1.safetensors   the one before it, previous-2 the one before that; only of the same run
    <folder>/config.json              the same config, for humans

A damaged file is detected (`tensor_file`), and the newest intact one is used instead. No pickle is read or written.
Optimizer state is stored as `optimizer.<parameter index>.<name>`, other state of a run as `run.<name>`.
"""

from __future__ import annotations

import hashlib
import re
import sys
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldmodel.utils import tensor_file
from worldmodel.utils.errors import UserError
from worldmodel.utils.files import atomic_file, write_json
from worldmodel.utils.settings import Count, check_value

CHECKPOINT_FILE = "checkpoint.safetensors"
OPTIMIZER_KEY = re.compile(r"optimizer\.(\d{1,6})\.(\w+)")
STATE_PREFIX = "run."
CURE = "restore a copy, or delete it and train again"


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file."""

    path: Path
    """The file."""
    config: dict[str, Any]
    """What the run was trained with, the model's config under "model"."""
    progress: dict[str, Any]
    """How far the run is."""
    weights: dict[str, Tensor]
    """The model's tensors by name."""
    optimizer: dict[int, dict[str, Tensor]]
    """The optimizer's tensors by parameter index and name."""
    state: dict[str, Tensor]
    """The other tensors that a run carries from step to step, by name."""

    @property
    def digest(self) -> str:
        """Digest of the weights, to check that codes or a prior belong to them."""
        total = hashlib.sha256()
        for name in sorted(self.weights):
            total.update(name.encode() + self.weights[name].flatten().view(torch.uint8).numpy().tobytes())
        return total.hexdigest()[:16]

    @property
    def codes_digest(self) -> str:
        """Digest of what decides a VQ-VAE's codes: its weights and, if not zero, its hysteresis."""
        hysteresis = self.config.get("model", {}).get("hysteresis", 0)
        return self.digest + (f"+{hysteresis}" if hysteresis else "")

    def steps(self, name: str) -> int:
        """Number of steps that the run has done, from `progress`.

        Args:
            name: Key in `progress`.

        Raises:
            UserError: If it is missing or not a count.
        """
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
        """Check that the weights fit a model.

        Raises:
            UserError: Naming the first tensor that differs in type or shape.
        """
        expected = unique_tensors(model)
        for key in sorted(expected.keys() | self.weights.keys()):
            have, want = self.weights.get(key), expected.get(key)
            there, here = (_describe(have), _describe(want))
            if there != here:
                raise UserError(
                    f"{self.path.parent} was trained with another config: {key} is {there} there and {here} here; "
                    "use that config, or train it again"
                )

    def fill(self, model: nn.Module) -> None:
        """Load the weights into a model; `UserError` if they do not fit."""
        self.check_fit(model)
        model.load_state_dict(self.weights, strict=False)

    def fill_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Load the state of Adam; its hyperparameters stay those that it was built with.

        Raises:
            UserError: If there is no state or it does not fit the parameters.
        """
        state = optimizer.state_dict()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for i, moments in self.optimizer.items():
            shape = parameters[i].shape if i < len(parameters) else None
            shapes = {name: tensor.shape for name, tensor in moments.items()}
            if shapes != {"step": torch.Size(()), "exp_avg": shape, "exp_avg_sq": shape} or not moments["step"] > 0:
                raise UserError(f"{self.path} has an optimizer state that does not fit (parameter {i}); {CURE}")
        if not self.optimizer:
            raise UserError(f"{self.path} has no optimizer state, so no run can resume from it; {CURE}")
        state["state"] = self.optimizer
        optimizer.load_state_dict(state)


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    config: dict[str, Any],
    progress: dict[str, Any] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    keep: int = 1,
) -> None:
    """Write a checkpoint, and a config.json next to it.

    Args:
        folder: Folder of the run's checkpoints.
        model: Model to save.
        config: Config to store.
        progress: How far the run is.
        optimizer: Optimizer to save, which a run needs to resume.
        keep: Number of checkpoints to keep, this one included. With more than 1, those in the folder must be of the
            same run.

    Raises:
        UserError: If a tensor is not finite or the file cannot be written; the last checkpoint is then intact.
    """
    moments = {} if optimizer is None else optimizer.state_dict()["state"]
    commit(folder, unique_tensors(model), moments, config, progress or {}, keep, {})


def replace_config(folder: Path, config: dict[str, Any]) -> None:
    """Replace the config of a checkpoint; its tensors and its progress stay."""
    found = read_checkpoint(folder)
    commit(folder, found.weights, found.optimizer, config, found.progress, 1, found.state)


def commit(
    folder: Path,
    weights: dict[str, Tensor],
    optimizer: dict[int, dict[str, Tensor]],
    config: dict[str, Any],
    progress: dict[str, Any],
    keep: int,
    run_state: dict[str, Tensor],
) -> None:
    """`save_checkpoint` for tensors by name: the model's, and the optimizer's by parameter index."""
    state = {STATE_PREFIX + name: tensor for name, tensor in run_state.items()}
    state |= {f"optimizer.{index}.{name}": value for index, of in optimizer.items() for name, value in of.items()}
    try:
        data = tensor_file.pack(weights | state, {"config": config, "progress": progress})
    except UserError as error:
        raise UserError(
            f"{folder}: {error}, so nothing was saved; run the same command again, but not with --restart, to resume "
            "from the last checkpoint; if it happens again, lower the learning rate"
        ) from None
    try:
        write_json(folder / "config.json", config)
        with atomic_file(folder / CHECKPOINT_FILE, data) as part:
            _rotate(folder, keep)
            part.replace(folder / CHECKPOINT_FILE)
    except OSError as error:
        raise UserError(
            f"{folder} could not be written ({error.strerror}), but the last checkpoint is intact; free some space and "
            "run the same command again, but not with --restart"
        ) from error


def _rotate(folder: Path, keep: int) -> None:
    """Renumber the checkpoints to make room for a new one; the newest keep - 1 stay."""
    names = [folder / CHECKPOINT_FILE, *(folder / f"previous-{i}.safetensors" for i in range(1, keep))]
    for surplus in set(checkpoints(folder)) - set(names):
        surplus.unlink()
    for newer, older in reversed(list(pairwise(names))):
        if newer.exists():
            newer.replace(older)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint files of a folder, newest first."""
    previous = sorted(Path(folder).glob("previous-*.safetensors"), key=lambda path: (len(path.name), path.name))
    return [path for path in (Path(folder) / CHECKPOINT_FILE, *previous) if path.exists()]


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read the newest intact checkpoint of a folder; a warning on stderr says if a newer one is damaged.

    Raises:
        UserError: If there is none.
    """
    files, newest = checkpoints(folder), Path(folder) / CHECKPOINT_FILE
    fault = f"{newest} is missing; {CURE}" if files and files[0] != newest else ""
    for path in files:
        try:
            found = _read(path)
        except FileNotFoundError:  # a trainer has just renamed it; it is the next one in the list
            continue
        except UserError as error:
            fault = fault or str(error)
            continue
        if fault:
            _warn_once(f"{fault}; for now {path.name}, which came before it, is used")
        return found
    missing = f"{folder} holds no {CHECKPOINT_FILE}" if Path(folder).exists() else f"there is no folder {folder}"
    raise UserError(fault or f"{missing}; train it first, or give the folder of a finished run")


@cache
def _warn_once(sentence: str) -> None:
    """Print a warning once, although a folder is read several times."""
    print(sentence, file=sys.stderr)


def _read(path: Path) -> Checkpoint:
    tensors, info = tensor_file.read(path, CURE)
    config, progress = (info.get(name) if isinstance(info, dict) else None for name in ("config", "progress"))
    if not isinstance(config, dict) or not isinstance(progress, dict):
        raise UserError(f"{path} is not a checkpoint; {CURE}")
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


def restore_newest(folder: Path) -> Checkpoint:
    """Before a run resumes: rename the newest intact checkpoint to `CHECKPOINT_FILE`, replacing a damaged one."""
    found = read_checkpoint(folder)
    return replace(found, path=found.path.replace(folder / CHECKPOINT_FILE))


def weights_digest(folder: Path) -> str:
    """`Checkpoint.digest` of a folder."""
    return read_checkpoint(folder).digest


def codes_digest(vqvae: Path) -> str:
    """`Checkpoint.codes_digest` of a folder."""
    return read_checkpoint(vqvae).codes_digest


def load_weights(folder: Path, model: nn.Module) -> None:
    """`Checkpoint.fill` from a folder."""
    read_checkpoint(folder).fill(model)


def _describe(tensor: Tensor | None) -> str:
    """Kind and shape of a tensor, in words."""
    if tensor is None:
        return "missing"
    kind = "complex" if tensor.is_complex() else "float" if tensor.is_floating_point() else str(tensor.dtype)[6:]
    return f"{kind} {tuple(tensor.shape)}"


def unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model with each shared tensor once, under its first name."""
    names: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if names.setdefault(id(tensor), name) == name}
