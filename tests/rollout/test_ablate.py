"""Tables on the toy world: rows are trained once, resumed, shared between tables, and set beside the paper's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rollout import ablate
from rollout.ablate import Args, BasePrior, BaseVQVAE
from tests.conftest import stages
from worldmodel.metrics.protocol import PAPER
from worldmodel.training.ablations import Table
from worldmodel.utils.checkpoint import weights_digest
from worldmodel.utils.errors import UserError


def toy(run: Path, table: Table, seeds: int = 1) -> Args:
    """Rows of a second; the base has 1,024 codes, so that it is a row of Table 6 too."""
    v, t, p, _ = stages(run, mode="paper", steps=4)
    return Args(
        table=table,
        data=run / "data.zarr",
        out=run / "out",
        n_clips=6,
        n_trials=2,
        batch_size=4,
        n_seeds=seeds,
        device="cpu",
        vqvae=BaseVQVAE(model=replace(v.model, n_codes=1024, stride=(1, 8, 8)), trainer=v.trainer),
        clip_stride=t.clip_stride,
        prior=BasePrior(every_action=p.every_action, model=p.model, trainer=replace(p.trainer, steps=4)),
    )


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that do run, in order: names of their model and row."""
    calls: list[str] = []

    def watch(function: str, name: str) -> None:
        inner: Callable = getattr(ablate, function)

        def watched(args: Any) -> None:
            calls.append(f"{name} {args.run.parent.name}")
            inner(args)

        monkeypatch.setattr(ablate, function, watched)

    watch("train_vqvae", "vqvae")
    watch("train_prior", "prior")
    return calls


def test_a_table_is_interrupted_and_goes_on(
    toy_store: Path, called: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    args = toy(toy_store.parent, 6)
    goes_on = ablate.encode_tokens

    def stop(args: Any) -> None:
        if args.run.parent.name == "base":
            raise KeyboardInterrupt
        goes_on(args)

    monkeypatch.setattr(ablate, "encode_tokens", stop)
    with pytest.raises(KeyboardInterrupt):
        ablate.main(args)
    half = (args.out / "table_6.md").read_text()
    assert half.count("not yet") == 2 * 10
    base = args.out / "base" / "seed_0"
    weights, result = (
        weights_digest(base / "vqvae"),
        args.out / "table_6" / "256_codes" / "seed_0" / "evaluation" / "prior.json",
    )
    first = result.read_bytes()

    monkeypatch.setattr(ablate, "encode_tokens", goes_on)
    called.clear()
    ablate.main(args)
    assert called == ["vqvae base", "prior base", "vqvae 4096_codes", "prior 4096_codes"]
    assert weights_digest(base / "vqvae") == weights
    assert result.read_bytes() == first

    called.clear()
    ablate.main(args)
    assert called == [], "finished rows are not done again"
    work = ablate.make_job(args, ablate.table_rows(6, args.vqvae.model, args.prior.model)[1], 0)
    assert ablate.read_result(args, work) is not None
    assert ablate.read_result(replace(args, n_trials=1), work) is None, "measured anew under other settings"
    with pytest.raises(UserError, match=r"holds a run with trainer.steps = 4, but 5 was asked for"):
        ablate.main(replace(args, vqvae=replace(args.vqvae, trainer=replace(args.vqvae.trainer, steps=5))))
    capsys.readouterr()


def test_a_table_of_two_seeds_beside_the_papers(
    toy_store: Path, called: list[str], capsys: pytest.CaptureFixture
) -> None:
    args = toy(toy_store.parent, 3, seeds=2)
    ablate.main(args)
    assert called == ["vqvae no_attention", "vqvae base"] * 2, "the paper's Table 3 needs no prior"
    text = (args.out / "table_3.md").read_text().splitlines()
    head, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in text if line[:1] == "|"]
    assert head[:4] == ["VQ-VAE", "paper: NMSE ↓", "paper: R-FVD ↓", "ours: latents"]
    assert head[5:] == ["NMSE ↓", "PSNR ↑", "perplexity", "d(reconstructions, real) ↓"]
    assert [[row[0].removesuffix(" (collapsed)"), *row[1:4]] for row in body] == [
        ["no attention", "0.0041", "15.3", "8 x 2 x 2"], ["with attention", "0.0033", "14.9", "8 x 2 x 2"]
    ]  # fmt: skip
    assert "seed 0, 1" in text[2]
    assert "not FVD" in text[2]
    out = capsys.readouterr().out
    assert "no attention: " in out
    assert text[2] in out
    told = json.loads((args.out / "table_3.json").read_text())
    assert (told["data"], told["seeds"], told["features"]["kind"]) == ("toy", 2, "random_conv")
    first, second = told["rows"]
    values = [one["figures"]["NMSE"][0] for one in first["runs"]]
    assert values[0] != values[1]
    assert first["ours"]["NMSE"]["mean"] == pytest.approx(sum(values) / 2)
    assert first["ours"]["NMSE"]["sd"] == pytest.approx(abs(values[0] - values[1]) / 2)
    assert len(second["ours"]["reconstructions_real"]["trials"]) == 2, "one value of each seed: nothing in it is drawn"
    assert all("commit" in one and one["settings"]["vqvae"]["trainer"]["steps"] == 4 for one in second["runs"])
    with Image.open(args.out / "table_3.png") as picture:
        assert picture.width > 600


def test_rows_that_are_the_same_model_share_it(toy_store: Path, called: list[str]) -> None:
    args = toy(toy_store.parent, 4)
    shallow = replace(args.prior, model=replace(args.prior.model, d_model=8))
    ablate.main(replace(args, prior=shallow))
    base = args.out / "base" / "seed_0"
    assert {p.name for p in base.iterdir() if p.name.startswith("prior")} == {
        "prior", "prior_4_layers", "prior_8_layers", "prior_16_layers"
    }  # fmt: skip
    assert called == ["vqvae base", "prior base"] * 4
    rows = json.loads((args.out / "table_4.json").read_text())["rows"]
    assert len({row["runs"][0]["made_of"]["vqvae"] for row in rows}) == 1
    assert [row["runs"][0]["settings"]["prior"]["model"]["n_layers"] for row in rows] == [2, 4, 8, 16]
    for row in rows:
        ours = row["ours"]
        assert ours["bits/frame"]["mean"] == pytest.approx(4 * ours["bits/code"]["mean"]), "2 x 2 codes per frame"
        assert len(ours["samples_real"]["trials"]) == 2
        assert ours["NMSE"] == rows[0]["ours"]["NMSE"]
    weights = weights_digest(base / "vqvae")
    ablate.main(replace(args, table=3))
    same = json.loads((args.out / "table_3.json").read_text())["rows"][1]
    assert same["runs"][0]["made_of"] == {"vqvae": weights}
    assert same["ours"]["NMSE"] == rows[0]["ours"]["NMSE"], "measured on the same clips"


def test_a_row_that_has_collapsed_is_marked_and_does_not_count(tmp_path: Path) -> None:
    """The same figures, once with a mean picture that is nearer to the clips than the first row's reconstructions."""

    def written(nmse: float, distance: float, still: float) -> list[dict[str, Any]]:
        figures = {"NMSE": nmse, "PSNR": 20, "perplexity": 3, "reconstructions_real": distance, "mean picture": still}
        info = {"data": "toy", "features": {"network": "random features"}, "protocol": PAPER.to_json()}
        info |= {"seed": 0, "latent": [8, 2, 2], "parameters": {"vqvae": 10**6}}
        return [info | {"figures": {name: [value] for name, value in figures.items()}}]

    for still, marked, counted in ((0.9, 0, "1 of 1 pairs"), (0.4, 1, "0 of 0 pairs")):
        rows = {"no attention": written(0.5, 3.0, still), "with attention": written(0.3, 2.0, still)}
        text = ablate.render(3, rows, 1, tmp_path / "table_3")
        assert text.count("(collapsed)") == marked
        assert text.count(counted) == 2
        assert ("left out of the count" in text) == bool(marked)
        told = json.loads((tmp_path / "table_3.json").read_text())["rows"]
        assert [row["collapsed"] for row in told] == [bool(marked), False]


def test_mistakes_are_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"make it with `python collect/vizdoom.py --preset demo`"):
        ablate.main(Args(data=tmp_path / "data.zarr"))
    with pytest.raises(UserError, match="set mode to paper"):
        Args(vqvae=replace(Args().vqvae, model=replace(Args().vqvae.model, mode="stream")))
    with pytest.raises(UserError, match="n_clips must be at least 2"):
        Args(n_clips=1)
