"""Timed work gets done and is counted, on tiny models; the official side is driven through a stand-in of our own."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from train import benchmark, workloads, workloads_official
from train.mask_memory import mask_memory
from train.workloads import Task
from worldmodel.models.prior import Prior, PriorConfig
from worldmodel.models.vqvae_config import VQVAEConfig
from worldmodel.utils.checkpoint import save_checkpoint
from worldmodel.utils.errors import UserError

VQVAE = VQVAEConfig(
    n_frames=4,
    frame_size=(8, 8),
    stride=(2, 2, 2),
    hidden_channels=8,
    residual_channels=8,
    n_res_blocks=1,
    n_heads=2,
    n_codes=8,
    embedding_dim=4,
)
PRIOR = PriorConfig(latent_shape=(2, 4, 4), n_codes=8, embedding_dim=4, d_model=8, n_heads=2, n_layers=2, d_ff=16)
CHECKOUT = {
    "attention": """
        from torch import nn
        class AddBroadcastPosEmbed(nn.Module):
            def __init__(self, shape, embd_dim):
                assert embd_dim % len(shape) == 0
    """,
    "vqvae": """
        import pytorch_lightning, torch
        from torch import nn
        class SamePadConv3d(nn.Conv3d):
            def forward(self, x):
                return super().forward(nn.functional.pad(x, (1,) * 6))
        class VQVAE(pytorch_lightning.LightningModule):
            def __init__(self, args):
                super().__init__()
                self.save_hyperparameters()
                self.encoder = nn.Module()
                self.encoder.first = nn.Conv3d(3, args.n_hiddens, 2, args.downsample)
                self.encoder.conv_last = SamePadConv3d(3, args.n_hiddens, 3)
            def training_step(self, batch, index):
                return self.encoder.conv_last(self.encoder.first(batch["video"])).square().mean()
    """,
    "gpt": "from .attention import AddBroadcastPosEmbed",
    "download": "import gdown",
    "data": "from torchvision.datasets.video_utils import VideoClips",
}


def task(what: str, **changes: object) -> Task:
    return replace(Task(workload=what, precision="float32", batch_size=2, vqvae=VQVAE, prior=PRIOR), **changes)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Our own few lines under the official names."""
    for name in [n for n in sys.modules if n.split(".")[0] == "videogpt"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "videogpt").mkdir()
    for name, code in CHECKOUT.items():
        lines = code.split("\n")
        indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
        (tmp_path / "videogpt" / f"{name}.py").write_text("\n".join(line[indent:] for line in lines))
    yield tmp_path
    for name in [n for n in sys.modules if n.split(".")[0] == "videogpt" or n in workloads_official.STUB_MODULES]:
        if getattr(sys.modules[name], "__spec__", None) is None or name.startswith("videogpt"):
            sys.modules.pop(name)


@pytest.mark.parametrize("what", ["vqvae", "prior", "sample"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_work_is_done_and_counted(what: str, precision: str) -> None:
    """Of two latent frames, of which PyTorch's own gradient of a weight in bfloat16 has stale memory in it."""
    made = workloads.build_workload(task(what, precision=precision))
    made.call()
    assert made.n_units == (2 if what == "vqvae" else 2 * 32)
    assert made.flops > 1000 and made.bytes > 1000


def test_what_a_pass_asks_for() -> None:
    """By hand: two layers of 4 * 8 * 8 + 2 * 8 * 16 weights, 4 * 8 of the input and 8 * 8 of the head."""
    weights = 2 * 512 + 32 + 64
    flops, moved = workloads.sampling_cost(task("sample"), 4)
    assert flops == 32 * 2 * (2 * weights + 2 * 2 * 32 * 8)
    assert moved == 32 * 4 * (weights + 2 * (2 * 16 * 2 * 8))


def test_clips_of_a_store(tmp_path: Path) -> None:
    frames = workloads.fill_store(tmp_path / "noise.zarr", VQVAE, episodes=10)
    assert frames.shape == (10, 30, 8, 8, 3)
    made = workloads.build_workload(task("store", store=tmp_path / "noise.zarr"))
    clips = made.call()
    assert isinstance(clips, torch.Tensor) and clips.shape == (2, 4, 8, 8, 3) and clips.dtype == torch.uint8


def test_the_official_side(checkout: Path) -> None:
    made = workloads_official.build_workload(task("vqvae"), checkout)
    made.call()
    assert made.n_units == 2 and made.flops > 1000, "its last convolution was repaired"
    positions = sys.modules["videogpt.attention"].AddBroadcastPosEmbed((2, 3, 4), 8)
    assert [tuple(p.shape) for p in positions.parameters()] == [(2, 3), (3, 3), (4, 2)]
    with pytest.raises(UserError, match=r"has no videogpt/gpt\.py"):
        workloads_official.load_official(checkout / "videogpt")


def test_table_and_figures(tmp_path: Path, checkout: Path, capsys: pytest.CaptureFixture) -> None:
    args = benchmark.Args(
        workloads=("vqvae",), official=checkout, vqvae=VQVAE, precision=("float32",), rounds=1, seconds=0.2,
        profile=True, out=tmp_path / "speed.json",
    )  # fmt: skip
    benchmark.main(args)
    figures = json.loads(args.out.read_text())
    assert [row["side"] for row in figures["rows"]] == ["ours", "official"]
    for row in figures["rows"]:
        assert all(row[key] > 0 for key in ("rate", "matmul_share", "copy_share", "machine_matmul", "machine_copy"))
    (entry,) = figures["ratios"]
    ours, theirs = (row["rate"] for row in figures["rows"])
    assert entry["float32"] == entry["as_shipped"] == ours / theirs
    said = capsys.readouterr().out
    assert "ours / official: vqvae, batch 2" in said
    for row in figures["rows"]:
        assert sum(row["profile"].values()) == pytest.approx(1) and "convolutions" in row["profile"]
    assert "% convolutions" in said
    benchmark.main(replace(args, workloads=("sample",), sample_batch_sizes=(1,), official=None, prior=PRIOR))
    (row,) = json.loads(args.out.read_text())["rows"]
    assert sum(row["profile"].values()) == pytest.approx(1) and row["profile"]["matrix products"] > 0


def test_clips_of_a_folder_and_of_a_bucket_are_timed_in_one_run(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    here = lambda task, checkout, args: benchmark.measure(task, checkout, args.seconds, args.allocator)  # noqa: E731
    monkeypatch.setattr(benchmark, "measure_in_process", here)
    monkeypatch.setattr(benchmark, "machine_rates", lambda *_: {"matmul": 1.0, "copy": 1.0})
    args = benchmark.Args(
        workloads=("store", "bucket"), bucket=f"{bucket}/noise.zarr", vqvae=VQVAE, store_batch_size=2, rounds=1,
        seconds=0.1, out=tmp_path / "speed.json",
    )  # fmt: skip
    for _ in range(2):  # the second time the store in the bucket is there
        benchmark.main(args)
    rows = json.loads(args.out.read_text())["rows"]
    assert [row["what"] for row in rows] == ["store", "bucket", "bucket, cached"]
    assert all(row["rate"] > 0 for row in rows)
    assert "bucket, cached" in capsys.readouterr().out
    for wrong in ({"bucket": args.bucket}, {"workloads": ("bucket",)}):
        with pytest.raises(UserError, match="the workload bucket and --bucket belong together; give both, or none"):
            benchmark.Args(**wrong)


def test_a_trained_prior_is_sampled_ahead(tmp_path: Path) -> None:
    for name, config in (
        ("free", replace(PRIOR, d_model=16)),
        ("told", replace(PRIOR, conditioning="clip", condition_dim=3)),
    ):
        save_checkpoint(tmp_path / name, Prior(config), {"kind": "prior", "model": asdict(config)})
    args = benchmark.Args(
        workloads=("sample",),
        precision=("float32",),
        sample_batch_sizes=(2,),
        trained_prior=tmp_path / "free",
        prior=PRIOR,
    )
    code_by_code, ahead = benchmark.list_tasks(args, tmp_path)
    assert (code_by_code.name(), ahead.name()) == ("sample", "sample, ahead")
    assert (code_by_code.prior.d_model, ahead.prior.d_model) == (8, 16)
    codes = workloads.build_workload(ahead).call()
    assert isinstance(codes, torch.Tensor) and codes.shape == (2, 2, 4, 4, 1)
    with pytest.raises(UserError, match="use an unconditional prior in raster order"):
        list(benchmark.list_tasks(replace(args, trained_prior=tmp_path / "told"), tmp_path))


def test_steps_of_a_recurrent_vqvae_and_of_a_prior_with_images() -> None:
    vqvae = VQVAEConfig(
        mode="stream", past_frames=2, n_frames=1, frame_size=(16, 16), stride=(1, 4, 4), downsample_channels=(8,),
        hidden_channels=8, n_res_blocks=1, n_codes=8, embedding_dim=4,
    )  # fmt: skip
    prior = PriorConfig(
        mode="stream", decoding_order="block", latent_shape=(3, 4, 4), n_codes=8, embedding_dim=4, d_model=16, d_ff=16,
        n_layers=1, image_input=True, cond_frame_shape=(16, 16, 3),
    )  # fmt: skip
    for name, units in (("vqvae", 2), ("prior", 2 * 3 * 16)):
        task = workloads.Task(workload=name, precision="float32", batch_size=2, vqvae=vqvae, prior=prior)
        step = workloads.build_workload(task)
        losses = step.call()
        assert step.n_units == units and step.flops > 0
        assert isinstance(losses, dict) and float(losses["loss"]) > 0


def test_masks_by_hand() -> None:
    sizes = mask_memory("cpu", (2, 4, 4), 4)
    assert [size for what, size in sizes.items() if "block" not in what] == [32 * 32, 4 * 32 * 32, 16 * 4 * 32 * 32]
    assert all(size > 0 for size in sizes.values())


def test_models_of_a_preset_and_bad_settings() -> None:
    vqvae, prior = benchmark.model_configs(benchmark.Args(preset_models="ucf101"))
    assert prior.latent_shape == vqvae.latent_shape and prior.n_layers == 20 and prior.d_model == 1024
    vqvae, prior = benchmark.model_configs(
        benchmark.Args(preset_models="health_gathering_supreme", workloads=("vqvae", "prior"))
    )
    assert (vqvae.past_frames, vqvae.mode, prior.latent_shape, prior.image_input) == (2, "stream", (16, 8, 8), True)
    with pytest.raises(UserError, match="it can only be sampled in a dream; give --workloads vqvae prior"):
        benchmark.model_configs(benchmark.Args(preset_models="health_gathering_supreme"))
    with pytest.raises(UserError, match="the official code has no models like those of health_gathering_supreme"):
        benchmark.model_configs(
            benchmark.Args(
                preset_models="health_gathering_supreme", workloads=("vqvae",), official=Path("VideoGPT"),
            )
        )  # fmt: skip
    with pytest.raises(UserError, match="rounds"):
        benchmark.Args(rounds=0)
    with pytest.raises(UserError, match="seconds must be a finite number above 0, not 0"):
        benchmark.Args(seconds=0)
