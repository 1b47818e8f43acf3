"""Compute the paper's metrics (FVD, inception score) of a run or of clips in files, by a named protocol (Tables 1-7).

    python rollout/fvd.py --run runs/bair --protocol paper --features torchscript --weights i3d.pt --sha256 ...
    python rollout/fvd.py --samples samples.npy --real real.npy --features i3d --weights i3d.safetensors --sha256 ...
    python rollout/fvd.py --run runs/ucf101 --protocol tgan2 --features c3d --weights c3d.safetensors --sha256 ...

    FVD     samples of the prior against real clips
    R-FVD   reconstructions of the VQ-VAE against real clips
    FVD*    samples against reconstructions: the loss of the prior alone

A run without a prior gives R-FVD only. `--features random_conv` needs no weights; its distances have another name. The
paper's value is printed next to ours only if data, protocol and feature network are the same. A flag that changes the
protocol also changes its name.

Writes <metric>-<protocol>-<features>.json and .txt into <run>/evaluation, or into the folder of the samples.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs import command
from configs.written import Written
from rollout.clip_sources import ClipSource, make_reconstruct, source_from_files, source_from_run
from rollout.distances import COMPARISONS, distances, sample_features
from rollout.provenance import commit, model_digests, model_settings
from rollout.verdicts import judge_distances
from worldmodel.metrics.features import C3D_LOGITS, Features, Kind, load_features
from worldmodel.metrics.inception import inception_score, probabilities
from worldmodel.metrics.protocol import PROTOCOLS, Protocol, ProtocolName, Trials
from worldmodel.metrics.published import matching_figure
from worldmodel.utils.checkpoint import read_checkpoint
from worldmodel.utils.errors import UserError
from worldmodel.utils.files import write_atomic, write_json
from worldmodel.utils.progress import Progress
from worldmodel.utils.run_args import DEVICE
from worldmodel.utils.settings import AboveZero, AtLeast2, Count, PixelsOr0, Positive, Seed, Settings


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Compute FVD or the inception score of samples."""

    run: Path | None = None
    """Run folder with the prior, the VQ-VAE and the test clips to evaluate."""
    samples: Path | None = None
    """File (.npy) of samples to use instead of a run; needs real clips too."""
    real: Path | None = None
    """File (.npy) of the real clips that the samples continue; not needed for the inception score."""
    reconstructions: Path | None = None
    """File (.npy) of reconstructions of the real clips; by default the run's VQ-VAE makes them."""
    dataset: str = ""
    """Name of the data in the results, by default the name of the run's environment."""
    out: Path | None = None
    """Folder for the results; by default <run>/evaluation, or the folder of the samples."""
    protocol: ProtocolName = "paper"
    """Evaluation protocol: numbers of clips, samples, frames and trials."""
    features: Kind = "torchscript"
    """Feature network; worldmodel/metrics/features.py describes its file."""
    weights: Path | None = None
    """File with the weights of the feature network."""
    sha256: str = ""
    """SHA-256 of the weights file as its publisher states it; another file is refused."""
    epsilon: AboveZero = 1e-5
    """Batch norm epsilon of --features i3d; 1e-5 in the paper's code, 1e-3 in DeepMind's."""
    n_frames: Positive | None = None
    """Frames per clip, by default those of the protocol."""
    n_cond_frames: Count | None = None
    """Frames that samples are given, by default those of the protocol."""
    n_clips: AtLeast2 | None = None
    """Real clips per trial, by default those of the protocol."""
    samples_per_clip: Positive | None = None
    """Samples per clip, by default those of the protocol."""
    n_trials: Positive | None = None
    """Number of trials, by default that of the protocol."""
    frame_size: PixelsOr0 | None = None
    """Height and width of clips, 0 for any; by default that of the protocol."""
    action_conditioned: bool = False
    """The samples in a file were given the actions of their clips; for a run this is read from its config."""
    batch_size: Positive = 16
    """Clips sampled or reconstructed in one batch."""
    feature_batch_size: Positive = 8
    """Clips per batch of the feature network."""
    seed: Seed = 0
    """Seed of the samples; set k of samples has seed + k."""
    device: str = DEVICE
    """Device of all networks: cpu or cuda."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.real and not self.samples:
            raise UserError("--real needs the samples that continue the clips; add --samples")
        if self.samples and not self.real and PROTOCOLS[self.protocol].metric == "frechet":
            raise UserError("--samples needs the real clips that the samples continue; add --real")
        if self.reconstructions and not self.real:
            raise UserError("--reconstructions needs samples and real clips in files; add --samples and --real")


def make_protocol(args: Args) -> Protocol:
    """The protocol with the changes of the flags."""
    changes = {name: getattr(args, name) for name in ("n_frames", "n_cond_frames", "n_clips", "n_trials", "frame_size")}
    return PROTOCOLS[args.protocol].with_changes(
        **changes, samples_per_clip=args.samples_per_clip, action_conditioned=is_action_conditioned(args)
    )


def is_action_conditioned(args: Args) -> bool:
    """Whether samples are given the actions of their clip."""
    if args.samples or args.run is None or not (args.run / "prior").exists():
        return args.action_conditioned
    return read_checkpoint(args.run / "prior").config["model"].get("conditioning", "none") != "none"


def make_source(args: Args, protocol: Protocol) -> ClipSource:
    """The source of clips that the flags select."""
    if args.samples is None:
        assert args.run
        return source_from_run(args.run, protocol, args.dataset, args.seed, args.device, args.batch_size)
    reconstruct = make_reconstruct(args.run, args.device, args.batch_size) if args.run else None
    paths = {"samples": args.samples, "real": args.real, "reconstructions": args.reconstructions}
    source = source_from_files(
        {name: path for name, path in paths.items() if path}, protocol, args.dataset, reconstruct
    )
    return replace(source, digests=source.digests | model_digests(args.run))


def scores(args: Args, protocol: Protocol, features: Features, source: ClipSource) -> dict[str, Trials]:
    """The inception score of the samples of every trial."""
    values = []
    with Progress(total=protocol.n_trials * protocol.samples_per_clip, unit=" sets", desc="samples") as bar:
        for trial in range(protocol.n_trials):
            logits, _ = sample_features(args.feature_batch_size, protocol, features, source, trial, bar)
            if logits is None:
                raise UserError(f"{args.run} has no prior to sample from; run train/prior.py, or give --samples")
            values.append(inception_score(probabilities(logits)))
    return {"samples": Trials(tuple(values))}


def figure_names(comparison: str, features: Features) -> tuple[str, str]:
    """The short name of a metric, as in the paper's tables, and its full name."""
    if comparison == "samples":
        return ("IS", "IS") if features.network == C3D_LOGITS else ("", f"Inception score by {features.network}")
    short, text = COMPARISONS[comparison]
    return (short, f"{short}, {text}") if features.is_i3d else ("", f"Frechet distance of {features.network}, {text}")


def report(protocol: Protocol, features: Features, source: ClipSource, figures: dict[str, Trials]) -> dict[str, Any]:
    """The results and everything needed to reproduce them, as JSON values."""
    rows = {}
    for comparison, trials in figures.items():
        short, name = figure_names(comparison, features)
        paper = matching_figure(short, protocol, features.network, source.data)
        rows[comparison] = {"name": name, **trials.to_json(), "shown": str(trials), "paper": paper and str(paper)}
    return {
        "data": source.data,
        "protocol": protocol.to_json(),
        "features": features.to_json(),
        "made_of": source.digests,
        "seeds": source.seeds,
        "commit": commit(),
        "figures": rows,
    }


def table(result: dict[str, Any]) -> str:
    """A report as text."""
    p, features, rows = result["protocol"], result["features"], result["figures"].values()
    width = max(len(row["name"]) for row in rows)
    lines = [
        f"{result['data'] or 'clips of files'}: protocol {p['name']}: {p['n_clips']} clips of {p['n_frames']} frames,"
        f" {p['n_cond_frames']} given, samples of each: {p['samples_per_clip']}, trials: {p['n_trials']} (mean ± "
        "standard deviation)",
        f"features: {features['network']} ({features['kind']}, sha256 {features['sha256'][:16]})",
        "",
        *(f"{row['name']:{width}}  {row['shown']:>18}  {row['paper'] or ''}".rstrip() for row in rows),
    ]
    if not any(row["paper"] for row in rows):
        lines += ["", "the paper has no value to compare with: its data, protocol or feature network differ"]
    return "\n".join(lines)


def main(args: Args) -> Written:
    if args.run is None and args.samples is None:
        raise UserError("there is nothing to compare; give a --run, or --samples and --real")
    protocol = make_protocol(args)
    if protocol.metric == "inception" and args.features == "random_conv":
        raise UserError("the inception score needs a trained classifier; give --features c3d and its --weights")
    features = load_features(args.features, args.weights, args.sha256, args.device, args.epsilon)
    source = make_source(args, protocol)
    if protocol.metric == "frechet":
        figures = distances(args.feature_batch_size, protocol, features, source)
    else:
        figures = scores(args, protocol, features, source)
    result = report(protocol, features, source, figures)
    result |= {"models": model_settings(args.run), "batch": args.batch_size}
    folder = args.out or (args.run / "evaluation" if args.run else args.samples.parent)  # type: ignore[union-attr]
    changed = "" if protocol.name == args.protocol else "-altered"
    stem, text = f"{protocol.metric}-{args.protocol}{changed}-{args.features}", table(result)
    write_json(folder / f"{stem}.json", result)
    write_atomic(folder / f"{stem}.txt", (text + "\n").encode())
    print(text)
    if {"samples_real", "reconstructions_real"} <= figures.keys():
        samples, decoded = figures["samples_real"].mean, figures["reconstructions_real"].mean
        print(f"{args.run or args.samples}: {judge_distances(samples, decoded)}")
    return Written(folder / f"{stem}.json")


if __name__ == "__main__":
    command(main, "fvd")
