"""The first stage: a VQ-VAE trained on the frames of a store (section 3, Table 8).

train/vqvae.py and rollout/ablate.py both run it. It is in the library because no script imports another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.data.clips import Clips
from worldmodel.data.env_spec import EnvSpec
from worldmodel.data.opening import open_store
from worldmodel.data.prior_dataset import condition_scale
from worldmodel.data.shard_cache import CacheArgs
from worldmodel.data.store import Store
from worldmodel.data.streams import Streams
from worldmodel.metrics.frames import nmse, psnr
from worldmodel.models.loading import AnyVQVAE, load_vqvae
from worldmodel.models.quantizer import codebook_usage
from worldmodel.models.recurrent_vqvae import RecurrentVQVAE
from worldmodel.models.vqvae import VQVAE
from worldmodel.models.vqvae_config import VQVAEConfig, VQVAESettings
from worldmodel.training.step import Batch, eval_mode
from worldmodel.training.trainer import fit, rank_share
from worldmodel.training.trainer_config import TrainerConfig
from worldmodel.training.verdicts import judge_reconstructions, judge_split
from worldmodel.utils.checkpoint import checkpoints, read_checkpoint, weights_digest
from worldmodel.utils.errors import UserError
from worldmodel.utils.run_args import StageArgs
from worldmodel.utils.settings import Address, AtLeast2, Positive
from worldmodel.utils.video_io import add_video, side_by_side, upscale

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


MIN_VARIANCE = 1e-9
"""Smallest variance of pixels in [-0.5, 0.5]; below it there is nothing to learn."""


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
    """Number of clips of the validation split to evaluate on. past_frames: a quarter more, from starts of episodes."""
    n_eval_frames: AtLeast2 = 30
    """past_frames: number of frames of such a clip. The first one is given to the model."""
    init_from: Path | None = None
    """Folder of a VQ-VAE whose weights to start from; by default random weights. Its codebook may have another shape,
    such as several smaller codebooks with the same total dimension."""


def init_model_from(folder: Path, model: AnyVQVAE) -> dict[str, str]:
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
            f"{folder} is a VQ-VAE with other sizes; only n_codes may differ, and n_codebooks if "
            "n_codebooks * embedding_dim stays the same"
        ) from None
    return {"init_from": weights_digest(folder)}


def pixel_variance(clips: Clips, seed: int = 0, n: int = 256) -> float:
    """Variance of pixels in [-0.5, 0.5] over `n` random clips, by which the loss and NMSE are divided."""
    frames = clips.sample(np.random.default_rng(seed), n)["frames"]
    variance = float(np.var(frames / np.float32(255), dtype=np.float64))
    if variance < MIN_VARIANCE:
        raise UserError(f"all pixels of {clips.store.path} are equal; look at the frames, and record them again")
    return variance


def keep_or(args: VQVAEStage, name: str, measure: Callable[[], Any]) -> Any:
    """A setting of the model that a run which continues keeps, and a new one measures."""
    folder = args.run / "vqvae"
    if checkpoints(folder) and not args.restart:
        return read_checkpoint(folder).config["model"][name]
    return measure()


def data_variance(args: VQVAEStage, clips: Clips) -> float:
    """`pixel_variance` of the training clips; a run that continues keeps its own."""
    return float(keep_or(args, "data_variance", lambda: pixel_variance(clips)))


def action_scale(args: VQVAEStage, train: Streams) -> tuple[float, ...]:
    """`condition_scale` of the first batch's actions; a run that continues keeps its own."""
    spec = train.store.env_spec

    def measure() -> tuple[float, ...]:
        actions = train.read(0)["action"][:, :-1]  # the last row of an episode has no action
        return condition_scale(spec, spec.action.encode(actions))

    return tuple(keep_or(args, "action_scale", measure))


@torch.no_grad()
def reconstruct_clips(model: AnyVQVAE, clips: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Codes (b, T, H, W, g) and reconstructions (b, t, h, w, c) uint8 of clips, on the CPU; eight clips at a time."""
    actions = clips["actions"].split(8) if "actions" in clips else repeat(None)
    parts = zip(clips["frames"].split(8), actions, strict=False)
    with eval_mode(model):
        pairs = [model.reconstruct(frames, actions=led) for frames, led in parts]
    codes, decoded = (torch.cat(tensors).cpu() for tensors in zip(*pairs, strict=True))
    return codes, decoded


@torch.no_grad()
def evaluate(model: AnyVQVAE, clips: dict[str, Tensor], fps: float, writer: SummaryWriter, step: int) -> list[str]:
    """Log the reconstruction of held-out clips: NMSE, PSNR, codebook usage and a video.

    A recurrent VQ-VAE is given the first frame, and makes the others from its own reconstructions. PSNR is also
    logged for the next frame and for the last one, which shows whether errors accumulate.

    Args:
        model: The VQ-VAE.
        clips: "frames" (b, t, h, w, c) and their "episode" (b,), for a recurrent VQ-VAE also "actions" (b, t, a).
        fps: Frames per second of the video.
        writer: Where to log.
        step: Training step.

    Returns:
        Verdicts.
    """
    codes, decoded = reconstruct_clips(model, clips)
    seen, truth, episode = decoded.numpy(), clips["frames"].cpu().numpy(), clips["episode"].cpu().numpy()
    verdicts, variance = judge_split(episode), model.config.data_variance
    if truth.shape[1] > 1:
        ours, copied = (nmse(video, truth[:, 1:], variance).mean(1) for video in (seen[:, 1:], truth[:, :-1]))
        verdicts.append(judge_reconstructions(ours, copied, episode))
    if recurrent := bool(model.config.past_frames):
        codes, seen, truth = codes[:, 1:], seen[:, 1:], truth[:, 1:]
    writer.add_scalar("held_out/nmse", nmse(seen, truth, variance).mean(), step)
    by_frame = psnr(seen, truth)
    writer.add_scalar("held_out/psnr", by_frame.mean(), step)
    for ahead in sorted({1, truth.shape[1]}) if recurrent else ():
        writer.add_scalar(f"held_out/psnr_{ahead}", by_frame[:, ahead - 1].mean(), step)
    for name, value in codebook_usage(codes, model.config.n_codes).items():
        writer.add_scalar(f"held_out/{name}", value, step)
    if codes.shape[1] > 1:
        writer.add_scalar("held_out/codes_kept", (codes[:, 1:] == codes[:, :-1]).float().mean(), step)
    video = upscale(side_by_side([truth[:4], seen[:4]]), 2)
    add_video(writer, "held_out/truth_and_reconstruction", video, step, fps)
    return verdicts


def train_vqvae(args: VQVAEStage) -> None:
    """Train a VQ-VAE into <run>/vqvae.

    Raises:
        UserError: If the store has other frames than the model, and as `fit`.
    """
    path = args.data or args.run / "data.zarr"
    store = open_store(path, args.shard_cache())
    if store.env_spec.frame_shape != (*args.model.frame_size, args.model.channels):
        raise UserError(
            f"{store.path} has frames of {store.env_spec.frame_shape}, but the VQ-VAE is set to "
            f"{(*args.model.frame_size, args.model.channels)}; set --model.frame-size and --model.channels, or "
            "record such frames"
        )
    (train_on_streams if args.model.past_frames else train_on_clips)(args, store)


def train_on_clips(args: VQVAEStage, store: Store) -> None:
    """Train the VQ-VAE of the paper, on clips from anywhere."""
    share = rank_share(args.trainer)
    train, valid = (Clips(store, split, args.model.n_frames, ["frames"]) for split in ("train", "valid"))
    torch.manual_seed(args.trainer.seed)
    model = VQVAE(VQVAEConfig(**vars(args.model), data_variance=data_variance(args, train))).to(args.device)
    held = valid.fixed_sample(min(args.n_eval_clips, len(valid)))
    clips = {name: torch.from_numpy(held[name]).to(args.device) for name in ("frames", "episode")}
    fit(
        model,
        loss=lambda batch: model(batch["frames"]),
        sample=lambda rng, step: train.sample(rng, args.trainer.batch_size, share),
        evaluate=lambda writer, step: evaluate(model, clips, store.env_spec.fps, writer, step),
        **fit_settings(args, store, model),
    )


def train_on_streams(args: VQVAEStage, store: Store) -> None:
    """Train a recurrent VQ-VAE: lanes go through episodes from start to end, each from its own reconstructions."""
    share = rank_share(args.trainer)
    arrays, env_spec = ["frames"] + ["action"] * ("action" in store.array_names), store.env_spec
    train = Streams(store, "train", args.trainer.batch_size, args.model.n_frames, arrays, args.trainer.seed)
    valid = Clips(store, "valid", args.n_eval_frames, arrays)
    some = Clips(store, "train", args.n_eval_frames, ["frames"])
    derived: dict[str, Any] = {"data_variance": data_variance(args, some)}
    if "action" in arrays:
        derived |= {"action_dim": env_spec.action.encoded_dim, "action_scale": action_scale(args, train)}
    torch.manual_seed(args.trainer.seed)
    model = RecurrentVQVAE(VQVAEConfig(**vars(args.model), **derived)).to(args.device)
    lanes = {"lanes": model.start(torch.from_numpy(train.read(0, share)["frames"][:, 0])).to(args.device)}

    def loss(batch: Batch) -> dict[str, Tensor]:
        frames, fresh = batch["frames"], batch["fresh"][:, None, None, None, None]
        state = torch.where(fresh, model.start(frames[:, 0]), batch["lanes"])
        values, after = model(frames, batch["actions"][:, 1:], state)
        return values | {"lanes": after}

    n = min(args.n_eval_clips, len(valid))
    parts = [valid.fixed_sample(n), valid.first_of_episodes(max(1, n // 4))]  # an episode is encoded from its start
    parts = [part | encode_actions(env_spec, part) for part in parts]
    held = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    clips = {name: torch.from_numpy(held[name]).to(args.device) for name in ("frames", "actions", "episode")}
    fit(
        model,
        loss=loss,
        sample=lambda rng, step: encode_actions(env_spec, train.read(step, share)),
        evaluate=lambda writer, step: evaluate(model, clips, env_spec.fps, writer, step),
        state=lanes,
        **fit_settings(args, store, model),
    )


def encode_actions(env_spec: EnvSpec, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Add "actions" (b, t, a) to rows of a store (b, t, ...): the encoded action that led into each frame.

    The first one is not known; it is zeros.
    """
    none = np.zeros((*rows["frames"].shape[:2], 0), np.float32)
    actions = env_spec.action.encode_led(rows["action"][:, :-1]) if "action" in rows else none
    return {name: rows[name] for name in ("frames", "fresh") if name in rows} | {"actions": actions}


def fit_settings(args: VQVAEStage, store: Store, model: AnyVQVAE) -> dict[str, Any]:
    """The arguments of `fit` that both kinds of VQ-VAE share."""
    init_settings = {} if args.init_from is None else init_model_from(args.init_from, model)
    settings = {"kind": "vqvae", "model": asdict(model.config), "env_spec": store.env_spec.to_json()} | init_settings
    return {
        "config": args.trainer,
        "out": args.run / "vqvae",
        "settings": settings,
        "restart": args.restart,
        "data": store.checksums,
    }
