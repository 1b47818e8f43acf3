"""What a dream accepts: parts that fit each other, recorded frames, and contexts."""

from __future__ import annotations

from typing import Any

import numpy as np

from worldmodel.data.env_spec import EnvSpec
from worldmodel.generation.context import Context
from worldmodel.models.outcome_config import OutcomeConfig
from worldmodel.models.prior_config import PriorConfig
from worldmodel.models.vqvae_config import VQVAEConfig
from worldmodel.utils.errors import UserError


def check_parts(vqvae: VQVAEConfig, prior: PriorConfig, outcome: OutcomeConfig, env_spec: EnvSpec) -> None:
    """Check that the models fit each other and the environment.

    Raises:
        UserError: Naming the first size in which they differ.
    """
    known: dict[str, tuple[Any, ...]] = {
        "frames": (env_spec.frame_shape, (*vqvae.frame_size, vqvae.channels)),
        "codes of a frame": (vqvae.latent_shape[1:], prior.latent_shape[1:], outcome.latent_size),
        "codebooks": (
            (vqvae.n_codebooks, vqvae.n_codes, vqvae.embedding_dim),
            (prior.n_codebooks, prior.n_codes, prior.embedding_dim),
            (outcome.n_codebooks, outcome.n_codes, outcome.embedding_dim),
        ),
        "conditions": (env_spec.action.encoded_dim * vqvae.stride[0], prior.condition_dim, outcome.condition_dim),
        "game variables": (len(env_spec.variables), outcome.n_variables),
    }
    for what, sizes in known.items():
        if len(set(sizes)) > 1:
            each = ", ".join(map(str, sizes))
            raise UserError(f"models and environment do not fit each other: their {what} are {each}; train them again")


def check_recording(
    frames: np.ndarray, actions: np.ndarray, variables: np.ndarray | None, env_spec: EnvSpec, most: int
) -> None:
    """Check frames that a context is to be encoded from.

    Args:
        frames: (b, t, H, W, channels).
        actions: (b, t - 1, *action shape).
        variables: (b, t, v), or None if they are unknown.
        env_spec: The environment.
        most: Most frames.

    Raises:
        UserError: If a shape, a type or a value does not fit the environment, or there are too many frames.
    """
    if frames.dtype != np.uint8 or frames.ndim != 5 or frames.shape[1] < 1:
        raise UserError(
            f"a context needs at least one frame, as uint8 (batch, time, height, width, channels), not "
            f"{frames.dtype} {frames.shape}"
        )
    n, t, v = *frames.shape[:2], len(env_spec.variables)
    if t > most:
        raise UserError(f"a context of {t:,} frames is too long; give the last {most} of them, or fewer")
    if actions.shape[1:2] != (t - 1,):
        given = actions.shape[1] if actions.ndim > 1 else "none"
        raise UserError(f"{t} frames have {t - 1} actions between them, but {given} are given")
    if variables is None:
        return
    if variables.shape != (n, t, v):
        raise UserError(
            f"{env_spec.name} has {v} game variables at each of {t} frames, but {variables.shape[1:]} are given"
        )
    with np.errstate(over="ignore"):
        finite = np.isfinite(variables.astype(np.float32)).all()
    if not finite:
        raise UserError("game variables must be finite numbers; leave out `variables` if they are unknown")


def check_context(context: Context, vqvae: VQVAEConfig, prior: PriorConfig, outcome: OutcomeConfig) -> None:
    """Check a context.

    Raises:
        UserError: If its shapes or values do not fit the models.
    """
    b, t = context.codes.shape[:2]
    wanted = {
        "codes": (b, t, *prior.latent_shape[1:], prior.n_codebooks),
        "condition": (b, t, prior.condition_dim),
        "variables": (b, t, outcome.n_variables),
    }
    if vqvae.past_frames:
        wanted["state"] = (b, vqvae.past_frames + 1, *vqvae.frame_size, vqvae.channels)
    if context.tensors().keys() != wanted.keys():
        raise UserError(
            f"this context has {', '.join(context.tensors())}, but this dream takes {', '.join(wanted)}; encode it "
            "again"
        )
    for name, shape in wanted.items():
        tensor = getattr(context, name)
        if tensor.shape != shape or not b * t:
            raise UserError(
                f"the {name} of this context have shape {tuple(tensor.shape)}, but this dream takes {shape}"
            )
        if not tensor.isfinite().all():
            raise UserError(f"the {name} of this context are not finite; encode the context again")
    if not 0 <= context.codes.min() <= context.codes.max() < prior.n_codes:
        raise UserError(
            f"this context has codes that are not between 0 and {prior.n_codes - 1}; encode the context again"
        )
