"""Models on disk: what ships with the project, and the parts of a run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from worldmodel.models.prior import Prior, PriorConfig
from worldmodel.models.recurrent_vqvae import RecurrentVQVAE
from worldmodel.models.reward_done import OutcomeConfig, OutcomeModel
from worldmodel.models.vqvae import VQVAE, VQVAEConfig
from worldmodel.utils.checkpoint import read_checkpoint
from worldmodel.utils.errors import UserError, is_url, one_line
from worldmodel.utils.settings import short_repr

Model = TypeVar("Model", bound=nn.Module)
PRETRAINED = Path(__file__).parents[1] / "pretrained"


def pretrained_run(world: str) -> Path:
    """The run folder of the model that ships for a world, or a `UserError` that lists them."""
    if isinstance(world, str) and world in pretrained_names("").split(", "):
        return PRETRAINED / world
    raise UserError(
        f"no model ships for the world {short_repr(world)} (but for: {pretrained_names('')}); give model=, a run folder"
    )


def resolve_folder(name: str, kind: str = "") -> Path:
    """A folder as it is, or what ships under that bare name: a world, or with `kind="_policy"` a policy."""
    if is_url(name):
        raise UserError(f"models are read from this machine, but {name} is a URL; copy it here and give its folder")
    ships, bare = PRETRAINED / f"{name}{kind}", name and Path(name).name == name
    try:
        found, shipped = Path(name).exists(), bool(bare) and ships.is_dir()
    except OSError as error:  # such as a name that is too long
        raise UserError(f"there is no folder {short_repr(name)}: {error.strerror}") from None
    if bare and not shipped and not found:
        raise UserError(
            f"there is no folder {name}, and nothing ships under that name; what does: {pretrained_names(kind)}"
        )
    return ships if shipped else Path(name)


def pretrained_names(kind: str) -> str:
    """The names of what ships: worlds, or policies."""
    folders = PRETRAINED.glob(f"*{kind}") if kind else (prior.parent for prior in PRETRAINED.glob("*/prior"))
    return ", ".join(sorted(folder.name.removesuffix(kind) for folder in folders)) or "none"


def build_vqvae(config: VQVAEConfig) -> VQVAE | RecurrentVQVAE:
    return RecurrentVQVAE(config) if config.past_frames else VQVAE(config)


def load_vqvae(folder: Path) -> VQVAE | RecurrentVQVAE:
    return _load(folder, "vqvae", lambda settings: build_vqvae(VQVAEConfig(**settings)))


def load_prior(folder: Path) -> Prior:
    return _load(folder, "prior", lambda settings: Prior(PriorConfig(**settings)))


def load_outcome(folder: Path) -> OutcomeModel:
    return _load(folder, "outcome", lambda settings: OutcomeModel(OutcomeConfig(**settings)))


def _load(folder: Path, kind: str, build: Callable[[dict[str, Any]], Model]) -> Model:
    """Build a model from its checkpoint's config and fill it."""
    found = read_checkpoint(folder)
    if (holds := found.config.get("kind")) != kind:
        raise UserError(f"{folder} holds a {holds}, not a {kind}; give what train/{kind}.py wrote")
    with refuse_other_versions(folder, f"train/{kind}.py --restart"):
        with torch.device("meta"):
            found.check_fit(build(found.config["model"]))  # before a config can ask for more than there is
        model = build(found.config["model"])
    found.fill(model)
    return model.eval()


@contextmanager
def refuse_other_versions(folder: Path, script: str) -> Iterator[None]:
    """Building a model from what its config says: whatever fails is a `UserError` that names the script to train it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{folder}: {error}; train it again with {script}") from None
    except Exception as error:
        text = f"{type(error).__name__}: {one_line(error)}"
        sentence = f"{folder} was written by another version ({text}); train it again with {script}"
        raise UserError(sentence) from error
