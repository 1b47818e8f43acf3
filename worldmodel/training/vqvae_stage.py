"""The first stage: a VQ-VAE trained on the frames of a store (section 3, Table 8).

train/vqvae.py and rollout/ablate.py both run it. It is in the library because no script imports another.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from worldmodel.data.clips import Clips
from worldmodel.data.shard_cache import CacheArgs
from worldmodel.data.store import Store
from worldmodel.metrics.frames import nmse, psnr
from worldmodel.models.loading import load_vqvae
from worldmodel.models.quantizer import codebook_usage
from worldmodel.models.vqvae import VQVAE, VQVAEConfig, VQVAESettings, to_uint8
from worldmodel.training.trainer import TrainerConfig, eval_mode, fit
from worldmodel.utils.checkpoint import weights_digest
from worldmodel.utils.errors import UserError
from worldmodel.utils.run_args import StageArgs
from worldmodel.utils.settings import Address, Positive
from worldmodel.utils.video_io import add_video, side_by_side, upscale


@dataclass(frozen=True, kw_only=True)
class VQVAEStage(CacheArgs, StageArgs):
    """Train a VQ-VAE on the frames of a store."""

    data: Address | None = None
    """Store of frames to train on; <run>/data.zarr by default."""
    model: VQVAESettings = field(default_factory=lambda: VQVAESettings(mode="stream"))
    """Architecture and loss."""
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(learning_rate=7e-4))
    """Optimization, logging and checkpoints."""
    n_eval_clips: Positive = 32
    """Number of clips of the validation split to evaluate on."""
    init_from: Path | None = None
    """Folder of a VQ-VAE whose weights to start from; by default random weights. Its codebook may have another shape,
    such as several smaller codebooks with the same total dimension."""


def init_model_from(folder: Path, model: VQVAE) -> dict[str, str]:
    """Initialize a model from the weights of another; a codebook of another shape is initialized from data.

    Args:
        folder: Folder of the other VQ-VAE.
        model: Model to initialize, in place.

    Returns:
        What to add to the run's config.

    Raises:
        UserError: If other sizes differ too.
    """
    other = load_vqvae(folder)
    if other.quantizer.embedding.shape != model.quantizer.embedding.shape:
        other.quantizer = model.quantizer  # not initialized: its codes become encoder outputs in the first step
    try:
        model.load_state_dict(other.state_dict())
    except RuntimeError:
        raise UserError(
            f"{folder} is a VQ-VAE with other sizes; only n_codes, embedding_dim and n_codebooks may differ"
        ) from None
    return {"init_from": weights_digest(folder)}


def pixel_variance(clips: Clips, seed: int = 0, n: int = 256) -> float:
    """Variance of pixels in [-0.5, 0.5] over `n` random clips, by which the loss and NMSE are divided."""
    frames = clips.sample(np.random.default_rng(seed), n)["frames"]
    return float(np.var(frames / np.float32(255), dtype=np.float64))


def evaluate(model: VQVAE, frames: torch.Tensor, fps: float, writer: SummaryWriter, step: int) -> None:
    """Log the reconstruction of held-out clips (b, t, h, w, c): NMSE, PSNR, codebook usage and a video."""
    with eval_mode(model):
        codes = torch.cat([model.encode(part) for part in frames.split(8)])
        decoded = torch.cat([to_uint8(model.decode(part)) for part in codes.split(8)]).cpu().numpy()
    truth = frames.cpu().numpy()
    writer.add_scalar("held_out/nmse", nmse(decoded, truth, model.config.data_variance).mean(), step)
    writer.add_scalar("held_out/psnr", psnr(decoded, truth).mean(), step)
    for name, value in codebook_usage(codes, model.config.n_codes).items():
        writer.add_scalar(f"held_out/{name}", value, step)
    writer.add_scalar("held_out/codes_kept", (codes[:, 1:] == codes[:, :-1]).float().mean(), step)
    video = upscale(side_by_side([truth[:4], decoded[:4]]), 2)
    add_video(writer, "held_out/truth_and_reconstruction", video, step, fps)


def train_vqvae(args: VQVAEStage) -> None:
    """Train a VQ-VAE into <run>/vqvae.

    Raises:
        UserError: If the store has other frames than the model, and as `fit`.
    """
    path = args.data or args.run / "data.zarr"
    store = Store(path, args.shard_cache(path))
    if store.env_spec.frame_shape != (*args.model.frame_size, args.model.channels):
        raise UserError(
            f"{store.path} has frames of {store.env_spec.frame_shape}, but the VQ-VAE is set to "
            f"{(*args.model.frame_size, args.model.channels)}; set --model.frame-size or record frames of that size"
        )
    train, valid = (Clips(store, split, args.model.n_frames, ["frames"]) for split in ("train", "valid"))
    torch.manual_seed(args.trainer.seed)
    model = VQVAE(VQVAEConfig(**vars(args.model), data_variance=pixel_variance(train))).to(args.device)
    init_settings = {} if args.init_from is None else init_model_from(args.init_from, model)
    frames = torch.from_numpy(valid.fixed_sample(min(args.n_eval_clips, len(valid)))["frames"]).to(args.device)
    fit(
        model,
        loss=lambda batch: model(batch["frames"]),
        sample=lambda rng: train.sample(rng, args.trainer.batch_size),
        config=args.trainer,
        out=args.run / "vqvae",
        settings={"kind": "vqvae", "model": asdict(model.config), "env_spec": store.env_spec.to_json()} | init_settings,
        evaluate=lambda writer, step: evaluate(model, frames, store.env_spec.fps, writer, step),
        restart=args.restart,
    )
