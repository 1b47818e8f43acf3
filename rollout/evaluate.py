"""Is it a model of this world? Dreams against held-out episodes.

    python rollout/evaluate.py --run runs/demo

Takes clips of the test split, gives the dream their first frames as context and their true actions afterwards,
and compares what it dreams 1, 5, 10, 15 steps ahead with what happened: PSNR and NMSE, next to

    reconstruction     the true codes decoded: the best the dream could do
    copy last frame    the last frame of the context, unchanged
    shuffled actions   the same dream under the actions of another clip

and the bits per code (the paper's bits/dim) that the prior needs for the true codes under the true and under
the shuffled actions. A dream is a sample and the future is not certain, so a clip's figure is the mean of those
of several dreams of it. With a time stride above 1 the dream holds the last action of each latent frame.
Intervals are 95%, bootstrapped over episodes. The difference between true and shuffled actions is taken clip by
clip. Writes <run>/evaluation/results.json and .txt, and prints the table.

The paper has no figure by this protocol; its own metrics, with its figures beside ours, are those of rollout/fvd.py,
which takes a run in paper mode or in stream mode. Paper mode does not dream.
"""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from tqdm import tqdm

from configs import Address, command
from rollout.provenance import provenance
from worldmodel.checkpoint import check_made_with, read_header, write_atomic, write_json
from worldmodel.clips import Clips, held_rows
from worldmodel.dream import Context, Dream
from worldmodel.errors import UserError
from worldmodel.metrics.frames import nmse, psnr
from worldmodel.metrics.interval import Mean, bootstrap
from worldmodel.rates import Precision
from worldmodel.sampling import Sampling
from worldmodel.settings import AtLeast2, Positive, Seed, Settings, Some
from worldmodel.store import Store, frames_of
from worldmodel.vqvae import to_uint8


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Evaluate a dream on held-out episodes."""

    run: Path = Path("runs/health_gathering_supreme")
    """Run folder."""
    data: Address | None = None
    """Store of frames; <run>/data.zarr if not given."""
    split: str = "test"
    clips: AtLeast2 = 128
    """Clips, spread over the split's episodes."""
    context: Positive = 8
    """Latent frames that are given."""
    ahead: Some[Positive] = (1, 5, 10, 15)
    """Steps ahead at which frames are compared."""
    dreams: Positive = 4
    """Dreams of each clip."""
    batch: Positive = 64
    """Lanes at a time."""
    sampling: Sampling = field(default_factory=Sampling)
    precision: Precision = "float32"
    """Of the dream."""
    seed: Seed = 0
    device: str = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Held:
    """Held-out clips, in codes and in frames."""

    codes: torch.Tensor
    condition: torch.Tensor
    actions: np.ndarray
    """(n, steps, ...) of the recorded environment, one for each latent frame after the context."""
    frames: np.ndarray
    """(n, t, H, W, 3): the last frame of each latent frame."""
    variables: torch.Tensor
    episode: np.ndarray


def held_out(dream: Dream, run: Path, data: str | Path | None, split: str, n: int, length: int) -> Held:
    """Clips of `length` latent frames with the frames they are codes of."""
    tokens = Store(run / "tokens.zarr")
    recorded = frames_of(tokens, data or run / "data.zarr")
    check_made_with(tokens.path, tokens.settings["vqvae"]["weights"], run / "vqvae")
    source = Clips(tokens, split, length, ["codes", "condition", "variables"])
    clips, s = source.fixed(min(n, len(source))), dream.stride
    starts, stops = np.array([recorded.bounds(episode) for episode in clips["episode"].tolist()]).T
    starts = starts + clips["start"] * s
    frames, actions = (held_rows(recorded, name, starts, length * s, stops) for name in ("frames", "action"))
    return Held(
        codes=torch.from_numpy(clips["codes"].astype(np.int64)),
        condition=torch.from_numpy(clips["condition"]),
        actions=actions[:, s - 1 :: s],
        frames=frames[:, s - 1 :: s],
        variables=torch.from_numpy(clips["variables"]),
        episode=clips["episode"],
    )


def shuffle(episode: np.ndarray, seed: int) -> np.ndarray:
    """A permutation of clips that gives none its own actions, nor, where it can, those of its own episode."""
    rng, n = np.random.default_rng(seed), len(episode)
    if n < 2:
        raise UserError("actions are shuffled between clips, and the split has only one; record more episodes")
    candidates = [np.roll(np.arange(n), k) for k in rng.permutation(np.arange(1, n))[:64]]
    return min(candidates, key=lambda order: int((episode[order] == episode).sum()))


def dreams(dream: Dream, held: Held, actions: np.ndarray, context: int, seed: int, batch: int, bar: tqdm) -> np.ndarray:
    """Frames (n, steps, H, W, 3) dreamed after the context under actions (n, steps, ...)."""
    out = []
    for at in range(0, len(actions), batch):
        part = slice(at, at + batch)
        start = Context(held.codes[part, :context], held.condition[part, :context], held.variables[part, :context])
        seeds = [int(s) for s in np.random.SeedSequence([seed, at]).generate_state(len(start))]
        lanes, *_ = dream.reset(start, seeds)
        frames = []
        for t in range(actions.shape[1]):
            frames.append(dream.step(lanes, actions[part, t]).frames[:, -1].cpu().numpy())
            bar.update(len(start))
        out.append(np.stack(frames, axis=1))
    return np.concatenate(out)


@torch.no_grad()
def bits(dream: Dream, codes: torch.Tensor, condition: torch.Tensor, context: int) -> np.ndarray:
    """(n,) bits per code of the frames after the context."""
    pairs = zip(codes.to(dream.device).split(16), condition.to(dream.prior.start).split(16), strict=True)
    nats = torch.cat([dream.prior.loss(c, a) for c, a in pairs])
    return nats[:, context:].mean(1).cpu().numpy() / math.log(2)


@torch.no_grad()
def reconstructions(dream: Dream, codes: torch.Tensor) -> np.ndarray:
    """The last frame of each latent frame (n, t, H, W, 3), decoded from the true codes."""
    decoded = [to_uint8(dream.vqvae.decode(part)).cpu() for part in codes.to(dream.device).split(8)]
    return torch.cat(decoded)[:, dream.stride - 1 :: dream.stride].numpy()


def measure(args: Args, dream: Dream, held: Held) -> dict[str, Any]:
    """Every figure, as `Mean`s."""
    n, c = len(held.codes), args.context
    order, steps = shuffle(held.episode, args.seed), [s - 1 for s in args.ahead]
    given = held.actions[:, c - 1 : c - 1 + max(args.ahead)]
    truth, variance = held.frames[:, c:], dream.vqvae.config.variance
    shuffled = torch.cat([held.condition[:, :c], held.condition[order, c:]], dim=1)
    films: dict[str, list[np.ndarray]] = {
        "reconstruction": [reconstructions(dream, held.codes)[:, c:]],
        "copy last frame": [held.frames[:, c - 1 : c].repeat(max(args.ahead), 1)],
    }
    with tqdm(total=2 * args.dreams * n * max(args.ahead), unit=" steps", desc="dreams") as bar:
        for name, actions in (("true actions", given), ("shuffled actions", given[order])):
            films[name] = [dreams(dream, held, actions, c, args.seed + k, args.batch, bar) for k in range(args.dreams)]
    mean = lambda values: bootstrap(values, held.episode)  # noqa: E731
    result: dict[str, Any] = {"psnr": {}, "nmse": {}, "bits_per_dim": {}, "difference": {}}
    scores = {
        figure: {
            name: np.mean([score(film[:, steps], truth[:, steps]) for film in group], axis=0)
            for name, group in films.items()
        }
        for figure, score in (("psnr", psnr), ("nmse", lambda a, b: nmse(a, b, variance)))
    }
    for figure, by_name in scores.items():
        result[figure] = {name: [mean(v[:, k]) for k in range(len(steps))] for name, v in by_name.items()}
        gain = by_name["true actions"] - by_name["shuffled actions"]
        result["difference"][figure] = [mean(gain[:, k]) for k in range(len(steps))]
    true, false = (bits(dream, held.codes, condition, c) for condition in (held.condition, shuffled))
    result["bits_per_dim"] = {"true actions": mean(true), "shuffled actions": mean(false)}
    result["difference"]["bits_per_dim"] = mean(true - false)
    return result


def table(result: dict[str, Any], ahead: tuple[int, ...]) -> str:
    """The figures as text."""
    lines = []
    for figure, title in (("psnr", "PSNR, dB (higher is better)"), ("nmse", "NMSE (lower is better)")):
        lines += ["", f"{title:30}" + "".join(f"{f'{s} ahead':>26}" for s in ahead)]
        rows = {**result[figure], "true - shuffled": result["difference"][figure]}
        lines += [f"  {name:28}" + "".join(f"{m!s:>26}" for m in means) for name, means in rows.items()]
    lines += ["", "bits per code (lower is better)"]
    rows = {**result["bits_per_dim"], "true - shuffled": result["difference"]["bits_per_dim"]}
    return "\n".join([*lines, *(f"  {name:28}{m!s:>26}" for name, m in rows.items())])


def plain(value: Any) -> Any:
    """Means as JSON."""
    if isinstance(value, Mean):
        return value.to_json()
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list) else value


def main(args: Args) -> None:
    paper = f"python rollout/fvd.py --run {args.run}"
    if read_header(args.run / "prior")[0]["model"].get("mode") == "paper":
        raise UserError(
            f"{args.run} is in paper mode, which ends after a clip and cannot dream; the paper's metrics: {paper}"
        )
    dream = Dream.load(args.run, args.sampling, args.device, args.precision)
    held = held_out(dream, args.run, args.data, args.split, args.clips, args.context + max(args.ahead))
    result = measure(args, dream, held)
    protocol = {k: v for k, v in asdict(args).items() if k not in ("run", "data", "device", "batch")}
    protocol |= {
        "clips": len(held.codes),
        "episodes": len(np.unique(held.episode)),
    }
    folder = args.run / "evaluation"
    counts = f"{protocol['clips']} clips of {protocol['episodes']} held-out episodes"
    head = f"{dream.world.name}: {counts}, means [95% intervals]"
    text = head + "\n" + table(result, args.ahead)
    write_json(folder / "results.json", {"protocol": protocol} | provenance(args.run) | plain(result))
    write_atomic(folder / "results.txt", (text + "\n").encode())
    print(text)
    print(
        f"\ntable:        {folder}/results.txt and results.json"
        f"\npictures:     {args.run}/dreams (rollout/dream.py writes them)"
        f"\npaper's FVD:  {paper} (needs a feature network)"
        f"\nTensorBoard:  tensorboard --logdir {args.run}"
        f'\nenvironment:  import envs; gymnasium.make("VideoGPTDream-v0", model="{args.run}")'
    )


if __name__ == "__main__":
    command(main, "evaluate")
