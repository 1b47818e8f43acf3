"""Models that are built and run in milliseconds. Tests change what they are about."""

from __future__ import annotations

from typing import Any

from worldmodel.models.prior_config import PriorConfig
from worldmodel.models.vqvae_config import VQVAEConfig

VQVAE_SETTINGS: dict[str, Any] = {
    "mode": "stream",
    "n_frames": 8,
    "frame_size": (16, 16),
    "stride": (1, 4, 4),
    "hidden_channels": 8,
    "residual_channels": 8,
    "n_res_blocks": 1,
    "n_codes": 8,
    "embedding_dim": 4,
    "window": 2,
}
PRIOR_SETTINGS: dict[str, Any] = {
    "mode": "stream",
    "decoding_order": "diagonal",
    "latent_shape": (4, 4, 4),
    "n_codes": 8,
    "embedding_dim": 4,
    "window": 3,
    "d_model": 16,
    "n_heads": 2,
    "n_layers": 2,
    "d_ff": 32,
}


def tiny_vqvae(**changes: Any) -> VQVAEConfig:
    return VQVAEConfig(**VQVAE_SETTINGS | changes)


def tiny_prior(**changes: Any) -> PriorConfig:
    return PriorConfig(**PRIOR_SETTINGS | changes)
