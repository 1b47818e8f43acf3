"""The workloads of train/benchmark.py, on synthetic data.

A workload is a call without arguments, the clips or codes it processes, its FLOPs (worldmodel.utils.hardware), and the
least number of bytes it has to move:

* training: value, gradient and two moments of each weight, read and written once, and the value a second time;
* sampling: all weights once per pass, and the cached keys and values;
* reading: each clip, read and written.

Activations are not counted, so the fraction of the copy rate is a lower bound. Predictive sampling has fewer passes,
but their number depends on the prior. Its FLOPs are those of sampling code by code, and its bytes are not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from worldmodel.data.clips import Clips
from worldmodel.data.env_spec import EnvSpec
from worldmodel.data.opening import open_store
from worldmodel.data.shard_cache import ShardCache
from worldmodel.data.writer import StoreWriter
from worldmodel.generation.generate import generate
from worldmodel.models.loading import load_prior
from worldmodel.models.prior import Prior, PriorConfig
from worldmodel.models.recurrent_vqvae import RecurrentVQVAE
from worldmodel.models.vqvae import VQVAE
from worldmodel.models.vqvae_config import VQVAEConfig
from worldmodel.training.distributed import wrap_loss
from worldmodel.training.step import train_step
from worldmodel.training.trainer_config import TrainerConfig
from worldmodel.utils.hardware import flop_counter

CACHE_BYTES = 1 << 40
"""Room for the shards that are kept; the store is far smaller."""


@dataclass(frozen=True)
class Workload:
    """A call to time, and what it processes."""

    call: Callable[[], object]
    n_units: int
    """Clips or codes per call."""
    flops: float = 0
    bytes: float = 0


@dataclass(frozen=True, kw_only=True)
class Task:
    """The workload to build, and its sizes."""

    workload: str
    """vqvae, prior, sample, store or bucket."""
    precision: str
    batch_size: int
    vqvae: VQVAEConfig
    prior: PriorConfig
    device: str = "cpu"
    compile: bool = False
    """Whether training steps are compiled."""
    shard: bool = False
    """Whether training spreads the model over the ranks of torchrun."""
    store: str | Path = ""
    shard_cache: Path | None = None
    """Folder in which shards of a store in a bucket are kept; None reads every clip from the bucket."""
    trained_prior: Path | None = None
    """Folder of the prior for predictive sampling; None samples code by code with random weights."""

    @property
    def codes_per_clip(self) -> int:
        """Number of codes of a clip."""
        return self.prior.latent_shape[0] * self.prior.codes_per_frame

    def name(self) -> str:
        """The workload's name in the table."""
        compiled = ", compiled" * self.compile
        if self.workload == "vqvae":
            return f"vqvae{compiled}"
        if self.workload == "prior":
            return f"prior, attention dropout {self.prior.attention_dropout}{compiled}"
        if self.workload == "bucket":
            return "bucket, cached" if self.shard_cache else "bucket"
        return "sample, ahead" if self.trained_prior else self.workload


def build_workload(task: Task) -> Workload:
    """The workload of a task with our code."""
    torch.manual_seed(0)
    return {"vqvae": _vqvae, "prior": _prior, "sample": _sample, "store": _store, "bucket": _store}[task.workload](task)


def count_flops(call: Callable[[], object]) -> float:
    """The FLOPs of a call. It is called twice, since the first call may compile."""
    call()
    with flop_counter() as count:
        call()
    return float(count.get_total_flops())


def bytes_moved(model: nn.Module) -> float:
    """Bytes moved by a training step of a model: values, gradients and two moments."""
    return 10.0 * sum(p.nbytes for p in model.parameters() if p.requires_grad)


def _vqvae(task: Task) -> Workload:
    model, call = _vqvae_step(task)
    return Workload(call, task.batch_size, count_flops(call), bytes_moved(model))


def _prior(task: Task) -> Workload:
    model, call = _prior_step(task)
    return Workload(call, task.batch_size * task.codes_per_clip, count_flops(call), bytes_moved(model))


def training_step(task: Task) -> Callable[[], object]:
    """A training step of the workload vqvae or prior, on this rank's clips."""
    torch.manual_seed(0)
    return {"vqvae": _vqvae_step, "prior": _prior_step}[task.workload](task)[1]


def _vqvae_step(task: Task) -> tuple[nn.Module, Callable[[], object]]:
    c = task.vqvae
    given = int(c.past_frames > 0)  # the frame before the clip
    frames = torch.randint(
        0, 256, (task.batch_size, c.n_frames + given, *c.frame_size, c.channels), dtype=torch.uint8, device=task.device
    )
    if not given:
        model = VQVAE(c).to(task.device)
        return model, _training(model, lambda batch: model(batch["x"]), frames, task)
    recurrent = RecurrentVQVAE(c).to(task.device)
    actions, state = frames.new_zeros(task.batch_size, c.n_frames, 0), recurrent.start(frames[:, 0])
    return recurrent, _training(recurrent, lambda batch: recurrent(batch["x"], actions, state)[0], frames, task)


def _prior_step(task: Task) -> tuple[nn.Module, Callable[[], object]]:
    model = Prior(task.prior, _codebook(task)).to(task.device)
    codes, c = _codes(task, task.batch_size), task.prior
    n_images = c.latent_shape[0] if c.image_input else c.n_cond_frames
    shape = (task.batch_size, n_images, *c.cond_frame_shape)
    images = torch.zeros(shape, dtype=torch.uint8, device=task.device)
    encode = model.encode_images if c.image_input else model.encode_cond_frames

    def loss(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": model.loss(batch["x"], features=encode(images) if n_images else None).mean()}

    return model, _training(model, loss, codes, task)


def _training(
    model: nn.Module, loss: Callable[[dict[str, Tensor]], dict[str, Tensor]], x: Tensor, task: Task
) -> Callable[[], object]:
    config = TrainerConfig(precision=task.precision, compile=task.compile)  # type: ignore[arg-type]
    loss = wrap_loss(model, loss, config.compile, task.shard)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused=True)
    return lambda: train_step(model, loss, {"x": x}, optimizer, config, 0)


def _sample(task: Task) -> Workload:
    if task.trained_prior is None:
        model = Prior(replace(task.prior, n_cond_frames=0), _codebook(task)).to(task.device).eval()
    else:
        model = load_prior(task.trained_prior).to(task.device)
    if task.precision == "bfloat16":
        model.bfloat16()  # as in a dream
    begin, generator = _codes(task, task.batch_size)[:, :0], torch.Generator().manual_seed(0)
    run = 1 if task.trained_prior is None else None
    call = lambda: generate(model, begin, task.prior.latent_shape[0], generator, chunk_size=run)  # noqa: E731
    flops, moved = sampling_cost(task, next(model.parameters()).element_size())
    return Workload(call, task.batch_size * task.codes_per_clip, flops, 0 if task.trained_prior else moved)


def sampling_cost(task: Task, size: int) -> tuple[float, float]:
    """FLOPs and bytes of sampling code by code, with half a clip cached on average; `size` is bytes per number."""
    c = task.prior
    weights = c.n_layers * c.d_model * (c.d_model * (2 + 2 * (c.n_kv_heads or c.n_heads) / c.n_heads) + 2 * c.d_ff)
    weights += c.d_model * (c.embedding_dim + c.n_codes)
    cached = c.n_layers * task.codes_per_clip / 2 * 2 * c.d_model * (c.n_kv_heads or c.n_heads) / c.n_heads
    each = 2 * weights + 2 * c.n_layers * task.codes_per_clip * c.d_model
    return task.codes_per_clip * task.batch_size * each, task.codes_per_clip * size * (
        weights + task.batch_size * cached
    )


def _store(task: Task) -> Workload:
    shards = ShardCache(task.shard_cache, CACHE_BYTES) if task.shard_cache else None
    clips = Clips(open_store(task.store, shards), "train", task.vqvae.n_frames, ["frames"])
    rng = np.random.default_rng(0)
    call = lambda: torch.from_numpy(clips.sample(rng, task.batch_size)["frames"])  # noqa: E731
    return Workload(call, task.batch_size, 0, 2 * call().nbytes)


def fill_store(path: str | Path, config: VQVAEConfig, episodes: int = 40) -> np.ndarray:
    """Write a store of noise; returns its frames (episodes, t, h, w, c)."""
    shape = (*config.frame_size, config.channels)
    frames = np.random.default_rng(0).integers(0, 256, (episodes, max(30, 2 * config.n_frames), *shape), dtype=np.uint8)
    with StoreWriter(path, EnvSpec(name="noise", frame_shape=shape), {}, wait_in_files=False) as writer:
        for episode in frames[writer.n_episodes :]:
            writer.append({"frames": episode})
    return frames


def _codebook(task: Task) -> Tensor:
    return torch.randn(task.prior.n_codebooks, task.prior.n_codes, task.prior.embedding_dim)


def _codes(task: Task, batch: int) -> Tensor:
    size = (batch, *task.prior.latent_shape, task.prior.n_codebooks)
    return torch.randint(0, task.prior.n_codes, size, device=task.device)
