"""Choose the hysteresis of a trained VQ-VAE: measure how much it stabilizes the codes, and what it costs.

    python train/tune_hysteresis.py --run runs/pushing                            # measure
    python train/tune_hysteresis.py --run runs/pushing --set-hysteresis 0.05      # measure, and set it

Many codes of a codebook are nearly equal. Noise changes which of them is nearest from frame to frame, and no prior can
predict noise. With hysteresis a position keeps its code unless another one is closer by a margin, a fraction of the
codes' variance (`VQVAEConfig.hysteresis`). The weights do not change. For each value, over held-out episodes:

    still    fraction of still positions that keep their code from frame to frame; a position is still if its pixels
             change by less than --still-threshold gray levels
    all      fraction of all positions that keep their code
    bits     entropy of a code given the previous code at its position
    PSNR     of reconstructions, in dB

Writes <run>/hysteresis.json. `--set-hysteresis` changes <run>/vqvae. Then encode the store again and train new priors.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from einops import rearrange, reduce

from configs import command
from configs.written import Written
from worldmodel.data.opening import open_store
from worldmodel.metrics.frames import psnr
from worldmodel.models.loading import AnyVQVAE, load_vqvae
from worldmodel.models.recurrent_vqvae import RecurrentVQVAE
from worldmodel.utils.checkpoint import read_checkpoint, replace_config, weights_digest
from worldmodel.utils.errors import UserError
from worldmodel.utils.files import write_json
from worldmodel.utils.lock import folder_lock
from worldmodel.utils.progress import Progress
from worldmodel.utils.run_args import RunArgs
from worldmodel.utils.settings import Address, NotNegative, Positive


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Measure and set the hysteresis of a VQ-VAE."""

    data: Address | None = None
    """Store of frames, by default <run>/data.zarr."""
    hysteresis: tuple[NotNegative, ...] = (0, 0.02, 0.05, 0.1, 0.2)
    """Values to measure, as fractions of the codes' variance; an empty list measures nothing."""
    set_hysteresis: NotNegative | None = None
    """Value to write into the VQ-VAE; by default it is not changed."""
    episodes: Positive = 20
    """Number of episodes of the validation split to measure on."""
    n_frames: Positive = 120
    """Number of frames to use from the start of each episode."""
    still_threshold: Positive = 12
    """Gray levels (0 to 255) below which a pixel change counts as noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.hysteresis and self.set_hysteresis is None:
            raise UserError("there is nothing to measure and nothing to set; give --hysteresis or --set-hysteresis")


def max_change(frames: np.ndarray, stride: tuple[int, int, int]) -> np.ndarray:
    """The largest pixel change at each latent position, (T - 1, H, W) gray levels, from frames (t, h, w, c)."""
    s, p, q = stride
    latent = rearrange(frames.astype(np.int16), "(t s) h w c -> t s h w c", s=s)
    return reduce(np.abs(np.diff(latent, axis=0)), "t s (h p) (w q) c -> t h w", "max", p=p, q=q)


def conditional_entropy(before: np.ndarray, after: np.ndarray) -> float:
    """Entropy in bits of codes `after` (n,) given codes `before` (n,), estimated from counts."""

    def entropy(values: np.ndarray) -> float:
        share = np.unique(values, return_counts=True)[1] / len(values)
        return float(-(share * np.log2(share)).sum())

    return entropy(before.astype(np.int64) * (int(after.max()) + 1) + after) - entropy(before)


@torch.no_grad()
def measure(model: AnyVQVAE, episodes: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Codes `previous` and `current` (n, H, W, g) of consecutive latent frames, and `psnr` (m,) of all frames."""
    device, parts = model.pre_vq_conv.weight.device, []
    for frames in episodes:
        codes, decoded = model.reconstruct(torch.from_numpy(frames[None]).to(device))
        found, seen = codes[0].cpu().numpy(), decoded[0].cpu().numpy()
        parts.append({"previous": found[:-1], "current": found[1:], "psnr": psnr(seen, frames)})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def stability(previous: np.ndarray, current: np.ndarray, psnr: np.ndarray, still: np.ndarray) -> dict[str, float]:
    """The metrics of one value, from the result of `measure` and the mask of still positions (n, H, W)."""
    kept = previous == current
    books = [(previous[..., g].ravel(), current[..., g].ravel()) for g in range(kept.shape[-1])]
    return {
        "still": kept[still].mean() if still.any() else np.nan,
        "all": kept.mean(),
        "bits": float(np.mean([conditional_entropy(*book) for book in books])),
        "psnr": psnr.mean(),
    }


def report(args: Args, data: str, still: float, rows: dict[float, dict[str, float]]) -> None:
    """Print the figures by hysteresis, and write them to hysteresis.json; `still` is the share of still positions."""
    print(f"{'hysteresis':>10}{'still':>8}{'all':>8}{'bits':>8}{'PSNR':>8}   {still:.0%} of positions are still")
    for share, row in rows.items():
        print(f"{share:>10}{row['still']:>8.3f}{row['all']:>8.3f}{row['bits']:>8.2f}{row['psnr']:>8.2f}")
    settings = asdict(args) | {"data": data, "vqvae": weights_digest(args.run / "vqvae")}
    by_name = {f"{share:g}": row for share, row in rows.items()}
    write_json(args.run / "hysteresis.json", {"settings": settings, "rows": by_name})


def main(args: Args) -> Written:
    store, model = open_store(args.data or args.run / "data.zarr"), load_vqvae(args.run / "vqvae").to(args.device)
    if isinstance(model, RecurrentVQVAE):
        raise UserError(
            f"{args.run / 'vqvae'} is a recurrent VQ-VAE, which needs no hysteresis: its decoder keeps what does not "
            "change; use another VQ-VAE"
        )
    if not model.config.causal:
        raise UserError(
            f"{args.run / 'vqvae'} is not in stream mode, and hysteresis needs frames encoded one by one; use a "
            "stream-mode VQ-VAE"
        )
    s = model.config.stride[0]
    whole = [store.read_episode(i)["frames"][: args.n_frames] for i in store.episode_indices("valid")[: args.episodes]]
    episodes = [frames[: len(frames) // s * s] for frames in whole if len(frames) >= 2 * s]
    if not episodes:
        raise UserError(f"{store.path} has no validation episode of {2 * s} frames or more; record more episodes")
    still = np.concatenate([max_change(frames, model.config.stride) for frames in episodes]) < args.still_threshold
    rows = {}
    for share in Progress(args.hysteresis, unit=" shares"):
        model.config = replace(model.config, hysteresis=share)
        rows[share] = stability(**measure(model, episodes), still=still)
    if rows:  # an empty --hysteresis keeps what was measured before
        report(args, store.path, still.mean(), rows)
    if args.set_hysteresis is not None:
        with folder_lock(args.run / "vqvae"):
            config = read_checkpoint(args.run / "vqvae").config
            config["model"]["hysteresis"] = args.set_hysteresis
            replace_config(args.run / "vqvae", config)
        print(
            f"the VQ-VAE now has a hysteresis of {args.set_hysteresis}; encode the tokens again, then train the prior "
            "and the outcome model again"
        )
        return Written(args.run / "vqvae", "train/tokens.py", {"run": args.run, "data": args.data, "restart": True})
    return Written(args.run / "hysteresis.json", "train/tokens.py", {"run": args.run, "data": args.data})


if __name__ == "__main__":
    command(main, "tune_hysteresis")
