"""One starting frame, several futures: samples diverge under different actions and agree under the same.

    python rollout/diverge.py --run runs/pushing --context 1

From each held-out start two samples are dreamed under the actions that were taken, and two under those of another
episode, if there are enough. A prior in paper mode is given its conditioning frame and a clip's actions, so its clips
begin with that frame drawn anew (`--preset bair`). The picture has four rows a start, in that order, each beginning
with the frame that was given. The numbers are the distance between two samples, as the root mean square of pixels over
their range: under the same actions, under different ones, and between real frames of different episodes, which is the
most there is to diverge.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from tqdm import tqdm

from configs import Address, command
from rollout.evaluate import dreams, held_out, plain, shuffle
from rollout.sample import draw, load, real_clips
from worldmodel.checkpoint import digest, write_json
from worldmodel.dream import Dream
from worldmodel.errors import UserError
from worldmodel.given import Given
from worldmodel.metrics.interval import bootstrap
from worldmodel.models import load_prior
from worldmodel.pictures import enlarge, film_strip, save_png
from worldmodel.rates import Precision
from worldmodel.sampling import Sampling
from worldmodel.settings import AtLeast2, Positive, Seed, Settings, Some


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Show how futures of one frame diverge."""

    run: Path = Path("runs/pushing")
    """Run folder."""
    data: Address | None = None
    """Store of frames; <run>/data.zarr if not given."""
    split: str = "test"
    starts: AtLeast2 = 32
    """Held-out starts, each of another episode where there are enough."""
    context: Positive = 1
    """Latent frames that a stream is given: one, as in the paper's samples of BAIR."""
    steps: Positive = 15
    """Steps that are dreamed."""
    show: Positive = 2
    """Starts in the picture."""
    ahead: Some[Positive] = (1, 5, 10, 15)
    """Steps on at which samples are compared."""
    batch: Positive = 64
    precision: Precision = "float32"
    """Of the dream."""
    sampling: Sampling = field(default_factory=Sampling)
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if max(self.ahead) > self.steps:
            raise UserError(f"ahead must be at most steps, {self.steps}, not {max(self.ahead)}")


@dataclass(frozen=True)
class Films:
    """What followed, and what was sampled."""

    real: np.ndarray
    """(n, 1 + steps, h, w, 3), beginning with the last frame that is given."""
    episode: np.ndarray
    others: np.ndarray
    """(n,) the start whose actions are the different ones."""
    samples: np.ndarray
    """(n, 2 plans, 2 samples, steps, h, w, 3): each start under its own actions and under those of another."""


def streamed(args: Args) -> Films:
    """Dreams that go on from codes of the truth."""
    dream, c = Dream.load(args.run, args.sampling, precision=args.precision), args.context
    held = held_out(dream, args.run, args.data, args.split, args.starts, c + args.steps)
    others, films = shuffle(held.episode, args.seed), []
    own = held.actions[:, c - 1 : c - 1 + args.steps]
    with tqdm(total=4 * len(own) * args.steps, unit=" steps", desc="dreams") as bar:
        for plan in (own, own[others]):
            films.append([dreams(dream, held, plan, c, args.seed + k, args.batch, bar) for k in range(2)])
    return Films(held.frames[:, c - 1 :], held.episode, others, np.moveaxis(np.array(films), 2, 0))


def clips(args: Args) -> Films:
    """Samples of a prior in paper mode, given the same frames and the actions of clips."""
    vqvae, prior = load(args.run, "prior", "cpu")
    if not prior.config.seen or prior.config.condition == "none":
        raise UserError(f"{args.run}/prior is not given frames and actions; train one with --model.seen 1 --actions")
    truth = real_clips(args.run, prior, vqvae.config.stride[0], args.starts, args.split, args.data)
    c, given, films = prior.config.seen, truth.given, []
    if args.steps > (most := truth.frames.shape[1] - c):
        raise UserError(f"this prior's clips have {most} frames after the given ones, not {args.steps}; lower --steps")
    others = shuffle(truth.episode, args.seed)
    assert given.condition is not None
    with tqdm(total=4 * args.starts, unit=" videos", desc="samples") as bar:
        sample = partial(draw, vqvae, prior, sampling=args.sampling, batch=args.batch, say=bar.update)
        for condition in (given.condition, given.condition[others]):
            plan = Given(given.codes, condition, given.frames)
            films.append([sample(plan, args.seed + k) for k in range(2)])
    found = np.moveaxis(np.array(films), 2, 0)[:, :, :, c : c + args.steps]
    return Films(truth.frames[:, c - 1 : c + args.steps], truth.episode, others, found)


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, t) root mean square difference of films (n, t, h, w, 3), over the range of a pixel."""
    return np.sqrt(((a.astype(np.float32) - b) ** 2).mean((2, 3, 4))) / 255


def main(args: Args) -> None:
    found = (streamed if load_prior(args.run / "prior").config.mode == "stream" else clips)(args)
    film, real = found.samples, found.real[:, 1:]
    apart = {
        "same actions": distance(film[:, 0, 0], film[:, 0, 1]),
        "different actions": distance(film[:, 0, 0], film[:, 1, 1]),
        "other real episodes": distance(real, real[found.others]),
    }
    told = {name: [bootstrap(d[:, t - 1], found.episode) for t in args.ahead] for name, d in apart.items()}
    print(f"{'distance between samples, steps on':36}" + "".join(f"{t:>24}" for t in args.ahead))
    for name, means in told.items():
        print(f"{name:36}" + "".join(f"{mean!s:>24}" for mean in means))
    folder = args.run / "evaluation"
    rows = [np.concatenate([found.real[i, :1], one]) for i in range(args.show) for plan in film[i] for one in plan]
    save_png(folder / "diverge.png", enlarge(film_strip(np.stack(rows)[:, :: -(-args.steps // 8)]), 2))
    protocol = asdict(args) | {"run": str(args.run), "data": str(args.data), "prior": digest(args.run / "prior")}
    write_json(folder / "diverge.json", {"protocol": protocol} | plain(told))
    print(f"picture: {folder / 'diverge.png'}")


if __name__ == "__main__":
    command(main, "diverge")
