"""The paper's distances from files and from runs, with small networks in place of the published ones."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rollout import clip_sources, fvd
from tests.tiny import tiny_vqvae
from worldmodel.data.store import Store
from worldmodel.metrics.features import C3D_LOGITS, I3D_LOGITS, Features, load_features
from worldmodel.metrics.frechet import frechet_distance
from worldmodel.metrics.inception import inception_score, probabilities
from worldmodel.metrics.protocol import PAPER, TGAN2, Trials
from worldmodel.models.loading import load_vqvae
from worldmodel.models.pixels import to_uint8
from worldmodel.models.vqvae import VQVAE
from worldmodel.utils.checkpoint import save_checkpoint, weights_digest
from worldmodel.utils.errors import UserError

SMALL: dict[str, Any] = {"n_clips": 6, "n_trials": 2, "frame_size": 16, "device": "cpu"}


def films(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(n, 16, 16, 16, 3), dtype=np.uint8)


def saved(path: Path, clips: np.ndarray) -> Path:
    np.save(path, clips)
    return path


def result(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())


class Logits(nn.Module):
    """400 numbers of a clip: means over colours and time of fifty pixels in eight rows."""

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        return x.mean((1, 2))[:, :8, :50].reshape(-1, 400) * (10.0 if return_features else 1.0)


@pytest.fixture
def network(tmp_path: Path) -> tuple[Path, str]:
    """A TorchScript file of 400 features, and its sha256."""
    path = tmp_path / "net.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(Logits()), str(path))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def run(toy_store: Path) -> Path:
    """A run folder of the toy world with an untrained VQ-VAE."""
    config = tiny_vqvae()
    torch.manual_seed(0)
    save_checkpoint(toy_store.parent / "vqvae", VQVAE(config), {"kind": "vqvae", "model": asdict(config)})
    return toy_store.parent


def with_prior(run: Path, monkeypatch: pytest.MonkeyPatch, condition: str, wander: bool = False) -> list[int]:
    """Give a run a prior whose samples are noise after the given frames; returns the seeds it was asked for."""
    save_checkpoint(run / "prior", nn.Linear(1, 1), {"kind": "prior", "model": {"conditioning": condition}})
    asked: list[int] = []

    def sampler(run: Path, n: int, given: int, device: str, batch: int, split: str) -> Callable:
        def draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
            asked.append(seed)
            real = films(n, seed=1000 + (seed if wander else 0))
            samples = films(n, seed)
            samples[:, :given] = real[:, :given]
            return samples, real

        return draw

    monkeypatch.setattr(clip_sources, "make_sampler", sampler)
    return asked


def reconstructed(run: Path, clips: np.ndarray) -> np.ndarray:
    model = load_vqvae(run / "vqvae")
    with torch.no_grad():
        return to_uint8(model.decode(model.encode(torch.from_numpy(clips)))).numpy()


def test_random_features_never_carry_a_published_name(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    samples, real = films(12), films(6, seed=1)
    args = fvd.Args(
        samples=saved(tmp_path / "s.npy", samples), real=saved(tmp_path / "r.npy", real),
        reconstructions=saved(tmp_path / "d.npy", real // 2), features="random_conv", dataset="bair", **SMALL,
    )  # fmt: skip
    fvd.main(args)
    printed = capsys.readouterr()
    files = sorted(tmp_path.glob("frechet-*"))
    assert [f.name for f in files] == [f"frechet-paper-altered-random_conv.{end}" for end in ("json", "txt")]
    told = [printed.out.replace(str(tmp_path), ""), printed.err, *(f.name + f.read_text() for f in files)]
    assert all("fvd" not in text.lower() for text in told)
    assert "Frechet distance of random features, samples against real" in printed.out
    assert "the paper has no value to compare with" in printed.out
    assert "half as far from real clips as samples are" in printed.out
    network = load_features("random_conv")
    figures = result(tmp_path, "frechet-paper-altered-random_conv")["figures"]
    by_hand = [frechet_distance(network(part), network(real)) for part in (samples[:6], samples[6:])]
    assert figures["samples_real"]["trials"] == pytest.approx(by_hand)
    assert figures["samples_real"]["mean"] == pytest.approx(np.mean(by_hand))
    assert figures["samples_real"]["sd"] == pytest.approx(np.std(by_hand))
    decoded = frechet_distance(network(real // 2), network(real))
    assert figures["reconstructions_real"]["trials"] == pytest.approx([decoded] * 2)
    star = [frechet_distance(network(part), network(real // 2)) for part in (samples[:6], samples[6:])]
    assert figures["samples_reconstructions"]["trials"] == pytest.approx(star)


def test_results_carry_what_they_depend_on(tmp_path: Path, network: tuple[Path, str]) -> None:
    samples, real = films(12), films(12, seed=1)
    paths = {"samples": saved(tmp_path / "s.npy", samples), "real": saved(tmp_path / "r.npy", real)}
    weights, sha256 = network
    fvd.main(fvd.Args(**paths, features="torchscript", weights=weights, sha256=sha256, out=tmp_path / "out", **SMALL))
    found = result(tmp_path / "out", "frechet-paper-altered-torchscript")
    assert found["features"]["sha256"] == sha256
    assert found["features"]["network"] == I3D_LOGITS
    assert found["protocol"]["name"] == "paper but n_clips = 6, n_trials = 2, frame_size = 16"
    assert found["made_of"] == {k: hashlib.sha256(p.read_bytes()).hexdigest() for k, p in paths.items()}
    assert list(found["figures"]) == ["samples_real"], "there is nothing that could reconstruct"
    figure = found["figures"]["samples_real"]
    assert (figure["name"], figure["paper"]) == ("FVD, samples against real", None)
    features = load_features("torchscript", weights, sha256)
    by_hand = [frechet_distance(features(samples[a : a + 6]), features(real[a : a + 6])) for a in (0, 6)]
    assert figure["trials"] == pytest.approx(by_hand), "each trial has real clips of its own"
    commit = found["commit"]
    assert commit is None or len(commit.removesuffix("-dirty")) == 40


def test_a_run_without_a_prior_is_judged_by_its_reconstructions(run: Path, network: tuple[Path, str]) -> None:
    weights, sha256 = network
    fvd.main(fvd.Args(run=run, features="torchscript", weights=weights, sha256=sha256, batch_size=4, seed=3, **SMALL))
    found = result(run / "evaluation", "frechet-paper-altered-torchscript")
    assert list(found["figures"]) == ["reconstructions_real"]
    assert found["figures"]["reconstructions_real"]["name"] == "R-FVD, reconstructions against real"
    assert found["made_of"] == {"vqvae": weights_digest(run / "vqvae")}
    assert (found["data"], found["seeds"]) == ("toy", [3, 4])
    store, features = Store(run / "data.zarr"), load_features("torchscript", weights, sha256)
    source = clip_sources.source_from_run(
        run, PAPER.with_changes(n_clips=6, n_trials=2, frame_size=16), "", 3, "cpu", 4
    )
    _, real = source.draw(0)
    assert real is not None
    held = np.concatenate([store.read_episode(i, ["frames"])["frames"] for i in store.episode_indices("test")])
    windows = np.lib.stride_tricks.sliding_window_view(held, 16, axis=0)
    assert all((np.moveaxis(windows, -1, 1) == clip).all((1, 2, 3, 4)).any() for clip in real), "of held-out episodes"
    expected = frechet_distance(features(reconstructed(run, real)), features(real))
    assert found["figures"]["reconstructions_real"]["trials"][0] == pytest.approx(expected)


def test_samples_of_a_run(run: Path, monkeypatch: pytest.MonkeyPatch, network: tuple[Path, str]) -> None:
    asked = with_prior(run, monkeypatch, "none")
    weights, sha256 = network
    fvd.main(fvd.Args(run=run, features="torchscript", weights=weights, sha256=sha256, seed=5, **SMALL))
    found = result(run / "evaluation", "frechet-paper-altered-torchscript")
    assert asked == found["seeds"] == [5, 6]
    assert found["made_of"] == {"vqvae": weights_digest(run / "vqvae"), "prior": weights_digest(run / "prior")}
    assert found["protocol"]["action_conditioned"] is False
    features, real = load_features("torchscript", weights, sha256), films(6, seed=1000)
    sets = [np.concatenate([real[:, :1], films(6, seed)[:, 1:]], axis=1) for seed in (5, 6)]
    decoded = features(reconstructed(run, real))
    assert found["figures"]["samples_real"]["trials"] == pytest.approx(
        [frechet_distance(features(s), features(real)) for s in sets]
    )
    assert found["figures"]["samples_reconstructions"]["name"] == "FVD*, samples against reconstructions"
    assert found["figures"]["samples_reconstructions"]["trials"] == pytest.approx(
        [frechet_distance(features(s), decoded) for s in sets]
    )


def test_pooled_samples_are_one_set(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = with_prior(run, monkeypatch, "frame")
    small = SMALL | {"n_trials": None}
    fvd.main(fvd.Args(run=run, protocol="pooled", samples_per_clip=3, features="random_conv", **small))
    found = result(run / "evaluation", "frechet-pooled-altered-random_conv")
    assert asked == [0, 1, 2]
    assert found["protocol"]["action_conditioned"] is True, "the prior is told actions"
    network, real = load_features("random_conv"), films(6, seed=1000)
    pooled = np.concatenate([np.concatenate([real[:, :1], films(6, seed)[:, 1:]], axis=1) for seed in asked])
    expected = frechet_distance(network(pooled), network(real))
    assert found["figures"]["samples_real"]["trials"] == pytest.approx([expected])
    assert found["figures"]["samples_real"]["sd"] is None
    with_prior(run, monkeypatch, "frame", wander=True)
    with pytest.raises(UserError, match="several samples of the same clips, but the clips differ"):
        fvd.main(fvd.Args(run=run, protocol="pooled", samples_per_clip=3, features="random_conv", **small))


def test_an_inception_score_of_samples(tmp_path: Path, network: tuple[Path, str]) -> None:
    weights, sha256 = network
    samples = saved(tmp_path / "s.npy", films(12))
    args = {"samples": samples, "protocol": "tgan2", "weights": weights, "sha256": sha256, **SMALL}
    fvd.main(fvd.Args(features="torchscript", **args))
    figure = result(tmp_path, "inception-tgan2-altered-torchscript")["figures"]["samples"]
    assert figure["name"] == f"Inception score by {I3D_LOGITS}"
    logits = load_features("torchscript", weights, sha256)(films(12))
    expected = [inception_score(probabilities(part)) for part in (logits[:6], logits[6:])]
    assert figure["trials"] == pytest.approx(expected)
    with pytest.raises(UserError, match="trained classifier"):
        fvd.main(fvd.Args(features="random_conv", samples=samples, protocol="tgan2", **SMALL))


def features_of(network: str) -> Features:
    ours = load_features("random_conv")
    return Features(**{**vars(ours), "network": network, "kind": "i3d"})


@pytest.mark.parametrize(
    ("protocol", "network", "data", "comparison", "printed"),
    [
        (PAPER, I3D_LOGITS, "bair", "samples_real", "103.3 (paper, Table 1, VideoGPT)"),
        (PAPER, I3D_LOGITS, "bair", "reconstructions_real", "14.9 (paper, Table 3, with attention)"),
        (PAPER, I3D_LOGITS, "bair", "samples_reconstructions", "94.6 ± 1.5 (paper, Table 5, 8 x 32 x 32)"),
        (TGAN2, C3D_LOGITS, "ucf101", "samples", "24.69 ± 0.3 (paper, Table 2, VideoGPT)"),
        (PAPER.with_changes(n_clips=255), I3D_LOGITS, "bair", "samples_real", None),
        (PAPER, f"{I3D_LOGITS}, batch norm epsilon 0.001", "bair", "samples_real", None),
        (PAPER, I3D_LOGITS, "toy", "samples_real", None),
        (TGAN2, I3D_LOGITS, "ucf101", "samples", None),
    ],
)
def test_the_papers_figure_stands_beside_ours(
    protocol: Any, network: str, data: str, comparison: str, printed: str | None
) -> None:
    source = clip_sources.ClipSource(draw=lambda k: (None, None), reconstruct=None, data=data, digests={}, seeds=[])
    found = fvd.report(protocol, features_of(network), source, {comparison: Trials((110.0, 112.0))})
    text = fvd.table(found)
    assert found["figures"][comparison]["paper"] == printed
    assert "111.00 ± 1.00" in text
    assert ("paper, Table" in text) == (printed is not None)
    assert printed is None or printed in text
    assert ("the paper has no value" in text) == (printed is None)


def test_mistakes_are_told_in_a_sentence(tmp_path: Path, run: Path) -> None:
    samples, real = saved(tmp_path / "s.npy", films(11)), saved(tmp_path / "r.npy", films(6))
    (tmp_path / "bad.npy").write_bytes(b"nothing")
    files = {"samples": samples, "real": real, "features": "random_conv"}
    for settings, text in (
        ({"features": "random_conv"}, "nothing to compare"),
        (files | SMALL, "takes 12 samples, but .*s.npy has 11"),
        (files | {"samples": real, "real": samples} | SMALL | {"n_trials": 1}, "takes 6 real, but .*s.npy has 11"),
        (files | {"samples": tmp_path / "bad.npy"} | SMALL, "bad.npy is not a .npy file of clips"),
        (
            files | {"samples": real} | SMALL | {"n_trials": 1, "frame_size": 64},
            "64 x 64, but samples have 16 x 16",
        ),
        (files | {"samples": real} | SMALL | {"n_trials": 1, "n_frames": 9}, "9 frames, but samples have 16"),
        ({"run": run, "features": "random_conv"} | SMALL | {"n_clips": 500}, "split 'test' of .* has .* not 500"),
        ({"run": run, "features": "torchscript"} | SMALL, "need weights"),
    ):
        with pytest.raises(UserError, match=text):
            fvd.main(fvd.Args(**settings))  # type: ignore[arg-type]
    for settings, text in (
        ({"samples": samples}, "add --real"),
        ({"real": real}, "add --samples"),
        ({"run": run, "reconstructions": real}, "add --samples and --real"),
        ({"run": run, "batch_size": 0}, "batch_size must be at least 1, not 0"),
    ):
        with pytest.raises(UserError, match=text):
            fvd.Args(**settings)  # type: ignore[arg-type]
