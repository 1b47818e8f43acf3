"""The fourth stage, run by train/outcome.py: a model of reward, termination and game variables."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.data.clips import ALL, RECONSTRUCTION, read_windows
from worldmodel.data.opening import open_tokens
from worldmodel.data.prior_dataset import condition_scale
from worldmodel.data.store import Store
from worldmodel.generation.bfloat16 import trial_outputs
from worldmodel.models.loading import AnyVQVAE, load_prior, load_vqvae
from worldmodel.models.outcome_config import OutcomeConfig
from worldmodel.models.reward_done import OutcomeModel
from worldmodel.training.dreamed_windows import DreamedWindows
from worldmodel.training.encoding import Rows
from worldmodel.training.outcome_verdicts import outcome_verdicts
from worldmodel.training.step import Batch, eval_mode
from worldmodel.training.trainer import fit, rank_share
from worldmodel.training.trainer_config import TrainerConfig
from worldmodel.training.verdicts import judge_split
from worldmodel.utils.checkpoint import checkpoints, read_checkpoint, weights_digest
from worldmodel.utils.compatibility import check_vqvae
from worldmodel.utils.errors import UserError
from worldmodel.utils.hardware import verified_precision
from worldmodel.utils.run_args import StageArgs
from worldmodel.utils.settings import Channels, Count, Fraction, Positive

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TARGETS = ("condition", "reward", "done", "variables")
"""Arrays that the model is trained on, in addition to codes."""
IMAGE_CHANNELS = 32
"""Channels of the features of reconstructions, for the codes of a recurrent VQ-VAE."""


MIN_SHARE = 1e-4
"""Smallest share that a change is weighted by; a rarer change gets no larger weight."""
CONTEXT = 8
"""Number of recorded latent frames that each dreamed sequence starts from."""


@dataclass(frozen=True, kw_only=True)
class OutcomeStage(StageArgs):
    """Train an outcome model on the codes of a store."""

    n_latent_frames: Positive = 48
    """Number of latent frames of a training sequence."""
    hidden_dim: Channels = 256
    """Width of the GRU."""
    predict_from_past: bool = False
    """Predict termination and changes of variables before their frame. It is for engines that do not render them, such
    as deaths in ViZDoom."""
    n_stacked_frames: Count = 0
    """Number of last latent frames that convolutions see, to detect motion; 0 for a linear layer over the newest."""
    class_balance: Fraction = 0.5
    """How much more rare changes of game variables count in training. With 0 all rows count equally, with 1 all
    changes do. Predicted probabilities remain those of the data."""
    n_dreams: Count = 0
    """Number of dreamed sequences, which make half of every batch; 0 trains on recordings alone. The prior of the run
    continues recordings under the recorded actions, and the targets are what happened in the recording."""
    dream_steps: Positive = 12
    """Number of latent frames dreamed in each sequence."""
    trainer: TrainerConfig = field(
        default_factory=lambda: TrainerConfig(steps=2000, lr_schedule="cosine", learning_rate=1e-3)
    )
    """Optimization, logging and checkpoints."""
    n_eval_clips: Positive = 256
    """Number of sequences of the validation split to evaluate on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_dreams and self.n_latent_frames < (least := CONTEXT + self.dream_steps):
            raise UserError(f"dreamed sequences have {least} latent frames; n_latent_frames must be at least that")
        if self.n_dreams and self.trainer.batch_size < 2:
            raise UserError("dreams are half of every batch; trainer.batch_size must be at least 2")


class EpisodeWindows:
    """Sequences of codes that start anywhere in an episode, padded after its end; `mask` marks the real rows.

    With clips that are wholly inside episodes, termination could only occur in the last row and far too rarely. The
    model would learn to predict it there and never earlier.
    """

    def __init__(self, store: Store, split: str, length: int) -> None:
        bounds = [store.episode_bounds(i) for i in store.episode_indices(split)]
        self.store, self.length = store, length
        self.rows = {name: np.concatenate([store.read(name, a, b) for a, b in bounds]) for name in ("codes", *TARGETS)}
        self.rows["codes"] = self.rows["codes"].astype(np.int32)  # torch does not index with uint16
        sizes = [b - a for a, b in bounds]
        self.episode_stop = np.repeat(np.cumsum(sizes), sizes)
        """For each row, the row after the last one of its episode, which also identifies the episode."""
        self.store_row = np.concatenate([np.arange(a, b) for a, b in bounds])

    def variable_changes(self, most: int = 64) -> tuple[tuple[float, ...], ...]:
        """Changes of each game variable from row to row.

        Args:
            most: Largest number of changes; a variable with more has their quantiles, and zero.

        Returns:
            For each variable its distinct changes, ascending, padded with the largest to equal length.
        """
        change = self._changes()
        found = [np.unique(column) for column in change.T]
        for v, column in enumerate(change.T):
            if len(found[v]) > most:
                found[v] = np.unique(np.append(np.quantile(column[column != 0], np.linspace(0, 1, most - 1)), 0))
        longest = max(map(len, found), default=0)
        return tuple(tuple(np.pad(f, (0, longest - len(f)), "edge").tolist()) for f in found)

    def change_weights(
        self, changes: tuple[tuple[float, ...], ...], class_balance: float
    ) -> tuple[tuple[float, ...], ...]:
        """Weights of `variable_changes` in the loss, which rise as a change gets rarer; their mean over rows is 1.

        Args:
            changes: Those of `variable_changes`.
            class_balance: As in `OutcomeStage`.
        """
        weights = []
        for possible, column in zip(changes, self._changes().T, strict=True):
            middles = (np.array(possible[1:]) + possible[:-1]) / 2  # between neighbors, to find the nearest one
            nearest = np.searchsorted(middles, column)
            share = np.bincount(nearest, minlength=len(possible)) / len(column)
            weight = np.maximum(share, MIN_SHARE) ** -class_balance
            weights.append(tuple((weight / (share * weight).sum()).tolist()))
        return tuple(weights)

    def _changes(self) -> np.ndarray:
        """How the variables (n, v) change from row to row within episodes."""
        return np.diff(self.rows["variables"], axis=0)[self.episode_stop[1:] == self.episode_stop[:-1]]

    def sample(self, rng: np.random.Generator, n: int, share: slice = ALL) -> Rows:
        """Sample n sequences (n, length, ...), each starting at any row, and read a share of them."""
        return self.read(rng.integers(len(self.episode_stop), size=n)[share])

    def read(self, start: np.ndarray) -> Rows:
        """Read the sequences (n, length, ...) that start at rows (n,) of the split."""
        start = start[:, None]
        index = start + np.arange(self.length)
        within = np.minimum(index, self.episode_stop[start] - 1)
        sample = {name: rows[within] for name, rows in self.rows.items()} | {"mask": index < self.episode_stop[start]}
        if RECONSTRUCTION in self.store.array_names:
            images = read_windows(self.store, RECONSTRUCTION, self.store_row[within].ravel(), 1)[:, 0]
            sample["images"] = images.reshape(*within.shape, *images.shape[1:])
        return sample


def configure(args: OutcomeStage, store: Store, vqvae: AnyVQVAE, train: EpisodeWindows) -> OutcomeConfig:
    """The config of the outcome model: sizes from the VQ-VAE, statistics from the training split."""
    v, variables, changes = vqvae.config, train.rows["variables"], train.variable_changes()
    return OutcomeConfig(
        latent_size=v.latent_shape[1:],
        n_codebooks=v.n_codebooks,
        n_codes=v.n_codes,
        embedding_dim=v.embedding_dim,
        condition_dim=v.stride[0] * store.env_spec.action.encoded_dim,
        condition_scale=condition_scale(store.env_spec, train.rows["condition"]),
        n_variables=len(store.env_spec.variables),
        variable_mean=tuple(variables.mean(0).tolist()),
        variable_std=tuple((variables.std(0) + 1e-6).tolist()),
        variable_changes=changes,
        change_weights=train.change_weights(changes, args.class_balance) if args.class_balance else (),
        variable_low=tuple(variables.min(0).tolist()),
        variable_high=tuple(variables.max(0).tolist()),
        reward_rms=float(np.sqrt(np.square(train.rows["reward"]).mean())) or 1.0,
        hidden_dim=args.hidden_dim,
        frame_shape=(*v.frame_size, v.channels),
        image_channels=IMAGE_CHANNELS if v.past_frames else 0,
        predict_from_past=args.predict_from_past,
        n_stacked_frames=args.n_stacked_frames,
    )


def dream_splits(args: OutcomeStage, vqvae: AnyVQVAE, store: Store) -> dict[str, DreamedWindows]:
    """Dreamed sequences of the training and the validation split.

    Raises:
        UserError: If the run has no prior, or one of another VQ-VAE or kind.
    """
    folder = args.run / "prior"
    if not checkpoints(folder):
        raise UserError(f"{folder} has no prior to dream with; train it first, or leave --n-dreams out")
    prior = load_prior(folder).to(args.device)
    check_vqvae(str(folder), read_checkpoint(folder).config.get("vqvae"), args.run / "vqvae")
    if prior.config.conditioning != "frame" or prior.config.n_classes:
        raise UserError(f"{folder} is not conditioned on actions alone, frame by frame; train it with --actions")
    sizes = {"train": args.n_dreams, "valid": min(args.n_dreams, args.n_eval_clips)}
    vqvae, device = vqvae.to(args.device), prior.start_token.device
    figures = partial(trial_outputs, vqvae, prior)
    precision = verified_precision("dreams to train on", device, args.trainer.precision, figures)
    how: dict[str, Any] = {"seed": args.trainer.seed, "precision": precision}
    return {
        split: DreamedWindows(vqvae, prior, store, split, n, CONTEXT, args.dream_steps, **how)
        for split, n in sizes.items()
    }


def open_inputs(args: OutcomeStage) -> tuple[Store, AnyVQVAE]:
    """The codes of the run with their outcomes, and the VQ-VAE that made them.

    Raises:
        UserError: If the codes are from another VQ-VAE, or one in paper mode, or if the data lacks rewards or actions.
    """
    store, vqvae = open_tokens(args.run), load_vqvae(args.run / "vqvae")
    check_vqvae(store.path, store.settings["vqvae"]["weights"], args.run / "vqvae")
    if not vqvae.config.causal:
        raise UserError(
            f"{args.run / 'vqvae'} is in paper mode, but an outcome model is for dreams, which need a stream-mode "
            "VQ-VAE; train it with --model.mode stream"
        )
    if missing := [name for name in TARGETS if name not in store.array_names]:
        raise UserError(
            f"{store.path} has no {missing[0]}, which an outcome model is trained on; record an environment that has it"
        )
    return store, vqvae


def draw_batch(
    args: OutcomeStage, recorded: EpisodeWindows, dreams: DreamedWindows | None, share: slice, rng: np.random.Generator
) -> Rows:
    """A rank's share of a batch: recorded sequences, half of them replaced by dreamed ones if there are dreams."""
    if dreams is None:
        return recorded.sample(rng, args.trainer.batch_size, share)
    n_dreamed = args.trainer.batch_size // 2
    rows = recorded.sample(rng, args.trainer.batch_size - n_dreamed)
    dreamed = dreams.sample(rng, n_dreamed, args.n_latent_frames)
    return {name: np.concatenate([part, dreamed[name]])[share] for name, part in rows.items()}


def train_outcome(args: OutcomeStage) -> None:
    """Train an outcome model into <run>/outcome.

    Raises:
        UserError: As `open_inputs`, `dream_splits` and `fit`.
    """
    (store, vqvae), share = open_inputs(args), rank_share(args.trainer)
    train, valid = (EpisodeWindows(store, split, args.n_latent_frames) for split in ("train", "valid"))
    torch.manual_seed(args.trainer.seed)
    model = OutcomeModel(configure(args, store, vqvae, train), vqvae.quantizer.embedding).to(args.device)
    dreams = dream_splits(args, vqvae, store) if args.n_dreams else {}
    start = np.random.default_rng(0).integers(len(valid.episode_stop), size=args.n_eval_clips)
    held = {"held_out": valid.read(start)} | ({"held_out_dreams": dreams["valid"].rows} if dreams else {})
    batches = {
        where: {name: torch.from_numpy(array).to(args.device) for name, array in rows.items()}
        for where, rows in held.items()
    }

    def sample(rng: np.random.Generator, step: int) -> Rows:
        return draw_batch(args, train, dreams.get("train"), share, rng)

    def loss(batch: Batch) -> dict[str, Tensor]:
        condition, reward, done, variables = (batch[name] for name in TARGETS)
        return model.loss(batch["codes"], condition, reward, done, variables, batch["mask"], batch.get("images"))

    def evaluate(writer: SummaryWriter, step: int) -> list[str]:
        with eval_mode(model):
            for where, batch in batches.items():
                for name, value in loss(batch).items():
                    writer.add_scalar(f"{where}/{name}", value, step)
            verdicts = judge_split(valid.episode_stop)
            if step == args.trainer.steps:  # only the last verdicts are printed
                episode = valid.episode_stop[start]
                verdicts += outcome_verdicts(model, batches["held_out"], episode, store.env_spec.variables)
        return verdicts

    fit(
        model,
        loss=loss,
        sample=sample,
        config=args.trainer,
        out=args.run / "outcome",
        settings={
            "kind": "outcome",
            "model": asdict(model.config),
            "n_latent_frames": args.n_latent_frames,
            "vqvae": store.settings["vqvae"]["weights"],
            **({"dreams": [args.n_dreams, args.dream_steps, weights_digest(args.run / "prior")]} if dreams else {}),
        },
        evaluate=evaluate,
        restart=args.restart,
        data=store.checksums,
    )
