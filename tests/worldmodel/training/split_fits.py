"""Trainings in float64 of every model, each on this rank's share of random batches, for tests on several ranks."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from tests.tiny import tiny_prior, tiny_vqvae
from worldmodel.models.outcome_config import OutcomeConfig
from worldmodel.models.prior import Prior
from worldmodel.models.recurrent_vqvae import RecurrentVQVAE
from worldmodel.models.reward_done import OutcomeModel
from worldmodel.models.vqvae import VQVAE
from worldmodel.training.distributed import Loss
from worldmodel.training.trainer import fit, rank_share
from worldmodel.training.trainer_config import TrainerConfig
from worldmodel.utils.ranks import rank

CLIPS = 8
Arrays = dict[str, np.ndarray]


def vqvae(**changes: Any) -> tuple[nn.Module, Loss]:
    """With more codes than vectors, so that the codebook begins with noise and is reset often."""
    model = VQVAE(tiny_vqvae(n_frames=2, frame_size=(8, 8), n_codes=80, motion_loss_weight=4.0, **changes)).double()
    return model, lambda batch: model(batch["frames"])


def videos(rng: np.random.Generator) -> Arrays:
    """Some clips move much, others little, so that every share has other statistics."""
    pixels = rng.integers(256, size=(CLIPS, 2, 8, 8, 3)) * np.linspace(0.1, 1, CLIPS)[:, None, None, None, None]
    return {"frames": pixels.astype(np.uint8)}


def recurrent() -> tuple[nn.Module, Loss]:
    sizes = {"frame_size": (8, 8), "downsample_channels": (8,), "n_codes": 12, "code_reset_threshold": 0.5}
    model = RecurrentVQVAE(tiny_vqvae(past_frames=2, action_dim=2, motion_loss_weight=4.0, **sizes)).double()

    def loss(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        values, after = model(batch["frames"], batch["actions"], batch["lanes"])
        return values | {"lanes": after}

    return model, loss


def streams(rng: np.random.Generator) -> Arrays:
    clips = videos(rng)["frames"]
    return {"frames": np.concatenate([clips, clips[:, :1] // 2], 1), "actions": rng.normal(size=(CLIPS, 2, 2))}


def prior() -> tuple[nn.Module, Loss]:
    config = tiny_prior(latent_shape=(4, 2, 2), window=2, dropout=0.0, conditioning="frame", condition_dim=3)
    model = Prior(config, torch.randn(1, 8, 4)).double()
    return model, lambda batch: {"loss": model.loss(batch["codes"], batch["condition"]).mean()}


def codes(rng: np.random.Generator) -> Arrays:
    return {"codes": rng.integers(4, size=(CLIPS, 4, 2, 2, 1)), "condition": rng.normal(size=(CLIPS, 4, 3))}


def outcome() -> tuple[nn.Module, Loss]:
    variables = {
        "n_variables": 1,
        "variable_mean": (0.0,),
        "variable_std": (1.0,),
        "variable_changes": ((-1.0, 0.0, 1.0),),
    }
    sizes: dict[str, Any] = {
        "latent_size": (2, 2),
        "n_codes": 6,
        "embedding_dim": 3,
        "condition_dim": 2,
        "hidden_dim": 8,
    }
    model = OutcomeModel(OutcomeConfig(**sizes, **variables), torch.randn(1, 6, 3)).double()
    names = ("codes", "condition", "reward", "done", "variables", "mask")
    return model, lambda batch: model.loss(*(batch[name] for name in names))


def outcomes(rng: np.random.Generator) -> Arrays:
    """Sequences of very different lengths."""
    length = 1 + np.arange(CLIPS)
    return {
        "codes": rng.integers(6, size=(CLIPS, CLIPS, 2, 2, 1)),
        "condition": rng.normal(size=(CLIPS, CLIPS, 2)),
        "reward": rng.normal(size=(CLIPS, CLIPS)),
        "done": rng.random((CLIPS, CLIPS)) < 0.3,
        "variables": rng.integers(2, size=(CLIPS, CLIPS, 1)).astype(float),
        "mask": np.arange(CLIPS) < length[:, None],
    }


KINDS: dict[str, tuple[Callable[[], tuple[nn.Module, Loss]], Callable[[np.random.Generator], Arrays]]] = {
    "vqvae": (vqvae, videos),
    "recurrent": (recurrent, streams),
    "prior": (prior, codes),
    "outcome": (outcome, outcomes),
}


@dataclass(frozen=True)
class Fault:
    """What happens to a rank, once: a signal, or an exception, when it draws the batch of a step."""

    rank: int
    step: int
    what: int | Exception
    mark: Path
    """A file that says that it has happened."""

    def happen(self, step: int) -> None:
        if (rank(), step) != (self.rank, self.step) or self.mark.exists():
            return
        self.mark.touch()
        if isinstance(self.what, Exception):
            raise self.what
        os.kill(os.getpid(), self.what)


def train(kind: str, out: Path, fault: Fault | None = None, data: Any = None, **settings: Any) -> None:
    """Train a model of a kind for 20 steps, or as `settings` of the trainer say."""
    torch.manual_seed(0)
    build, draw = KINDS[kind]
    model, loss = build()
    few: dict[str, Any] = {"steps": 20, "batch_size": CLIPS, "learning_rate": 1e-2, "max_grad_norm": 0.1}
    often: dict[str, Any] = {"log_every": 1, "save_every": 10, "eval_every": 7, "precision": "float32"}
    config = TrainerConfig(**few | often | settings)
    share = rank_share(config)
    state = {"lanes": torch.zeros(CLIPS, 3, 8, 8, 3, dtype=torch.uint8)[share]} if kind == "recurrent" else None

    def sample(rng: np.random.Generator, step: int) -> Arrays:
        if fault is not None:
            fault.happen(step)
        return {name: array[share] for name, array in draw(rng).items()}

    def evaluate(writer: SummaryWriter, step: int) -> list[str]:
        held = {name: torch.from_numpy(array) for name, array in draw(np.random.default_rng(1)).items()}
        lanes = {"lanes": torch.zeros(CLIPS, 3, 8, 8, 3, dtype=torch.uint8)} if kind == "recurrent" else {}
        with torch.no_grad():
            writer.add_scalar("held_out/loss", loss(held | lanes)["loss"], step)
        return []

    fit(model, loss, sample, config, out, {"kind": kind}, evaluate, state=state, data=data)
