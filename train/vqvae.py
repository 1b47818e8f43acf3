"""Train the VQ-VAE on the frames of a store (section 3, Table 8).

    python train/vqvae.py --run runs/demo --preset demo

Reads <run>/data.zarr, writes <run>/vqvae. TensorBoard gets the loss and its parts, codebook usage and perplexity,
and of held-out clips NMSE, PSNR and moving reconstructions beside the truth.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from configs import Address, command
from worldmodel.checkpoint import digest
from worldmodel.clips import Clips
from worldmodel.codebook import usage
from worldmodel.errors import UserError
from worldmodel.fit import FitConfig, evaluating, fit
from worldmodel.metrics.frames import nmse, psnr
from worldmodel.models import load_vqvae
from worldmodel.pictures import add_film, enlarge, side_by_side
from worldmodel.settings import Positive, Settings
from worldmodel.store import Store
from worldmodel.vqvae import VQVAE, VQVAEConfig, to_uint8


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Train a VQ-VAE on the frames of a store."""

    run: Path = Path("runs/health_gathering_supreme")
    """Run folder."""
    data: Address | None = None
    """Store of frames; <run>/data.zarr if not given."""
    model: VQVAEConfig = field(default_factory=lambda: VQVAEConfig(mode="stream"))
    fit: FitConfig = field(default_factory=lambda: FitConfig(learning_rate=7e-4))
    held_out: Positive = 32
    """Clips of the validation split to evaluate on."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    begin: Path | None = None
    """Begin with the weights of another VQ-VAE, whose codebook may have another shape: several smaller books of as many
    numbers in all."""
    restart: bool = False
    """Overwrite a run of other settings."""


def begin_with(folder: Path, model: VQVAE) -> dict[str, str]:
    """Give a model the weights of another, but for a codebook of another shape; returns what to note of it."""
    other = load_vqvae(folder)
    if other.codebook.embedding.shape != model.codebook.embedding.shape:
        other.codebook = model.codebook  # new: its codes become encoder outputs in the first step
    try:
        model.load_state_dict(other.state_dict())
    except RuntimeError:
        raise UserError(f"{folder} is a VQ-VAE of other sizes; only codes, dim and books may differ") from None
    return {"begin": digest(folder)}


def variance(clips: Clips, seed: int = 0, n: int = 256) -> float:
    """The variance of pixels in [-0.5, 0.5] over some clips, by which the loss and NMSE are divided."""
    frames = clips.sample(np.random.default_rng(seed), n)["frames"]
    return float(np.var(frames / np.float32(255), dtype=np.float64))


def evaluate(model: VQVAE, frames: torch.Tensor, fps: float, writer: SummaryWriter, step: int) -> None:
    """Held-out clips, encoded and decoded."""
    with evaluating(model):
        codes = torch.cat([model.encode(part) for part in frames.split(8)])
        decoded = torch.cat([to_uint8(model.decode(part)) for part in codes.split(8)]).cpu().numpy()
    truth = frames.cpu().numpy()
    writer.add_scalar("held_out/nmse", nmse(decoded, truth, model.config.variance).mean(), step)
    writer.add_scalar("held_out/psnr", psnr(decoded, truth).mean(), step)
    for name, value in usage(codes, model.config.codes).items():
        writer.add_scalar(f"held_out/{name}", value, step)
    writer.add_scalar("held_out/codes_kept", (codes[:, 1:] == codes[:, :-1]).float().mean(), step)
    film = enlarge(side_by_side([truth[:4], decoded[:4]]), 2)
    add_film(writer, "held_out/truth_and_reconstruction", film, step, fps)


def main(args: Args) -> None:
    store = Store(args.data or args.run / "data.zarr")
    if store.world.frame_shape != (*args.model.size, args.model.channels):
        raise UserError(
            f"{store.path} has frames of {store.world.frame_shape}, but the VQ-VAE is set to "
            f"{(*args.model.size, args.model.channels)}; set --model.size or record frames of that size"
        )
    train, valid = (Clips(store, split, args.model.frames, ["frames"]) for split in ("train", "valid"))
    torch.manual_seed(args.fit.seed)
    model = VQVAE(replace(args.model, variance=variance(train))).to(args.device)
    begun = {} if args.begin is None else begin_with(args.begin, model)
    frames = torch.from_numpy(valid.fixed(min(args.held_out, len(valid)))["frames"]).to(args.device)
    fit(
        model,
        loss=lambda batch: model(batch["frames"]),
        sample=lambda rng: train.sample(rng, args.fit.batch_size),
        config=args.fit,
        out=args.run / "vqvae",
        settings={"kind": "vqvae", "model": asdict(model.config), "world": store.world.to_json()} | begun,
        evaluate=lambda writer, step: evaluate(model, frames, store.world.fps, writer, step),
        restart=args.restart,
    )


if __name__ == "__main__":
    command(main, "vqvae")
