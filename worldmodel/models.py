"""Models on disk: what ships with the project, and the parts of a run folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from worldmodel.checkpoint import load_weights, read_header
from worldmodel.errors import UserError, is_url
from worldmodel.outcome import OutcomeConfig, OutcomeModel
from worldmodel.prior import Prior, PriorConfig
from worldmodel.vqvae import VQVAE, VQVAEConfig
from worldmodel.world import tuples

Model = TypeVar("Model", bound=nn.Module)
PRETRAINED = Path(__file__).parent / "pretrained"


def shipped(world: str) -> Path:
    """The run folder of the model that ships for a world, or a `UserError` that lists them."""
    if (PRETRAINED / world / "prior").is_dir():
        return PRETRAINED / world
    raise UserError(f"no model ships for the world {world!r} (but for: {known('')}); give model=, a run folder")


def folder_of(name: str, kind: str = "") -> Path:
    """A folder as it is, or what ships under that bare name: a world, or with `kind="_policy"` a policy."""
    if is_url(name):
        raise UserError(f"models are read from this machine, but {name} is a URL; copy it here and give its folder")
    ships, bare = PRETRAINED / f"{name}{kind}", name and Path(name).name == name
    if bare and not ships.is_dir() and not Path(name).exists():
        raise UserError(f"there is no folder {name}, and nothing ships under that name; what does: {known(kind)}")
    return ships if bare and ships.is_dir() else Path(name)


def known(kind: str) -> str:
    """The names of what ships: worlds, or policies."""
    folders = PRETRAINED.glob(f"*{kind}") if kind else (prior.parent for prior in PRETRAINED.glob("*/prior"))
    return ", ".join(sorted(folder.name.removesuffix(kind) for folder in folders)) or "none"


def load_vqvae(folder: Path) -> VQVAE:
    return _load(folder, "vqvae", lambda settings: VQVAE(VQVAEConfig(**settings)))


def load_prior(folder: Path) -> Prior:
    return _load(folder, "prior", lambda settings: Prior(PriorConfig(**settings)))


def load_outcome(folder: Path) -> OutcomeModel:
    return _load(folder, "outcome", lambda settings: OutcomeModel(OutcomeConfig(**settings)))


def _load(folder: Path, kind: str, build: Callable[[dict[str, Any]], Model]) -> Model:
    """Build a model from its checkpoint's config and fill it."""
    config, _ = read_header(folder)
    if config.get("kind") != kind:
        raise UserError(f"{folder} holds a {config.get('kind')}, not a {kind}; give what train/{kind}.py wrote")
    try:
        model = build(tuples(config["model"]))
    except (TypeError, KeyError) as error:
        raise UserError(f"{folder} was written by another version ({error}); train it again") from None
    load_weights(folder, model)
    return model.eval()
