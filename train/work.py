"""The pieces of work that train/benchmark.py times, on made-up data: what a step of ours asks of the machine.

A work is a call without arguments, what it gets done (clips or codes), the operations that it counts (worldmodel.rates)
and the bytes that it must move at the least: in a step of training each weight's value, gradient and two moments, read
and written, and its value once more each way; in sampling all weights once a pass and the keys and values cached so
far; in reading, a clip read and written. Activations are not counted, so a share of the copy rate is a lower bound.
Drawing ahead has fewer passes, one cannot say how many: its operations are those of code by code, its bytes are none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from worldmodel.clips import Clips
from worldmodel.continuation import continuation
from worldmodel.fit import FitConfig, train_step
from worldmodel.models import load_prior
from worldmodel.prior import Prior, PriorConfig
from worldmodel.rates import counter
from worldmodel.store import Store
from worldmodel.vqvae import VQVAE, VQVAEConfig
from worldmodel.world import World
from worldmodel.writer import StoreWriter


@dataclass(frozen=True)
class Work:
    """Something to be timed."""

    call: Callable[[], object]
    units: int
    """Clips or codes of a call."""
    flops: float = 0
    bytes: float = 0


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is timed, of what size."""

    what: str
    """vqvae, prior, sample or store."""
    precision: str
    batch: int
    vqvae: VQVAEConfig
    prior: PriorConfig
    device: str = "cpu"
    store: Path = Path()
    trained: Path | None = None
    """Sampling: the prior whose codes are drawn ahead, in runs; none for random weights, code by code."""

    @property
    def codes(self) -> int:
        """Codes of a clip."""
        return self.prior.latent[0] * self.prior.frame

    def name(self) -> str:
        """As the table has it."""
        if self.what == "prior":
            return f"prior, attention dropout {self.prior.attention_dropout}"
        return "sample, ahead" if self.trained else self.what


def build(task: Task) -> Work:
    """Our side of a task."""
    torch.manual_seed(0)
    return {"vqvae": _vqvae, "prior": _prior, "sample": _sample, "store": _store}[task.what](task)


def counted(call: Callable[[], object]) -> float:
    """The operations of a call, which is made twice: the first time it may compile."""
    call()
    with counter() as count:
        call()
    return float(count.get_total_flops())


def moved(model: nn.Module) -> float:
    """Bytes of a model's step of training: values, gradients and two moments."""
    return 10.0 * sum(p.nbytes for p in model.parameters() if p.requires_grad)


def _vqvae(task: Task) -> Work:
    c = task.vqvae
    model = VQVAE(c).to(task.device)
    frames = torch.randint(0, 256, (task.batch, c.frames, *c.size, c.channels), dtype=torch.uint8, device=task.device)
    call = _training(model, lambda batch: model(batch["x"]), frames, task)
    return Work(call, task.batch, counted(call), moved(model))


def _prior(task: Task) -> Work:
    model = Prior(task.prior, _codebook(task)).to(task.device)
    codes, frames = _codes(task, task.batch), None
    if task.prior.seen:
        frames = torch.zeros(task.batch, task.prior.seen, *task.prior.seen_shape, dtype=torch.uint8, device=task.device)

    def loss(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        features = None if frames is None else model.look(frames)
        return {"loss": model.loss(batch["x"], features=features).mean()}

    call = _training(model, loss, codes, task)
    return Work(call, task.batch * task.codes, counted(call), moved(model))


def _training(
    model: nn.Module, loss: Callable[[dict[str, Tensor]], dict[str, Tensor]], x: Tensor, task: Task
) -> Callable[[], object]:
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    config = FitConfig(precision=task.precision)  # type: ignore[arg-type]
    return lambda: train_step(model, loss, {"x": x}, optimizer, config, 0)


def _sample(task: Task) -> Work:
    if task.trained is None:
        model = Prior(replace(task.prior, seen=0), _codebook(task)).to(task.device).eval()
    else:
        model = load_prior(task.trained).to(task.device)
    if task.precision == "bfloat16":
        model.bfloat16()  # as a dream does
    begin, generator = _codes(task, task.batch)[:, :0], torch.Generator().manual_seed(0)
    run = 1 if task.trained is None else None
    call = lambda: continuation(model, begin, task.prior.latent[0], generator, run=run)  # noqa: E731
    flops, moved = passes(task, next(model.parameters()).element_size())
    return Work(call, task.batch * task.codes, flops, 0 if task.trained else moved)


def passes(task: Task, size: int) -> tuple[float, float]:
    """Operations and bytes of drawing clips code by code, each after half a clip on average; `size` of a number."""
    c = task.prior
    weights = c.layers * c.width * (c.width * (2 + 2 * (c.kv_heads or c.heads) / c.heads) + 2 * c.feedforward)
    weights += c.width * (c.code_dim + c.codes)
    cached = c.layers * task.codes / 2 * 2 * c.width * (c.kv_heads or c.heads) / c.heads
    each = 2 * weights + 2 * c.layers * task.codes * c.width
    return task.codes * task.batch * each, task.codes * size * (weights + task.batch * cached)


def _store(task: Task) -> Work:
    clips, rng = Clips(Store(task.store), "train", task.vqvae.frames, ["frames"]), np.random.default_rng(0)
    call = lambda: torch.from_numpy(clips.sample(rng, task.batch)["frames"])  # noqa: E731
    return Work(call, task.batch, 0, 2 * call().nbytes)


def fill(path: Path, config: VQVAEConfig, episodes: int = 40) -> np.ndarray:
    """A store of noise; returns its frames, (episodes, 30, h, w, c)."""
    shape = (*config.size, config.channels)
    frames = np.random.default_rng(0).integers(0, 256, (episodes, max(30, 2 * config.frames), *shape), dtype=np.uint8)
    with StoreWriter(path, World(name="noise", frame_shape=shape), {}) as writer:
        for episode in frames:
            writer.append({"frames": episode})
    return frames


def _codebook(task: Task) -> Tensor:
    return torch.randn(task.prior.books, task.prior.codes, task.prior.code_dim)


def _codes(task: Task, batch: int) -> Tensor:
    size = (batch, *task.prior.latent, task.prior.books)
    return torch.randint(0, task.prior.codes, size, device=task.device)
