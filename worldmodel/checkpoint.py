"""Weights and state on disk: one safetensors file, replaced whole or not at all, and its config as JSON.

    <folder>/checkpoint.safetensors   tensors; in its header the config and the progress, so that one
                                      rename commits everything that belongs together
    <folder>/config.json              the same config, for people

No pickle is read or written. Optimizer state is stored as `optimizer.<parameter index>.<name>`.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from worldmodel.errors import UserError

FILE = "checkpoint.safetensors"


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that it holds either its old bytes or the new ones, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def write_json(path: Path, data: Any) -> None:
    write_atomic(path, (json.dumps(data, indent=2) + "\n").encode())


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    config: dict[str, Any],
    progress: dict[str, Any] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Commit a model with its config, and with what a run needs to go on."""
    state = {} if optimizer is None else optimizer.state_dict()["state"]
    _commit(folder, _unique(model), state, config, progress or {})


def change_config(folder: Path, config: dict[str, Any]) -> None:
    """Give a checkpoint another config; its tensors and its progress stay."""
    _commit(folder, *read_tensors(folder), config, read_header(folder)[1])


def _commit(
    folder: Path,
    weights: dict[str, Tensor],
    optimizer: dict[int, dict[str, Tensor]],
    config: dict[str, Any],
    progress: dict[str, Any],
) -> None:
    state = {f"optimizer.{index}.{name}": value for index, of in optimizer.items() for name, value in of.items()}
    header = {"config": json.dumps(config), "progress": json.dumps(progress)}
    write_json(folder / "config.json", config)
    write_atomic(folder / FILE, save({k: v.detach().cpu().contiguous() for k, v in (weights | state).items()}, header))


def read_header(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config and the progress of a checkpoint."""
    path = Path(folder) / FILE
    if not path.exists():
        raise UserError(f"{folder} holds no {FILE}; train it first, or give the folder of a finished run")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
        return json.loads(header["config"]), json.loads(header["progress"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and train again, or restore a copy") from None


def read_tensors(folder: Path) -> tuple[dict[str, Tensor], dict[int, dict[str, Tensor]]]:
    """The model's tensors and the optimizer's, by parameter index."""
    read_header(folder)  # says clearly what is wrong, if anything is
    weights: dict[str, Tensor] = {}
    optimizer: dict[int, dict[str, Tensor]] = {}
    with safe_open(Path(folder) / FILE, "pt") as file:
        for key in file.keys():  # noqa: SIM118 - safe_open is no dict
            if key.startswith("optimizer."):
                _, index, name = key.split(".", 2)
                optimizer.setdefault(int(index), {})[name] = file.get_tensor(key)
            else:
                weights[key] = file.get_tensor(key)
    return weights, optimizer


def digest(folder: Path) -> str:
    """A fingerprint of the weights, to tell whether codes or a prior belong to them."""
    weights, _ = read_tensors(folder)
    total = hashlib.sha256()
    for name in sorted(weights):
        total.update(name.encode() + weights[name].flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]


def codes_of(vqvae: Path) -> str:
    """A fingerprint of the codes that a VQ-VAE makes: of its weights and, if it has one, its hysteresis."""
    hysteresis = read_header(vqvae)[0].get("model", {}).get("hysteresis", 0)
    return digest(vqvae) + (f"+{hysteresis}" if hysteresis else "")


def check_made_with(what: str, made_with: str | None, vqvae: Path, codebook: bool = False) -> None:
    """`UserError` if codes, a model of codes or contexts were made with another VQ-VAE than the one in a folder.

    With `codebook` it need only have the same weights: a prior may begin with one of other codes of that codebook.
    """
    known = {codes_of(vqvae), read_header(vqvae)[0].get("exported_from")}
    if codebook:
        known, made_with = {str(name).partition("+")[0] for name in known}, str(made_with).partition("+")[0]
    if made_with is None or made_with not in known:
        raise UserError(f"{what} was made with another VQ-VAE than {vqvae}; make it again with --restart")


def load_weights(folder: Path, model: nn.Module) -> None:
    """Fill a model; `UserError` naming the first tensor that does not fit."""
    weights, _ = read_tensors(folder)
    expected = _unique(model)
    for key in sorted(expected.keys() | weights.keys()):
        have, want = weights.get(key), expected.get(key)
        if have is None or want is None or have.shape != want.shape:
            shapes = [None if t is None else tuple(t.shape) for t in (have, want)]
            raise UserError(f"{folder} belongs to another config: {key} is {shapes[0]} there and {shapes[1]} here")
    model.load_state_dict(weights, strict=False)


def _unique(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model with each shared tensor once, under its first name."""
    names: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if names.setdefault(id(tensor), name) == name}


def load_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer its state back; its hyperparameters stay those it was built with."""
    state = optimizer.state_dict()
    state["state"] = read_tensors(folder)[1]
    optimizer.load_state_dict(state)


def same_config(folder: Path, config: dict[str, Any]) -> None:
    """`UserError` naming the first difference if the folder holds a run of another config."""
    if not (Path(folder) / FILE).exists():
        return
    differs = difference(read_header(folder)[0], json.loads(json.dumps(config)))
    if differs:
        raise UserError(
            f"{folder} holds a run with {differs}; give another folder, the same settings, or --restart to overwrite it"
        )


def difference(saved: dict[str, Any], asked: dict[str, Any]) -> str:
    """The first setting in which two JSON configs differ, in words; empty if there is none."""
    a, b = flat(saved), flat(asked)
    for key in sorted(a.keys() | b.keys()):
        if a.get(key) != b.get(key):
            return f"{key} = {a.get(key)}, but {b.get(key)} was asked for"
    return ""


def flat(data: Any, path: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, whose keys are paths: {"model": {"width": 4}} -> {"model.width": 4}."""
    if isinstance(data, dict):
        return {k: v for name, item in data.items() for k, v in flat(item, f"{path}.{name}".strip(".")).items()}
    return {path: data}
