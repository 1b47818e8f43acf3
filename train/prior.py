"""Train the prior on codes (section 3, Table 9).

    python train/prior.py --run runs/demo --actions

Reads <run>/tokens.zarr and <run>/vqvae, writes <run>/prior. With --actions a stream-mode prior is conditioned
on each latent frame's own actions, a paper-mode one on all the actions of the clip; without, it is
unconditional. TensorBoard gets the training loss, and of held-out clips bits/dim (bits per code), under true
and under shuffled actions, and sampled clips beside the truth they continue.
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

from configs import command
from worldmodel.checkpoint import check_made_with, digest, load_weights, read_header
from worldmodel.clips import Clips
from worldmodel.dream import load_vqvae
from worldmodel.errors import UserError
from worldmodel.fit import Batch, FitConfig, evaluating, fit
from worldmodel.pictures import add_film, enlarge, side_by_side
from worldmodel.prior import Condition, Prior, PriorConfig
from worldmodel.sampling import Sampling, next_frame
from worldmodel.store import Store
from worldmodel.vqvae import VQVAE, to_uint8


@dataclass(frozen=True, kw_only=True)
class Args:
    """Train a prior over the codes of a store."""

    run: Path = Path("runs/health_gathering_supreme")
    """Run folder."""
    actions: bool = False
    """Condition on actions."""
    frames: int = 16
    """stream mode: latent frames of a training clip (paper mode takes the VQ-VAE's clip)."""
    model: PriorConfig = field(default_factory=lambda: PriorConfig(mode="stream", order="diagonal"))
    """latent, books, codes, code_dim and the condition are taken from the VQ-VAE and --actions."""
    fit: FitConfig = field(default_factory=lambda: FitConfig(schedule="cosine"))
    held_out: int = 64
    """Clips of the validation split to evaluate on."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    out: str = "prior"
    """Folder of the prior inside the run."""
    begin: Path | None = None
    """Begin with the weights of another prior of the same sizes, to train it further under other settings."""
    restart: bool = False
    """Overwrite a run of other settings."""


def configure(args: Args, vqvae: VQVAE, width: int) -> PriorConfig:
    """The prior that goes with a VQ-VAE, for actions of `width` numbers."""
    v, clip = vqvae.config, args.model.mode == "paper"
    if v.causal == clip:
        raise UserError(
            f"the VQ-VAE is in {v.mode} mode, but the prior in {args.model.mode} mode; set --model.mode {v.mode}"
        )
    frames = v.latent[0] if clip else args.frames
    dims = {"none": 0, "frame": v.stride[0] * width, "clip": (v.frames - 1) * width}
    condition: Condition = ("clip" if clip else "frame") if args.actions else "none"
    return replace(
        args.model,
        latent=(frames, *v.latent[1:]),
        books=v.books,
        codes=v.codes,
        code_dim=v.dim,
        condition=condition,
        condition_dim=dims[condition],
    )


def condition_of(config: PriorConfig, rows: Tensor, width: int) -> Tensor | None:
    """The condition of clips from their rows (b, t, s*width): for a clip as a whole, the actions inside it."""
    if config.condition == "clip":
        return rows.flatten(1)[:, width:]  # the first action led into the clip
    return rows if config.condition == "frame" else None


@torch.no_grad()
def continuation(prior: Prior, codes: Tensor, condition: Tensor | None, given: int, seed: int = 0) -> Tensor:
    """Codes (b, t, h, w, g) of which the first `given` frames are true and the others sampled, under true actions."""
    per_frame = prior.config.condition == "frame"
    cache = prior.empty(len(codes))
    if given:
        context = condition[:, :given] if per_frame and condition is not None else condition
        cache = prior.prefill(codes[:, :given], context)
    generator, frames = torch.Generator().manual_seed(seed), [codes[:, :given]]
    for t in range(given, codes.shape[1]):
        noise = torch.rand(len(codes), prior.config.frame, generator=generator).to(codes.device)
        now = condition[:, t] if per_frame and condition is not None else condition
        frames.append(next_frame(prior, cache, now, noise, Sampling())[0])
    return torch.cat(frames, dim=1)


def evaluate(
    prior: Prior, vqvae: VQVAE, codes: Tensor, condition: Tensor | None, fps: float, writer: SummaryWriter, step: int
) -> None:
    """Bits per code of held-out clips, and clips sampled from their beginning."""

    def bits(condition: Tensor | None) -> float:
        parts = [None] * len(codes) if condition is None else condition.split(8)
        losses = [prior.loss(c, a) for c, a in zip(codes.split(8), parts, strict=False)]
        return torch.cat(losses).mean().item() / math.log(2)

    with evaluating(prior):
        writer.add_scalar("valid/bits_per_dim", bits(condition), step)
        if condition is not None:
            writer.add_scalar("valid/bits_per_dim_shuffled_actions", bits(condition.roll(1, 0)), step)
        few = slice(0, 4)
        context = None if condition is None else condition[few]
        dreamed = continuation(prior, codes[few], context, given=codes.shape[1] // 4)
        films = [to_uint8(vqvae.decode(c)).cpu().numpy() for c in (codes[few], dreamed)]
        add_film(writer, "valid/truth_and_sample", enlarge(side_by_side(films), 2), step, fps)


def main(args: Args) -> None:
    store = Store(args.run / "tokens.zarr")
    vqvae, width = load_vqvae(args.run / "vqvae").to(args.device), store.world.action.width
    check_made_with(store.path, store.settings["vqvae"]["weights"], args.run / "vqvae")
    torch.manual_seed(args.fit.seed)
    prior = Prior(configure(args, vqvae, width), vqvae.codebook.embedding).to(args.device)
    if args.begin is not None:
        check_made_with(str(args.begin), read_header(args.begin)[0].get("vqvae"), args.run / "vqvae")
        load_weights(args.begin, prior)
    frames = prior.config.latent[0]
    align = frames if prior.config.mode == "paper" else 1
    train, valid = (Clips(store, s, frames, ["codes", "condition"], align=align) for s in ("train", "valid"))

    def loss(batch: Batch) -> dict[str, Tensor]:
        value = prior.loss(batch["codes"].long(), condition_of(prior.config, batch["condition"], width)).mean()
        return {"loss": value, "bits_per_dim": value.detach() / math.log(2)}

    def sample(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
        clips = train.sample(rng, n)
        return {"codes": clips["codes"].astype(np.int32), "condition": clips["condition"]}

    held = valid.fixed(min(args.held_out, len(valid)))
    codes = torch.from_numpy(held["codes"].astype(np.int64)).to(args.device)
    condition = condition_of(prior.config, torch.from_numpy(held["condition"]).to(args.device), width)
    fit(
        prior,
        loss=loss,
        sample=lambda rng: sample(rng, args.fit.batch_size),
        config=args.fit,
        out=args.run / args.out,
        settings={
            "kind": "prior",
            "model": asdict(prior.config),
            "world": store.world.to_json(),
            "vqvae": store.settings["vqvae"]["weights"],
            "begin": None if args.begin is None else digest(args.begin),
        },
        evaluate=lambda writer, step: evaluate(
            prior, vqvae, codes, condition, store.world.fps / vqvae.config.stride[0], writer, step
        ),
        restart=args.restart,
    )


if __name__ == "__main__":
    command(main, "prior")
