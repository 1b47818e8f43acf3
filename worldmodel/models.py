"""Models on disk: what ships with the project, and the parts of a run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from worldmodel.checkpoint import read_checkpoint
from worldmodel.errors import UserError, is_url
from worldmodel.layout import line
from worldmodel.outcome import OutcomeConfig, OutcomeModel
from worldmodel.prior import Prior, PriorConfig
from worldmodel.settings import shown
from worldmodel.vqvae import VQVAE, VQVAEConfig

Model = TypeVar("Model", bound=nn.Module)
PRETRAINED = Path(__file__).parent / "pretrained"


def shipped(world: str) -> Path:
    """The run folder of the model that ships for a world, or a `UserError` that lists them."""
    if isinstance(world, str) and world in known("").split(", "):
        return PRETRAINED / world
    raise UserError(f"no model ships for the world {shown(world)} (but for: {known('')}); give model=, a run folder")


def folder_of(name: str, kind: str = "") -> Path:
    """A folder as it is, or what ships under that bare name: a world, or with `kind="_policy"` a policy."""
    if is_url(name):
        raise UserError(f"models are read from this machine, but {name} is a URL; copy it here and give its folder")
    ships, bare = PRETRAINED / f"{name}{kind}", name and Path(name).name == name
    try:
        found, shipped = Path(name).exists(), bool(bare) and ships.is_dir()
    except OSError as error:  # such as a name that is too long
        raise UserError(f"there is no folder {shown(name)}: {error.strerror}") from None
    if bare and not shipped and not found:
        raise UserError(f"there is no folder {name}, and nothing ships under that name; what does: {known(kind)}")
    return ships if shipped else Path(name)


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
    found = read_checkpoint(folder)
    if (holds := found.config.get("kind")) != kind:
        raise UserError(f"{folder} holds a {holds}, not a {kind}; give what train/{kind}.py wrote")
    with of_this_version(folder):
        model = build(found.config["model"])
    found.fill(model)
    return model.eval()


@contextmanager
def of_this_version(folder: Path) -> Iterator[None]:
    """Building a model from what its config says: whatever fails is told as a `UserError`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{folder}: {error}; train it again") from None
    except Exception as error:
        told = f"{type(error).__name__}: {line(error)}"
        raise UserError(f"{folder} was written by another version ({told}); train it again") from error
