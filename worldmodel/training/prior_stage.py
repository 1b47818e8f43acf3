"""The third stage: a prior trained on codes (section 3, Table 9).

train/prior.py and rollout/ablate.py both run it. It is in the library because no script imports another.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from worldmodel.data.opening import open_frame_store, open_tokens
from worldmodel.data.prior_dataset import (
    PriorBatch,
    PriorDataset,
    batch_features,
    bits_per_code,
    condition_scale,
    to_batch,
)
from worldmodel.data.shard_cache import CacheArgs
from worldmodel.generation.generate import continue_clips, decode_clips
from worldmodel.models.loading import AnyVQVAE, load_vqvae
from worldmodel.models.prior import Prior
from worldmodel.models.prior_config import Conditioning, PriorConfig, PriorSettings
from worldmodel.training.step import Batch, eval_mode
from worldmodel.training.trainer import fit, rank_share
from worldmodel.training.trainer_config import TrainerConfig
from worldmodel.training.verdicts import judge_actions, judge_codes, judge_split
from worldmodel.utils.checkpoint import load_weights, read_checkpoint, weights_digest
from worldmodel.utils.compatibility import check_vqvae
from worldmodel.utils.errors import UserError
from worldmodel.utils.run_args import StageArgs
from worldmodel.utils.settings import Address, Positive
from worldmodel.utils.video_io import add_video, side_by_side, upscale

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True, kw_only=True)
class PriorStage(CacheArgs, StageArgs):
    """Train a prior over the codes of a store."""

    actions: bool = False
    """Condition the prior on actions."""
    every_action: bool = False
    """paper mode: also condition on the action that led into the clip. Table 9 has 64 numbers for BAIR, which are 16
    actions of a clip of 16 frames, but 60 for Health Gathering Supreme, which are 15."""
    classes: bool = False
    """Condition the prior on the class of the episode."""
    data: Address | None = None
    """Store of frames that conditioning frames are read from; <run>/data.zarr by default."""
    n_latent_frames: Positive = 16
    """stream mode: number of latent frames of a training clip; in paper mode it is the VQ-VAE's."""
    model: PriorSettings = field(default_factory=lambda: PriorSettings(mode="stream", decoding_order="diagonal"))
    """Architecture."""
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(lr_schedule="cosine"))
    """Optimization, logging and checkpoints."""
    terminal_frames: bool = True
    """Also train on the last frames of episodes. ViZDoom does not render the end of an episode but repeats the frame
    before it: leave these frames out (--no-terminal-frames) if the outcome model predicts termination from the past
    (train/outcome.py --predict-from-past)."""
    n_eval_clips: Positive = 64
    """Number of clips of the validation split to evaluate on."""
    out: str = "prior"
    """Name of the prior's folder inside the run folder."""
    init_from: Path | None = None
    """Folder of a prior of the same sizes whose weights to start from; by default random weights."""


def check_inputs(args: PriorStage, vqvae: AnyVQVAE, action_dim: int, n_classes: int) -> None:
    """Check that the settings fit the VQ-VAE and the data.

    Args:
        args: Settings of the stage.
        vqvae: The VQ-VAE that encoded the codes.
        action_dim: Length of one encoded action.
        n_classes: Number of classes of the data.

    Raises:
        UserError: If the modes differ, or actions, classes or reconstructions are missing.
    """
    v = vqvae.config
    if v.mode != args.model.mode:
        raise UserError(
            f"the VQ-VAE is in {v.mode} mode, but the prior is in {args.model.mode} mode; set --model.mode {v.mode}"
        )
    for name, asked, there in (("actions", args.actions, action_dim), ("classes", args.classes, n_classes)):
        if asked and not there:
            raise UserError(f"{args.run} was recorded without {name}; train without --{name}")
    if args.model.image_input and not v.past_frames:
        raise UserError(
            f"{args.run / 'vqvae'} is not a recurrent VQ-VAE, so its codes have no reconstructions beside them; leave "
            "--model.image-input out"
        )
    if v.action_dim and not args.actions:
        raise UserError(f"{args.run / 'vqvae'} decodes frames with the help of actions; add --actions")


def configure(args: PriorStage, vqvae: AnyVQVAE, action_dim: int, n_classes: int = 0) -> PriorConfig:
    """The config of the prior for a VQ-VAE; arguments and errors are those of `check_inputs`."""
    check_inputs(args, vqvae, action_dim, n_classes)
    v, clip = vqvae.config, args.model.mode == "paper"
    frames = v.latent_shape[0] if clip else args.n_latent_frames
    actions = (v.n_frames - (not args.every_action) if clip else v.stride[0]) * action_dim * args.actions
    n_classes *= args.classes
    condition: Conditioning = ("clip" if clip else "frame") if actions + n_classes else "none"
    return PriorConfig(
        **vars(args.model),
        latent_shape=(frames, *v.latent_shape[1:]),
        n_codebooks=v.n_codebooks,
        n_codes=v.n_codes,
        embedding_dim=v.embedding_dim,
        conditioning=condition,
        condition_dim=actions + n_classes,
        n_classes=n_classes,
        cond_frame_shape=(*v.frame_size, v.channels),
    )


def evaluate(
    prior: Prior,
    vqvae: AnyVQVAE,
    heldout_batch: PriorBatch,
    fps: float,
    writer: SummaryWriter,
    step: int,
) -> list[str]:
    """Log bits per code of held-out clips, and a video of clips sampled under their conditions.

    Args:
        prior: The prior.
        vqvae: The VQ-VAE that decodes its codes.
        heldout_batch: The clips.
        fps: Frames per second of the video.
        writer: Where to log.
        step: Training step.

    Returns:
        Verdicts.
    """
    assert heldout_batch.episode is not None
    episode = heldout_batch.episode.cpu().numpy()
    verdicts = judge_split(episode)

    with eval_mode(prior):
        true = bits_per_code(prior, heldout_batch, batch_size=8)
        writer.add_scalar("held_out/bits_per_dim", true.mean(), step)
        writer.add_scalar("held_out/bits_per_frame", true.mean() * prior.config.codes_per_frame, step)
        if heldout_batch.condition is not None and len(episode) > 1:
            others = replace(heldout_batch, condition=heldout_batch.condition.roll(-1, 0))
            shuffled = bits_per_code(prior, others, batch_size=8)
            writer.add_scalar("held_out/bits_per_dim_shuffled_conditions", shuffled.mean(), step)
            if not prior.config.n_classes:  # with classes, those are shuffled too
                verdicts.append(judge_actions(true, shuffled, episode))
        if prior.config.n_classes or heldout_batch.condition is None:
            rare = vqvae.quantizer.bits_by_frequency(heldout_batch.codes).flatten(1).mean(1).cpu().numpy()
            verdicts.append(judge_codes(true, rare, episode))
        few, frames = heldout_batch[:4], heldout_batch.codes.shape[1]
        known = 0 if prior.config.mode == "paper" else frames // 4
        generator = torch.Generator().manual_seed(0)
        sampled = continue_clips(vqvae, prior, few, known, frames, generator)[1]
        videos = [video.cpu().numpy() for video in (decode_clips(vqvae, few), sampled)]
        add_video(writer, "held_out/truth_and_sample", upscale(side_by_side(videos), 2), step, fps)
    return verdicts


def init_prior_from(folder: Path, prior: Prior, vqvae: Path) -> None:
    """Initialize a prior from another one, of the same VQ-VAE or of the one that this VQ-VAE was started from.

    Args:
        folder: Folder of the other prior.
        prior: Prior to initialize, in place. It keeps its own codebook; the other prior's weights soon adapt to it.
        vqvae: Folder of its VQ-VAE.

    Raises:
        UserError: If the other prior is of another VQ-VAE, or has other sizes.
    """
    codebook, made_with = prior.codebook.clone(), str(read_checkpoint(folder).config.get("vqvae"))
    if made_with.partition("+")[0] != read_checkpoint(vqvae).config.get("init_from"):
        check_vqvae(str(folder), made_with, vqvae, codebook_only=True)
    load_weights(folder, prior)
    prior.codebook.copy_(codebook)


def train_prior(args: PriorStage) -> None:
    """Train a prior into <run>/<out>.

    Raises:
        UserError: If the codes are from another VQ-VAE, the data lacks what the prior takes, and as `fit`.
    """
    store, share = open_tokens(args.run), rank_share(args.trainer)
    vqvae, env_spec = load_vqvae(args.run / "vqvae").to(args.device), store.env_spec
    check_vqvae(store.path, store.settings["vqvae"]["weights"], args.run / "vqvae")
    torch.manual_seed(args.trainer.seed)
    config = configure(args, vqvae, env_spec.action.encoded_dim, len(env_spec.classes))
    path = args.data or args.run / "data.zarr"
    data = open_frame_store(store, path, args.shard_cache()) if config.n_cond_frames else None
    train, valid = (PriorDataset(config, store, split, data, args.terminal_frames) for split in ("train", "valid"))
    if args.actions and env_spec.action.kind == "Box":  # one-hot actions are not scaled, so nothing is read
        some = train.sample(np.random.default_rng(0), 256)["condition"]
        config = replace(config, condition_scale=condition_scale(env_spec, some, config.n_classes))
    prior = Prior(config, vqvae.quantizer.embedding).to(args.device)
    if args.init_from is not None:
        init_prior_from(args.init_from, prior, args.run / "vqvae")

    def loss(arrays: Batch) -> dict[str, Tensor]:
        given = to_batch(arrays)
        value = prior.loss(given.codes, given.condition, batch_features(prior, given)).mean()
        return {"loss": value, "bits_per_dim": value.detach() / math.log(2)}

    held = valid.fixed_sample(min(args.n_eval_clips, len(valid))).to(args.device)
    fit(
        prior,
        loss=loss,
        sample=lambda rng, step: train.sample(rng, args.trainer.batch_size, share),
        config=args.trainer,
        out=args.run / args.out,
        settings={
            "kind": "prior",
            "model": asdict(prior.config),
            "env_spec": env_spec.to_json(),
            "vqvae": store.settings["vqvae"]["weights"],
            "init_from": None if args.init_from is None else weights_digest(args.init_from),
            "terminal_frames": args.terminal_frames,
        },
        evaluate=lambda writer, step: evaluate(prior, vqvae, held, env_spec.fps / vqvae.config.stride[0], writer, step),
        restart=args.restart,
        data=store.checksums | {f"frames/{name}": n for name, n in (data.checksums if data else {}).items()},
    )
