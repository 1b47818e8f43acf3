"""The paper's ablations, Tables 3 to 7: train and evaluate the rows of a table, and compare with the paper's column.

    python collect/vizdoom.py --preset demo
    python rollout/ablate.py --preset ablate --table 5

Without a preset the base model is the paper's model of BAIR, which needs GPUs. `--preset ablate` uses small models on
ViZDoom. Each row runs the stages of train/ in a run folder. Rows with the same VQ-VAE share it, also across tables:
rows with the base VQ-VAE are in <out>/base, with one prior folder per depth, and all others in <out>/table_N/<row>.
Every stage resumes, and a row that already has results under the same settings is not repeated, so the same command
continues an interrupted table. `--n-seeds 3` trains every row three times.

All rows are evaluated on the same clips of the test split, with the metrics of rollout/ablation_scores.py. Data and
protocol differ from the paper's, and without the weights of I3D so does the feature network. So values cannot be
compared with the paper's, only the order of the rows. The table reports how far both orders agree.

Writes <out>/table_N.md, .json and .png.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])


from configs import command
from configs.scripts import command_words
from configs.written import Written
from rollout.ablation_scores import Measurement, score_prior, score_vqvae
from rollout.ablation_table import render
from rollout.provenance import commit
from worldmodel.data.opening import open_store
from worldmodel.metrics.features import Kind, load_features
from worldmodel.metrics.protocol import PAPER
from worldmodel.models.prior_config import PriorSettings
from worldmodel.models.vqvae_config import VQVAESettings
from worldmodel.training.ablations import Row, Table, count_parameters, table_rows
from worldmodel.training.prior_stage import PriorStage, train_prior
from worldmodel.training.tokens_stage import TokensStage, encode_tokens
from worldmodel.training.trainer_config import TrainerConfig
from worldmodel.training.vqvae_stage import VQVAEStage, train_vqvae
from worldmodel.utils.checkpoint import checkpoints, read_checkpoint, weights_digest
from worldmodel.utils.compatibility import check_same_config
from worldmodel.utils.errors import UserError, is_url
from worldmodel.utils.files import write_json
from worldmodel.utils.run_args import DEVICE
from worldmodel.utils.settings import Address, AtLeast2, Positive, Settings


@dataclass(frozen=True, kw_only=True)
class BaseVQVAE(Settings):
    """VQ-VAE of the base model."""

    model: VQVAESettings = field(default_factory=VQVAESettings)
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(steps=100_000, learning_rate=7e-4))


@dataclass(frozen=True, kw_only=True)
class BasePrior(Settings):
    """Prior of the base model, with the settings of train/prior.py."""

    actions: bool = True
    every_action: bool = True
    classes: bool = False
    model: PriorSettings = field(default_factory=lambda: PriorSettings(local_window=128, n_cond_frames=1))
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(steps=150_000, lr_schedule="cosine"))

    @property
    def conditions(self) -> dict[str, Any]:
        """What the prior is conditioned on, besides frames."""
        return {name: getattr(self, name) for name in ("actions", "every_action", "classes")}


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Train and evaluate the rows of one of the paper's ablation tables."""

    table: Table = 3
    """Table: 3 attention, 4 prior layers, 5 latent sizes, 6 codes, 7 codebooks."""
    data: Address = Address("runs/bair/data.zarr")
    """Store of frames to train and evaluate on."""
    out: Path = Path("runs/ablations")
    """Folder for the tables and their runs."""
    vqvae: BaseVQVAE = field(default_factory=BaseVQVAE)
    """VQ-VAE of the base model; each row changes one thing."""
    clip_stride: Positive = 4
    """Frames between the starts of consecutive clips of codes."""
    prior: BasePrior = field(default_factory=BasePrior)
    """Prior of the base model."""
    n_clips: AtLeast2 = 256
    """Number of clips of the test split to evaluate on."""
    n_trials: Positive = 10
    """Number of sample sets per row, one sample per clip each."""
    features: Kind = "random_conv"
    """Feature network of the Frechet distances; random_conv needs no weights."""
    weights: Path | None = None
    """File with the weights of the feature network."""
    sha256: str = ""
    """SHA-256 of the weights file; another file is refused."""
    batch_size: Positive = 16
    """Clips sampled or reconstructed in one batch."""
    n_seeds: Positive = 1
    """Number of times to train every row, with seeds from 0."""
    device: str = DEVICE
    """Device of training and evaluation: cpu or cuda."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.vqvae.model.mode, self.prior.model.mode) != ("paper", "paper"):
            raise UserError("the ablations need models of whole clips; set mode to paper for VQ-VAE and prior")


@dataclass(frozen=True)
class Job:
    """A row of a table, trained with one seed."""

    row: Row
    seed: int
    run: Path
    """Run folder."""
    prior: str
    """Name of the prior's folder inside the run folder."""

    @property
    def result(self) -> Path:
        return self.run / "evaluation" / f"{'vqvae' if self.row.prior is None else self.prior}.json"


def make_job(args: Args, row: Row, seed: int) -> Job:
    """The folders of a row. Rows with the same VQ-VAE share a run folder."""
    base = row.vqvae == args.vqvae.model
    run = (args.out / "base" if base else args.out / f"table_{args.table}" / row.folder_name) / f"seed_{seed}"
    usual = row.prior is None or row.prior == args.prior.model
    return Job(row, seed, run, "prior" if usual else f"prior_{row.folder_name}")


def stage_args(args: Args, job: Job) -> tuple[VQVAEStage, TokensStage, PriorStage | None]:
    """The settings of each stage; no prior for rows about the VQ-VAE alone."""
    where: dict[str, Any] = {"run": job.run, "device": args.device}
    v, p, row = args.vqvae, args.prior, job.row
    fits = [replace(trainer, seed=job.seed) for trainer in (v.trainer, p.trainer)]
    first = VQVAEStage(**where, data=args.data, model=row.vqvae, trainer=fits[0])
    second = TokensStage(**where, data=(args.data,), clip_stride=args.clip_stride)
    if row.prior is None:
        return first, second, None
    third = PriorStage(**where, **p.conditions, data=args.data, model=row.prior, trainer=fits[1], out=job.prior)
    return first, second, third


def train_stages(args: Args, job: Job) -> None:
    """Run all stages; each resumes where it stopped. A model that is complete is not trained for more steps."""
    first, second, third = stage_args(args, job)
    check_same_trainer(job.run / "vqvae", first.trainer)
    train_vqvae(first)
    if third is not None:
        encode_tokens(second)
        check_same_trainer(job.run / job.prior, third.trainer)
        train_prior(third)


def check_same_trainer(folder: Path, trainer: TrainerConfig) -> None:
    """`UserError` if a folder has a model that was trained in another way, because a table compares equal trainings."""
    if checkpoints(folder):
        check_same_config(folder, read_checkpoint(folder).config | {"trainer": trainer.settings()})


def settings(args: Args, job: Job) -> dict[str, Any]:
    """Everything that a row's results depend on, as plain JSON values."""
    first, second, third = stage_args(args, job)
    values: dict[str, Any] = {"data": open_store(args.data).n_rows, "tokens": {"every": second.clip_stride}}
    values["vqvae"] = {"model": first.model, "trainer": first.trainer.settings()}
    if third is not None:
        values["prior"] = {"model": third.model, "trainer": third.trainer.settings()} | args.prior.conditions
    values |= {name: getattr(args, name) for name in ("n_clips", "n_trials", "features", "sha256", "batch_size")}
    return json.loads(json.dumps(values, default=asdict))


def model_digests(job: Job) -> dict[str, str]:
    """Digests of the models that exist."""
    names = ("vqvae",) if job.row.prior is None else ("vqvae", job.prior)
    return {name: weights_digest(job.run / name) for name in names if checkpoints(job.run / name)}


def read_result(args: Args, job: Job) -> dict[str, Any] | None:
    """The saved results of a row, or None if its settings or models have changed."""
    if not job.result.exists():
        return None
    found = json.loads(job.result.read_text())
    same = found["settings"] == settings(args, job) and found["made_of"] == model_digests(job)
    return found if same else None


def evaluate(args: Args, job: Job) -> dict[str, Any]:
    """Evaluate a trained row, and write the results into its run folder."""
    size = args.vqvae.model.frame_size[0]
    protocol = PAPER.with_changes(
        n_frames=args.vqvae.model.n_frames,
        n_cond_frames=args.prior.model.n_cond_frames,
        n_clips=args.n_clips,
        n_trials=args.n_trials,
        frame_size=size if size == args.vqvae.model.frame_size[1] else 0,
        action_conditioned=args.prior.actions or args.prior.classes,
    )
    features = load_features(args.features, args.weights, args.sha256, args.device)
    how = Measurement(args.data, args.clip_stride, protocol, features, args.batch_size, args.device)
    scores = score_prior(how, job.run, job.prior) if job.row.prior else score_vqvae(how, job.run)
    values = {
        "seed": job.seed,
        "latent": job.row.vqvae.latent_shape,
        "commit": commit(),
        "made_of": model_digests(job),
    }
    write_json(job.result, scores | values | {"settings": settings(args, job)})
    return json.loads(job.result.read_text())


def check_store(args: Args) -> None:
    """`UserError` if there is no store."""
    if not is_url(args.data) and not Path(args.data).exists():
        recorder = " ".join(command_words("collect/vizdoom.py"))
        raise UserError(
            f"there is no store at {args.data}; for --preset ablate make it with `{recorder} --preset demo`, or give "
            "another one with --data"
        )


def main(args: Args) -> Written:
    check_store(args)
    made = table_rows(args.table, args.vqvae.model, args.prior.model)
    if args.table == 3:
        print("\n".join(f"{row.setting}: {count_parameters(row.vqvae):,} parameters" for row in made))
    jobs = [make_job(args, row, seed) for seed in range(args.n_seeds) for row in made]
    done = {job.result: found for job in jobs if (found := read_result(args, job)) is not None}

    def show() -> str:
        """Write the table of the rows that are done."""
        results = {row.setting: [done[w.result] for w in jobs if w.row is row and w.result in done] for row in made}
        return render(args.table, results, args.n_seeds, args.out / f"table_{args.table}")

    for job in jobs:
        if job.result not in done:
            print(f"table {args.table}, {job.row.setting}, seed {job.seed}: {job.run}")
            train_stages(args, job)
            done[job.result] = evaluate(args, job)
            show()  # after each row, so that partial results can be read
    print(show())
    return Written(args.out / f"table_{args.table}.md")


if __name__ == "__main__":
    command(main, "ablate")
