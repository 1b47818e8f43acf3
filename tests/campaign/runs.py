"""Run folders made in a moment: untrained models of the toy world, with two checkpoints each, contexts and a policy."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticCnnPolicy
from torch import nn

from envs.policies import save_policy
from tests.conftest import TOY
from tests.tiny import tiny_prior, tiny_vqvae
from worldmodel.data.env_spec import EnvSpec
from worldmodel.generation.context import CONTEXTS_FILE, Context
from worldmodel.models.outcome_config import OutcomeConfig
from worldmodel.models.prior import Prior
from worldmodel.models.reward_done import OutcomeModel
from worldmodel.models.vqvae import VQVAE
from worldmodel.utils.checkpoint import codes_digest, save_checkpoint

CODES = {"n_codebooks": 1, "n_codes": 16, "embedding_dim": 8}


def make_run(run: Path, seed: int, env_spec: EnvSpec = TOY) -> None:
    """Everything a dream needs, as a training of two steps would leave it, and a policy for its world."""
    torch.manual_seed(seed)
    vqvae = VQVAE(tiny_vqvae(n_codes=16, embedding_dim=8))
    save_two(run / "vqvae", vqvae, {"kind": "vqvae", "model": asdict(vqvae.config), "env_spec": env_spec.to_json()})
    codes = CODES | {"condition_dim": env_spec.action.encoded_dim}
    made = {"vqvae": codes_digest(run / "vqvae")}
    gpt = tiny_prior(latent_shape=(8, 4, 4), conditioning="frame", window=4, n_layers=1, dropout=0.0, **codes)
    prior = Prior(gpt, vqvae.quantizer.embedding)
    save_two(run / "prior", prior, {"kind": "prior", "model": asdict(gpt), "env_spec": env_spec.to_json()} | made)
    info = {"variable_mean": (1.5,), "variable_std": (1.0,), "variable_low": (0.0,), "variable_high": (3.0,)}
    heads = OutcomeConfig(
        latent_size=(4, 4), n_variables=1, variable_changes=((-1.0, 0.0, 1.0),), hidden_dim=8, **info, **codes
    )
    outcome = OutcomeModel(heads, vqvae.quantizer.embedding)
    save_two(run / "outcome", outcome, {"kind": "outcome", "model": asdict(heads)} | made)
    contexts = Context(
        torch.randint(16, (4, 4, 4, 4, 1)), torch.rand(4, 4, codes["condition_dim"]), torch.rand(4, 4, 1)
    )
    contexts.save(run / CONTEXTS_FILE, made["vqvae"])
    image, shape = spaces.Box(0, 255, (3, 36, 36), np.uint8), {"features_dim": 4}
    policy = ActorCriticCnnPolicy(image, spaces.Discrete(3), lambda _: 1e-3, features_extractor_kwargs=shape)
    for step in (1, 2):
        save_policy(run / "policy", changed(policy), {}, {"steps": step}, keep=2)  # type: ignore[arg-type]


def save_two(folder: Path, model: nn.Module, config: dict) -> None:
    optimizer = torch.optim.Adam(model.parameters())
    for step in (1, 2):
        save_checkpoint(folder, changed(model), config, {"step": step}, optimizer, keep=2)


@torch.no_grad()
def changed(model: nn.Module) -> nn.Module:
    """A model after a step."""
    for parameter in model.parameters():
        parameter.add_(0.01 * torch.randn_like(parameter))
    return model
