"""Train the prior on codes (section 3, Table 9).

    python train/prior.py --run runs/demo --actions

Reads <run>/tokens.zarr and <run>/vqvae, writes <run>/prior. With --actions a stream-mode prior is conditioned
on each latent frame's own actions, a paper-mode one on all the actions of the clip; with --classes on the class of the
episode; with --model.seen 1 on the clip's first frame, through a ResNet; with none of them it is unconditional.
TensorBoard gets the training loss, and of held-out clips bits/dim (bits per code), under true and under shuffled
conditions, and sampled clips beside the truth: a stream continues a quarter of it, a paper-mode prior begins anew.
"""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from configs import Address, command
from worldmodel.checkpoint import check_made_with, digest, load_weights, read_header
from worldmodel.continuation import continuation
from worldmodel.errors import UserError
from worldmodel.fit import Batch, FitConfig, evaluating, fit
from worldmodel.given import CodeClips, Given, batch, features, scale_of
from worldmodel.models import load_vqvae
from worldmodel.pictures import add_film, enlarge, side_by_side
from worldmodel.prior import Condition, Prior, PriorConfig
from worldmodel.settings import Positive, Settings
from worldmodel.store import Store, frames_of
from worldmodel.vqvae import VQVAE, to_uint8


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Train a prior over the codes of a store."""

    run: Path = Path("runs/health_gathering_supreme")
    """Run folder."""
    actions: bool = False
    """Condition on actions."""
    every_action: bool = False
    """paper mode: also on the action that led into the clip: Table 9's 64 numbers for BAIR are 16 actions, its 60 for
    Health Gathering Supreme 15."""
    classes: bool = False
    """Condition on the class of the episode."""
    data: Address | None = None
    """Store of the conditioning frames; <run>/data.zarr if not given."""
    frames: Positive = 16
    """stream mode: latent frames of a training clip (paper mode takes the VQ-VAE's clip)."""
    model: PriorConfig = field(default_factory=lambda: PriorConfig(mode="stream", order="diagonal"))
    """latent, books, codes, code_dim, seen_shape and the condition follow from the VQ-VAE, --actions and --classes."""
    fit: FitConfig = field(default_factory=lambda: FitConfig(schedule="cosine"))
    ends: bool = True
    """Learn also the frames that episodes ended with. ViZDoom's are no pictures of an end, but stand still: leave them
    out (--no-ends) where the outcome model foretells ends (train/outcome.py --foretell)."""
    held_out: Positive = 64
    """Clips of the validation split to evaluate on."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    out: str = "prior"
    """Folder of the prior inside the run."""
    begin: Path | None = None
    """Begin with the weights of another prior of the same sizes, to train it further under other settings."""
    restart: bool = False
    """Overwrite a run of other settings."""


def configure(args: Args, vqvae: VQVAE, width: int, classes: int = 0) -> PriorConfig:
    """The prior that goes with a VQ-VAE, for actions of `width` numbers and so many classes."""
    v, clip = vqvae.config, args.model.mode == "paper"
    if v.causal == clip:
        raise UserError(
            f"the VQ-VAE is in {v.mode} mode, but the prior in {args.model.mode} mode; set --model.mode {v.mode}"
        )
    for name, asked, there in (("actions", args.actions, width), ("classes", args.classes, classes)):
        if asked and not there:
            raise UserError(f"{args.run} was recorded without {name}; train without --{name}")
    frames = v.latent[0] if clip else args.frames
    actions = (v.frames - (not args.every_action) if clip else v.stride[0]) * width * args.actions
    classes *= args.classes
    condition: Condition = ("clip" if clip else "frame") if actions + classes else "none"
    return replace(
        args.model,
        latent=(frames, *v.latent[1:]),
        books=v.books,
        codes=v.codes,
        code_dim=v.dim,
        condition=condition,
        condition_dim=actions + classes,
        classes=classes,
        seen_shape=(*v.size, v.channels),
    )


def evaluate(prior: Prior, vqvae: VQVAE, held: Given, fps: float, writer: SummaryWriter, step: int) -> None:
    """Bits per code of held-out clips, and clips sampled under their conditions."""

    def bits(shuffled: bool = False) -> float:
        losses = []
        for part in torch.arange(len(held.codes), device=held.codes.device).split(8):
            given, other = held[part], held[(part + shuffled) % len(held.codes)]
            losses.append(prior.loss(given.codes, other.condition, features(prior, given)))
        return torch.cat(losses).mean().item() / math.log(2)

    with evaluating(prior):
        writer.add_scalar("held_out/bits_per_dim", bits(), step)
        if held.condition is not None:
            writer.add_scalar("held_out/bits_per_dim_shuffled_conditions", bits(shuffled=True), step)
        few, frames = held[:4], held.codes.shape[1]
        known = 0 if prior.config.mode == "paper" else frames // 4
        generator = torch.Generator().manual_seed(0)
        drawn = continuation(prior, few.codes[:, :known], frames, generator, few.condition, features(prior, few))
        films = [to_uint8(vqvae.decode(c)).cpu().numpy() for c in (few.codes, drawn)]
        add_film(writer, "held_out/truth_and_sample", enlarge(side_by_side(films), 2), step, fps)


def main(args: Args) -> None:
    store = Store(args.run / "tokens.zarr")
    vqvae, world = load_vqvae(args.run / "vqvae").to(args.device), store.world
    check_made_with(store.path, store.settings["vqvae"]["weights"], args.run / "vqvae")
    torch.manual_seed(args.fit.seed)
    config = configure(args, vqvae, world.action.width, len(world.classes))
    data = frames_of(store, args.data or args.run / "data.zarr") if config.seen else None
    train, valid = (CodeClips(config, store, split, data, args.ends) for split in ("train", "valid"))
    if args.actions and world.action.kind == "Box":  # else there is nothing to divide, nor to read for it
        some = train.sample(np.random.default_rng(0), 256)["condition"]
        config = replace(config, condition_scale=scale_of(world, some, config.classes))
    prior = Prior(config, vqvae.codebook.embedding).to(args.device)
    if args.begin is not None:
        check_made_with(str(args.begin), read_header(args.begin)[0].get("vqvae"), args.run / "vqvae", codebook=True)
        load_weights(args.begin, prior)

    def loss(arrays: Batch) -> dict[str, Tensor]:
        given = batch(arrays)
        value = prior.loss(given.codes, given.condition, features(prior, given)).mean()
        return {"loss": value, "bits_per_dim": value.detach() / math.log(2)}

    held = valid.fixed(min(args.held_out, len(valid))).to(args.device)
    fit(
        prior,
        loss=loss,
        sample=lambda rng: train.sample(rng, args.fit.batch_size),
        config=args.fit,
        out=args.run / args.out,
        settings={
            "kind": "prior",
            "model": asdict(prior.config),
            "world": world.to_json(),
            "vqvae": store.settings["vqvae"]["weights"],
            "begin": None if args.begin is None else digest(args.begin),
            "ends": args.ends,
        },
        evaluate=lambda writer, step: evaluate(prior, vqvae, held, world.fps / vqvae.config.stride[0], writer, step),
        restart=args.restart,
    )


if __name__ == "__main__":
    command(main, "prior")
