"""The workloads of train/benchmark.py with the official VideoGPT (github.com/wilson1yan/VideoGPT), from a checkout.

The checkout's modules are imported unchanged. Its package imports Lightning, scikit-video, gdown and torchvision, which
the benchmark does not use; empty modules replace those that are not installed. Two faults are fixed on the objects,
because the sizes compared here fail without them:

* the last convolution of its encoder expects 3 channels where the strides need only one convolution (2, 2, 2);
* its position embeddings need a width divisible by the number of axes; here the first axes take the remainder.

Two sizes differ from ours: its encoder has kernels of 4 (Table 8: 3), and its residual blocks have half of the hidden
channels, 120 (the paper's own repository: 128).
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from train.workloads import Task, Workload, bytes_moved, count_flops, sampling_cost
from worldmodel.models.vqvae_config import VQVAEConfig
from worldmodel.utils.errors import UserError


class Lightning(nn.Module):
    """A stub of `LightningModule`: a step outside a trainer needs none of it."""

    def save_hyperparameters(self) -> None: ...


STUB_MODULES: dict[str, dict[str, Any]] = {
    "pytorch_lightning": {"LightningModule": Lightning, "LightningDataModule": object},
    "skvideo": {},
    "skvideo.io": {},
    "gdown": {},
    "requests": {},
    "torchvision": {},
    "torchvision.datasets": {},
    "torchvision.datasets.video_utils": {"VideoClips": None},
}


def load_official(checkout: Path) -> Any:
    """Import the modules vqvae, gpt, download and data of a checkout; `UserError` if the folder is not one."""
    package = Path(checkout).resolve() / "videogpt"
    if not (package / "gpt.py").exists():
        raise UserError(f"{checkout} has no videogpt/gpt.py; give a checkout of github.com/wilson1yan/VideoGPT")
    for name, members in STUB_MODULES.items():
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = module = ModuleType(name)
            module.__dict__.update(members)
    sys.modules["videogpt"] = module = ModuleType("videogpt")
    module.__path__ = [str(package)]
    attention = importlib.import_module("videogpt.attention")

    class Positions(attention.AddBroadcastPosEmbed):  # type: ignore[misc, name-defined]
        """Position embeddings of any width: the second fix."""

        def __init__(self, shape: tuple[int, ...], embd_dim: int) -> None:
            nn.Module.__init__(self)
            self.shape, self.n_dim, self.embd_dim, self.dim = shape, len(shape), embd_dim, -1
            parts = [embd_dim // self.n_dim + (i < embd_dim % self.n_dim) for i in range(self.n_dim)]
            axes = enumerate(zip(shape, parts, strict=True))
            self.emb = nn.ParameterDict({f"d_{i}": nn.Parameter(torch.randn(n, p) * 0.01) for i, (n, p) in axes})

    attention.AddBroadcastPosEmbed = Positions  # type: ignore[attr-defined]
    names = ("vqvae", "gpt", "download", "data")
    return SimpleNamespace(**{name: importlib.import_module(f"videogpt.{name}") for name in names})


def build_workload(task: Task, checkout: Path) -> Workload:
    """The workload of a task with the official code."""
    torch.manual_seed(0)
    official = load_official(checkout)
    return {"vqvae": _vqvae, "prior": _prior, "sample": _sample, "store": _store}[task.workload](official, task)


def _make_vqvae(official: Any, c: VQVAEConfig, stride: tuple[int, ...], hidden: int, layers: int) -> Any:
    settings = SimpleNamespace(
        embedding_dim=c.embedding_dim, n_codes=c.n_codes, n_hiddens=hidden, n_res_layers=layers,
        downsample=stride, sequence_length=c.n_frames, resolution=c.frame_size[0],
    )  # fmt: skip
    model = official.vqvae.VQVAE(settings)
    if max(stride) == 2:
        model.encoder.conv_last = official.vqvae.SamePadConv3d(hidden, hidden, kernel_size=3)
    return model


def _make_prior(official: Any, task: Task) -> Any:
    """The official prior. It contains a VQ-VAE; only its codebook is used here, so the other layers are small."""
    c = _matching_vqvae(task)
    stride = tuple(n // m for n, m in zip((c.n_frames, *c.frame_size), task.prior.latent_shape, strict=True))
    official.download.load_vqvae = lambda name: _make_vqvae(official, c, stride, 32, 1)
    p = task.prior
    return official.gpt.VideoGPT(
        SimpleNamespace(
            vqvae="made here", n_cond_frames=0, class_cond=False, class_cond_dim=None, hidden_dim=p.d_model,
            heads=p.n_heads, layers=p.n_layers, dropout=p.dropout, attn_type="full", attn_dropout=p.attention_dropout,
            max_steps=1,
        )
    ).to(task.device)  # fmt: skip


def _matching_vqvae(task: Task) -> VQVAEConfig:
    """A VQ-VAE config whose codebook and latent shape match the task's prior."""
    t, h, w = task.prior.latent_shape
    return VQVAEConfig(
        n_frames=4 * t,
        frame_size=(4 * h, 4 * w),
        stride=(4, 4, 4),
        n_codes=task.prior.n_codes,
        embedding_dim=task.prior.embedding_dim,
    )


def _train_step(model: nn.Module, loss: Any, task: Task) -> Any:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-4, betas=(0.9, 0.999))

    def step() -> None:
        with torch.autocast(task.device, torch.bfloat16, enabled=task.precision == "bfloat16"):
            value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return step


def _vqvae(official: Any, task: Task) -> Workload:
    c = task.vqvae
    model = _make_vqvae(official, c, c.stride, c.hidden_channels, c.n_res_blocks).to(task.device).train()
    video = torch.rand(task.batch_size, c.channels, c.n_frames, *c.frame_size, device=task.device) - 0.5
    call = _train_step(model, lambda: model.training_step({"video": video}, 0), task)
    return Workload(call, task.batch_size, count_flops(call), bytes_moved(model))


def _prior(official: Any, task: Task) -> Workload:
    """Training on codes, like ours. The official training step also encodes the clips, which is not timed."""
    model = _make_prior(official, task).train()
    model.vqvae.eval()
    codes = torch.randint(0, task.prior.n_codes, (task.batch_size, *task.prior.latent_shape), device=task.device)
    vectors = model.vqvae.codebook.dictionary_lookup(codes)
    call = _train_step(model, lambda: model(vectors, codes, {})[0], task)
    return Workload(call, task.batch_size * task.codes_per_clip, count_flops(call), bytes_moved(model))


def _sample(official: Any, task: Task) -> Workload:
    """Sampling with its cache. It also decodes the clips, with a VQ-VAE small enough to ignore."""
    model = _make_prior(official, task).eval()
    official.gpt.tqdm = lambda steps: steps

    def call() -> None:
        with torch.autocast(task.device, torch.bfloat16, enabled=task.precision == "bfloat16"):
            model.sample(task.batch_size)

    return Workload(
        call, task.batch_size * task.codes_per_clip, *sampling_cost(task, 2 if task.precision == "bfloat16" else 4)
    )


def _store(official: Any, task: Task) -> Workload:
    """Reading without worker processes, which is faster here. Its clips are floats."""
    data = official.data.HDF5Dataset(str(task.store), task.vqvae.n_frames, resolution=task.vqvae.frame_size[0])
    loader = torch.utils.data.DataLoader(data, task.batch_size, shuffle=True, drop_last=True)
    batches = _endless(loader)
    return Workload(lambda: next(batches), task.batch_size, 0, 2.0 * task.batch_size * data[0]["video"].nbytes)


def _endless(loader: Any) -> Any:
    while True:
        yield from loader


def write_hdf5(path: Path, frames: np.ndarray) -> None:
    """The HDF5 file of its loader from (episodes, time, h, w, c)."""
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("train_data", data=frames.reshape(-1, *frames.shape[2:]))
        file.create_dataset("train_idx", data=np.arange(len(frames)) * frames.shape[1])
