"""Sample videos from a prior: unconditional, or under the actions, the class or the conditioning frames of real clips.

    python rollout/sample.py --run runs/moving_mnist

Conditioning frames reach the prior through its ResNet, and it draws their codes anew, as in the paper's official code;
`--copy` puts the true frames in their place afterwards. Which of both was done is recorded with the samples. A stream
continues `--context` latent frames of true codes instead. They are made anew from the frames that are given: in the
store a code may know what moved before the clip began.

Writes <run>/samples: samples.gif (truth, and samples of it), samples.png, samples.npy, and samples.json with all
settings and, where something was given, how near the samples come to what really followed: the mean of several samples
of a clip, the best of them, and the last given frame held still, which any model of motion should beat.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from tqdm import tqdm

from configs import Address, command
from rollout.provenance import provenance
from worldmodel.checkpoint import check_made_with, write_atomic, write_json
from worldmodel.clips import Clips, held_rows
from worldmodel.continuation import continuation
from worldmodel.errors import UserError
from worldmodel.given import CodeClips, Given, features
from worldmodel.metrics.frames import nmse, psnr
from worldmodel.metrics.interval import Mean, bootstrap
from worldmodel.metrics.ssim import ssim
from worldmodel.models import load_prior, load_vqvae
from worldmodel.pictures import enlarge, film_strip, label, save_gif, save_png, side_by_side
from worldmodel.prior import Prior
from worldmodel.sampling import Sampling
from worldmodel.settings import AtLeast2, Count, Positive, Seed, Settings
from worldmodel.store import Store, frames_of
from worldmodel.vqvae import VQVAE, to_uint8


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Sample videos."""

    run: Path = Path("runs/moving_mnist")
    """Run folder."""
    prior: str = "prior"
    """Folder of the prior inside the run."""
    data: Address | None = None
    """Store of frames; <run>/data.zarr if not given."""
    split: str = "test"
    """Where conditions and conditioning frames are from."""
    clips: AtLeast2 = 16
    """Clips whose conditions are sampled under."""
    each: Positive = 4
    """Samples of each clip."""
    context: Count = 0
    """Latent frames of true codes that are continued (stream mode)."""
    copy: bool = False
    """Put the conditioning frames themselves in place of what was drawn for them."""
    name: str = ""
    """Class to sample, for all clips, instead of their own."""
    sampling: Sampling = field(default_factory=Sampling)
    batch: Positive = 16
    """Videos at a time."""
    seed: Seed = 0
    device: str = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Truth:
    """Real clips and what a prior is given of them."""

    given: Given
    frames: np.ndarray
    """(n, t, H, W, channels) uint8."""
    episode: np.ndarray


def real_clips(run: Path, prior: Prior, stride: int, n: int, split: str, data: str | Path | None = None) -> Truth:
    """n clips of a split, the same every time."""
    tokens, t = Store(run / "tokens.zarr"), prior.config.latent[0]
    store = frames_of(tokens, data or run / "data.zarr")
    check_made_with(tokens.path, tokens.settings["vqvae"]["weights"], run / "vqvae")
    align = t if prior.config.mode == "paper" else 1
    clips = Clips(tokens, split, t, ["row"], align=align).fixed(n)
    stops = np.array([store.bounds(episode)[1] for episode in clips["episode"].tolist()])
    frames = held_rows(store, "frames", clips["row"][:, 0], t * stride, stops)
    return Truth(CodeClips(prior.config, tokens, split, store).fixed(n), frames, clips["episode"])


@torch.no_grad()
def encoded(vqvae: VQVAE, truth: Truth, context: int) -> Given:
    """What is given, with the codes of the first `context` latent frames alone, which know of no other frames."""
    if not context or not vqvae.config.causal:
        return truth.given
    frames = torch.from_numpy(truth.frames[:, : context * vqvae.config.stride[0]])
    codes = [vqvae.encode(part.to(vqvae.to_code.weight.device)).cpu() for part in frames.split(16)]
    return replace(truth.given, codes=torch.cat(codes))


@torch.no_grad()
def draw(
    vqvae: VQVAE,
    prior: Prior,
    given: Given,
    seed: int,
    context: int = 0,
    copy: bool = False,
    sampling: Sampling | None = None,
    batch: int = 16,
    say: Callable[[int], object] = lambda videos: None,
) -> np.ndarray:
    """Videos (n, t, H, W, channels) uint8, one for each condition that is given; what is wrong is a `UserError`."""
    if context and prior.config.mode == "paper":
        raise UserError("codes of a paper-mode VQ-VAE have seen later frames; condition the prior on frames instead")
    if context >= (longest := prior.config.latent[0]):
        raise UserError(
            f"clips have {longest} latent frames, so {context} given ones leave nothing to draw; lower --context"
        )
    if copy and given.frames is None:
        raise UserError("this prior looks at no conditioning frames that could be copied; leave --copy out")
    device, videos = prior.start.device, []
    for k, part in enumerate(torch.arange(len(given.codes)).split(batch)):
        one = given[part].to(device)
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, k]).generate_state(1)[0]))
        frames, known = prior.config.latent[0], one.codes[:, :context]
        codes = continuation(prior, known, frames, generator, one.condition, features(prior, one), sampling)
        videos.append(to_uint8(vqvae.decode(codes)).cpu().numpy())
        if copy and one.frames is not None:
            videos[-1][:, : one.frames.shape[1]] = one.frames.cpu().numpy()
        say(len(part))
    return np.concatenate(videos)


def load(run: Path, prior: str, device: str) -> tuple[VQVAE, Prior]:
    return load_vqvae(run / "vqvae").to(device), load_prior(run / prior).to(device)


def sampler(
    run: Path, n: int, given: int, device: str, batch: int, split: str = "test"
) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """For a seed, n samples and the n real clips whose conditions, and first `given` frames, they are drawn under.

    The given frames are as the model draws or decodes them, not copied, as the paper's protocol has it.
    """
    vqvae, prior = load(run, "prior", device)
    stride = vqvae.config.stride[0]
    stream = prior.config.mode == "stream"
    if not stream and prior.config.seen != given:
        raise UserError(f"{run} looks at {prior.config.seen} conditioning frames, and the protocol gives {given}")
    if stream and given % stride:
        raise UserError(f"a code of {run} is of {stride} frames, and the protocol gives {given}; alter it with --given")
    truth = real_clips(run, prior, stride, n, split)
    context = given // stride if stream else 0
    told = encoded(vqvae, truth, context)
    return lambda seed: (draw(vqvae, prior, told, seed, context, batch=batch), truth.frames)


def scores(truth: Truth, samples: np.ndarray, first: int, variance: float) -> dict[str, dict[str, list[Mean]]]:
    """PSNR, SSIM and NMSE of each frame from `first` on, of samples (each, n, t, H, W, c) and of a frame held still."""
    still = truth.frames[:, first - 1 : first].repeat(truth.frames.shape[1], 1)
    figures: dict[str, tuple[Callable[..., np.ndarray], int]] = {
        "psnr": (psnr, 1),
        "ssim": (ssim, 1),
        "nmse": (lambda a, b: nmse(a, b, variance), -1),
    }
    result = {}
    for name, (score, sign) in figures.items():
        by_sample = np.stack([score(s[:, first:], truth.frames[:, first:]) for s in samples])  # (each, n, t)
        best = (sign * by_sample.mean(2)).argmax(0)  # by the whole clip
        rows = {
            "mean of samples": by_sample.mean(0),
            "best of samples": by_sample[best, np.arange(len(best))],
            "last given frame, held": score(still[:, first:], truth.frames[:, first:]),
        }
        result[name] = {row: [bootstrap(v, truth.episode) for v in values.T] for row, values in rows.items()}
    return result


def table(result: dict[str, dict[str, list[Mean]]], first: int) -> str:
    lines = []
    for figure, rows in result.items():
        steps = range(len(next(iter(rows.values()))))
        shown = [k for k in steps if k in (0, 4, 9, steps[-1])]
        lines.append(f"{figure:24}" + "".join(f"{f'frame {first + k}':>26}" for k in shown))
        lines += [f"  {row:22}" + "".join(f"{means[k]!s:>26}" for k in shown) for row, means in rows.items()]
    return "\n".join(lines)


def show(folder: Path, truth: np.ndarray, samples: np.ndarray, fps: float, few: int = 4) -> None:
    """A GIF with the truth and samples of it side by side, and a strip of frames of the first of them."""
    films = [truth[:few], *(s[:few] for s in samples[:few])]
    words = ["truth", *(f"sample {k + 1}" for k in range(len(films) - 1))]
    save_gif(folder / "samples.gif", np.stack([label(f, words) for f in enlarge(side_by_side(films), 2)]), fps)
    rows = np.stack([film[i] for i in range(min(few, len(truth))) for film in films[:3]])
    save_png(folder / "samples.png", film_strip(rows))


def main(args: Args) -> None:
    vqvae, prior = load(args.run, args.prior, args.device)
    truth = real_clips(args.run, prior, vqvae.config.stride[0], args.clips, args.split, args.data)
    store, given = Store(args.data or args.run / "data.zarr"), encoded(vqvae, truth, args.context)
    if args.name:
        given = Given(given.codes, of_class(prior, given, store.world.classes, args.name), given.frames)
    with tqdm(total=args.each * args.clips, unit=" videos", desc="samples") as bar:
        samples = np.stack([
            draw(vqvae, prior, given, args.seed + k, args.context, args.copy, args.sampling, args.batch, bar.update)
            for k in range(args.each)
        ])  # fmt: skip
    first, folder = args.context * vqvae.config.stride[0] or prior.config.seen, args.run / "samples"
    show(folder, truth.frames, samples, store.world.fps)
    file = io.BytesIO()
    np.save(file, samples.reshape(-1, *samples.shape[2:]))
    write_atomic(folder / "samples.npy", file.getvalue())
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(args).items()}
    frames = ("copied" if args.copy else "regenerated") if prior.config.seen else "none"
    result: dict[str, Any] = {"settings": settings, "conditioning frames": frames}
    result |= provenance(args.run, args.prior)
    if first and not args.name:
        figures = scores(truth, samples, first, vqvae.config.variance)
        print(f"{args.clips} clips, {args.each} samples of each; {first} frames given, means [95% intervals]")
        print(table(figures, first))
        result |= {f: {row: [m.to_json() for m in means] for row, means in r.items()} for f, r in figures.items()}
    write_json(folder / "samples.json", result)
    print(f"samples: {folder}; conditioning frames: {frames}")


def of_class(prior: Prior, given: Given, classes: tuple[str, ...], name: str) -> torch.Tensor:
    """The condition with another class in it."""
    if name not in classes[: prior.config.classes]:
        known = ", ".join(classes[: prior.config.classes]) or "none: train the prior with --classes"
        raise UserError(f"this prior knows no class {name!r}; it knows {known}")
    assert given.condition is not None
    condition = given.condition.clone()
    condition[..., -prior.config.classes :] = torch.eye(prior.config.classes)[classes.index(name)]
    return condition


if __name__ == "__main__":
    command(main, "sample")
