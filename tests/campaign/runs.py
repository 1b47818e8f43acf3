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
from worldmodel.checkpoint import codes_of, save_checkpoint
from worldmodel.dream import CONTEXTS, Context
from worldmodel.outcome import OutcomeConfig, OutcomeModel
from worldmodel.prior import Prior, PriorConfig
from worldmodel.vqvae import VQVAE, VQVAEConfig

CODES = {"books": 1, "codes": 16, "code_dim": 8, "condition_dim": 3}


def make_run(run: Path, seed: int) -> None:
    """Everything a dream needs, as a training of two steps would leave it, and a policy for its world."""
    torch.manual_seed(seed)
    vqvae = VQVAE(
        VQVAEConfig(
            mode="stream", frames=8, size=(16, 16), stride=(1, 4, 4), hidden=8, residual=8, layers=1, codes=16, dim=8,
            window=2,
        )
    )  # fmt: skip
    save_two(run / "vqvae", vqvae, {"kind": "vqvae", "model": asdict(vqvae.config), "world": TOY.to_json()})
    made = {"vqvae": codes_of(run / "vqvae")}
    gpt = PriorConfig(
        mode="stream", order="diagonal", latent=(8, 4, 4), condition="frame", window=4, width=16, heads=2, layers=1,
        feedforward=16, dropout=0.0, **CODES,
    )  # fmt: skip
    prior = Prior(gpt, vqvae.codebook.embedding)
    save_two(run / "prior", prior, {"kind": "prior", "model": asdict(gpt), "world": TOY.to_json()} | made)
    told = {"variable_mean": (1.5,), "variable_std": (1.0,), "variable_low": (0.0,), "variable_high": (3.0,)}
    heads = OutcomeConfig(latent=(4, 4), variables=1, changes=((-1.0, 0.0, 1.0),), width=8, **told, **CODES)
    outcome = OutcomeModel(heads, vqvae.codebook.embedding)
    save_two(run / "outcome", outcome, {"kind": "outcome", "model": asdict(heads)} | made)
    contexts = Context(torch.randint(16, (4, 4, 4, 4, 1)), torch.rand(4, 4, 3), torch.rand(4, 4, 1))
    contexts.save(run / CONTEXTS, made["vqvae"])
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
