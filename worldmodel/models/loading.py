"""Loading models: the pretrained ones, and the parts of a run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from worldmodel.models.hub import download
from worldmodel.models.outcome_config import OutcomeConfig
from worldmodel.models.prior import Prior, PriorConfig
from worldmodel.models.recurrent_vqvae import RecurrentVQVAE
from worldmodel.models.reward_done import OutcomeModel
from worldmodel.models.vqvae import VQVAE
from worldmodel.models.vqvae_config import VQVAEConfig
from worldmodel.utils.checkpoint import read_checkpoint
from worldmodel.utils.errors import UserError, is_hub_name, is_url, one_line
from worldmodel.utils.settings import short_repr

Model = TypeVar("Model", bound=nn.Module)
PRETRAINED = Path(__file__).parents[1] / "pretrained"


def pretrained_run(world: str) -> Path:
    """The run folder of a pretrained model.

    Args:
        world: Name of the model, such as "health_gathering_supreme".

    Raises:
        UserError: If there is no such model; it lists those that exist.
    """
    names = pretrained_names("")
    if world in names:
        return PRETRAINED / world
    raise UserError(
        f"no pretrained model is named {short_repr(world)} (available: {', '.join(names) or 'none'}); use one of "
        "these, or give a run folder: --run, or model= in Python"
    )


def resolve_folder(name: str, kind: str = "") -> Path:
    """The folder of a name: a path, the name of a pretrained model, or `hf://owner/name` (models/hub.py).

    Args:
        name: A path, a name without slashes, or a run on the hub.
        kind: "" for world models, "_policy" for policies.

    Raises:
        UserError: If the name is another URL, or nothing has it.
    """
    if is_hub_name(name):
        return download(name)
    if is_url(name):
        raise UserError(f"{name} is a URL, but models are read from local folders; copy it here and give its folder")
    ships, bare = PRETRAINED / f"{name}{kind}", name and Path(name).name == name
    try:
        found, shipped = Path(name).exists(), bool(bare) and ships.is_dir()
    except OSError as error:  # such as a name that is too long
        raise UserError(
            f"the folder {short_repr(name)} cannot be opened ({error.strerror}); give another one"
        ) from None
    if bare and not shipped and not found:
        names = ", ".join(pretrained_names(kind)) or "none"
        raise UserError(f"no folder and no pretrained model is named {name}; give a folder, or one of: {names}")
    return ships if shipped else Path(name)


def pretrained_names(kind: str) -> list[str]:
    """Names of the pretrained world models, or with "_policy" of the policies."""
    folders = PRETRAINED.glob(f"*{kind}") if kind else (prior.parent for prior in PRETRAINED.glob("*/prior"))
    return sorted(folder.name.removesuffix(kind) for folder in folders)


AnyVQVAE = VQVAE | RecurrentVQVAE
"""Both have the same `encode`, `decode` and `reconstruct`."""


def build_vqvae(config: VQVAEConfig) -> AnyVQVAE:
    """Build a VQ-VAE with random weights."""
    return RecurrentVQVAE(config) if config.past_frames else VQVAE(config)


def load_vqvae(folder: Path) -> AnyVQVAE:
    """Load a VQ-VAE in eval mode; `UserError` if the folder has none, or one of another version."""
    return _load(folder, "vqvae", lambda settings: build_vqvae(VQVAEConfig(**settings)))


def load_prior(folder: Path) -> Prior:
    """Load a prior in eval mode; `UserError` if the folder has none, or one of another version."""
    return _load(folder, "prior", lambda settings: Prior(PriorConfig(**settings)))


def load_outcome(folder: Path) -> OutcomeModel:
    """Load an outcome model in eval mode; `UserError` if the folder has none, or one of another version."""
    return _load(folder, "outcome", lambda settings: OutcomeModel(OutcomeConfig(**settings)))


def _load(folder: Path, kind: str, build: Callable[[dict[str, Any]], Model]) -> Model:
    """Build a model from the config of its checkpoint and load the weights."""
    found = read_checkpoint(folder)
    if (holds := found.config.get("kind")) != kind:
        raise UserError(f"{folder} holds a {holds}, not a {kind}; give a folder that train/{kind}.py wrote")
    with refuse_other_versions(folder, f"train/{kind}.py --restart"):
        with torch.device("meta"):
            found.check_fit(build(found.config["model"]))  # before a damaged config can allocate too much memory
        model = build(found.config["model"])
    found.fill(model)
    return model.eval()


@contextmanager
def refuse_other_versions(folder: Path, script: str) -> Iterator[None]:
    """Turn any error of building a model from its config into a `UserError` that names the training script."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{folder}: {error}; train it again with {script}") from None
    except Exception as error:
        text = f"{type(error).__name__}: {one_line(error)}"
        sentence = f"{folder} was written by another version ({text}); train it again with {script}"
        raise UserError(sentence) from error
