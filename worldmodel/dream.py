"""A dream: VQ-VAE, prior and outcome model stepped together, many lanes at a time.

A lane is one dreamed episode. `reset` starts lanes from contexts, a few latent frames of something real; `step`
takes one action a lane and draws the next latent frame, its picture, reward and end. Everything a lane knows is
in the `Lanes`: the prior's ring of cached frames, what causal layers remember, the outcome
model's state and a random generator of the lane's own. So a lane does not depend on its neighbours, and a
`snapshot` is a copy.

With a time stride above 1 a step is that many environment steps with the action held, and all their frames come
out.

Dimensions: b lanes, t latent frames, s frames of a latent frame, h w g codes, c condition, v variables.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worldmodel import tensor_file
from worldmodel.captured import Captured
from worldmodel.cast import cast, trial
from worldmodel.checkpoint import check_made_with, read_header, write_atomic
from worldmodel.errors import UserError
from worldmodel.lanes import Lanes, Step
from worldmodel.layers import Memory
from worldmodel.memory import ask
from worldmodel.models import load_outcome, load_prior, load_vqvae
from worldmodel.outcome import OutcomeConfig, OutcomeModel, preceding
from worldmodel.prior import Prior, PriorConfig
from worldmodel.rates import Peak, Precision, proven
from worldmodel.sampling import Sampling, Score, draw_codes
from worldmodel.settings import as_array, checked
from worldmodel.transformer import Shared
from worldmodel.vqvae import VQVAE, VQVAEConfig, to_uint8
from worldmodel.world import World

CONTEXTS = "contexts.safetensors"
"""In a run folder: what its dreams start from."""
CAPTURED = 4
"""How many CUDA graphs a dream keeps, for the numbers of lanes it is stepped with."""


@dataclass(frozen=True)
class Context:
    """Where dreams start: latent frames of something real."""

    codes: Tensor
    """(b, t, h, w, g)."""
    condition: Tensor
    """(b, t, c): the actions that led into each."""
    variables: Tensor
    """(b, t, v): the game variables at each."""

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: Tensor | slice) -> Context:
        return Context(self.codes[index], self.condition[index], self.variables[index])

    def starts(self, width: int) -> Tensor:
        """(b,) bool: is its first frame an episode's first, into which no action (of `width` numbers) led?"""
        return (self.condition[:, 0, :width] == 0).all(-1)

    def save(self, path: Path, vqvae: str) -> None:
        """Write contexts whose codes were made by the VQ-VAE of that digest."""
        tensors = vars(self) | {"codes": self.codes.int()}
        if name := tensor_file.not_finite(tensors):
            raise UserError(f"the {name} of the contexts for {path} has values that are not finite; record it anew")
        write_atomic(path, tensor_file.pack(tensors, {"vqvae": vqvae}))

    @staticmethod
    def load(run: Path) -> Context:
        """The contexts of a run folder."""
        path = run / CONTEXTS
        if not path.exists():
            raise UserError(f"{path} does not exist; train/tokens.py writes the contexts that dreams start from")
        tensors, told = tensor_file.read(path, "run train/tokens.py again")
        if set(tensors) != {"codes", "condition", "variables"} or tensors["variables"].ndim != 3:
            raise UserError(f"{path} holds no contexts of this version; run train/tokens.py again")
        check_made_with(str(path), told.get("vqvae"), run / "vqvae")
        return Context(tensors["codes"].long(), tensors["condition"], tensors["variables"])

    def to(self, device: torch.device) -> Context:
        return Context(*(tensor.to(device) for tensor in vars(self).values()))


class Dream:
    """Batched imagination in a world."""

    def __init__(
        self,
        vqvae: VQVAE,
        prior: Prior,
        outcome: OutcomeModel,
        world: World,
        sampling: Sampling | None = None,
        precision: Precision = "float32",
    ) -> None:
        if prior.config.mode != "stream" or vqvae.config.mode != "stream":
            raise UserError("a dream needs a stream-mode VQ-VAE and prior; a paper-mode model sees the future and ends")
        if prior.config.condition != "frame":
            raise UserError("this prior knows no actions; train one with train/prior.py --actions")
        check_parts(vqvae.config, prior.config, outcome.config, world)
        self.vqvae, self.prior, self.outcome = vqvae.eval(), prior.eval(), outcome.eval()
        precision = checked(Precision, precision, "precision")
        self.device = prior.start.device
        if proven(f"dream of {world.name}", self.device, precision, partial(trial, vqvae, prior)) == "bfloat16":
            cast(vqvae, prior)
        inputs_first(prior)
        self.world, self.sampling = world, sampling or Sampling()
        self.captures = self.device.type == "cuda" and not prior.config.local
        self.captured: dict[tuple[int, Sampling], Captured] = {}
        self.stride = vqvae.config.stride[0]
        parts = {"vqvae": self.vqvae, "outcome": self.outcome}
        self.layers = {f"{k}.{name}": layer for k, part in parts.items() for name, layer in part.named_modules()}
        """Those that remember, by name: a memory that leaves this dream for another of the same models has names."""
        self.ends = True
        """Are ends drawn? Without, a lane goes on, and `Step.end` says how likely one was. Set before any step."""

    @staticmethod
    def load(
        run: Path, sampling: Sampling | None = None, device: str = "cpu", precision: Precision = "float32"
    ) -> Dream:
        """The dream of a run folder, with its `vqvae`, `prior` and `outcome`."""
        vqvae, prior, outcome = load_vqvae(run / "vqvae"), load_prior(run / "prior"), load_outcome(run / "outcome")
        configs = {part: read_header(run / part)[0] for part in ("prior", "outcome")}
        for part, config in configs.items():
            check_made_with(str(run / part), config.get("vqvae"), run / "vqvae")
        world = World.from_json(configs["prior"].get("world"), f"{run / 'prior'}: world")
        return Dream(vqvae.to(device), prior.to(device), outcome.to(device), world, sampling, precision)

    @torch.no_grad()
    def context(self, frames: np.ndarray, actions: np.ndarray, variables: np.ndarray | None = None) -> Context:
        """A context from frames (b, t*s, H, W, channels), the t*s - 1 actions between them, variables (b, t*s, v).

        Without variables their recorded means stand in.
        """
        if frames.dtype != np.uint8 or frames.ndim != 5 or frames.shape[1] < 1:
            raise UserError(f"a context needs at least one frame of uint8, not {frames.dtype} {frames.shape}")
        n, t, v = *frames.shape[:2], len(self.world.variables)
        if actions.shape[1:2] != (t - 1,):
            given = actions.shape[1] if actions.ndim > 1 else "none"
            raise UserError(f"between {t} frames lie {t - 1} actions, but {given} are given")
        if variables is None:
            variables = self.outcome.mean.cpu().numpy()[None, None].repeat(n, 0).repeat(t, 1)
        if variables.shape != (n, t, v):
            raise UserError(
                f"{self.world.name} has {v} game variables at each of {t} frames, but {variables.shape[1:]} are given"
            )
        with np.errstate(over="ignore"):
            finite = np.isfinite(variables.astype(np.float32)).all()
        if not finite:
            raise UserError("game variables must be finite numbers; leave out `variables` if they are not known")
        codes = self.vqvae.encode(torch.as_tensor(frames, device=self.device))
        encoded = self.world.action.encode(actions)
        none = (
            np.zeros_like(encoded[:, :1])
            if encoded.shape[1]
            else np.zeros((len(frames), 1, self.world.action.width), "f4")
        )
        condition = np.concatenate([none, encoded], axis=1).reshape(*codes.shape[:2], -1)
        told = torch.as_tensor(variables[:, self.stride - 1 :: self.stride], device=self.device, dtype=torch.float32)
        return Context(codes, torch.from_numpy(condition).to(self.device), told)

    def check(self, context: Context) -> None:
        """`UserError` for a context that is not one of these models'."""
        c = self.prior.config
        b, t = context.codes.shape[:2]
        wanted = {
            "codes": (b, t, *c.latent[1:], c.books),
            "condition": (b, t, c.condition_dim),
            "variables": (b, t, self.outcome.config.variables),
        }
        for name, shape in wanted.items():
            tensor = getattr(context, name)
            if tensor.shape != shape or not b * t:
                raise UserError(f"the {name} of this context are {tuple(tensor.shape)}, but this dream takes {shape}")
            if not tensor.isfinite().all():
                raise UserError(f"the {name} of this context are not finite; make the context again")
        if not 0 <= context.codes.min() <= context.codes.max() < c.codes:
            raise UserError(f"this context has codes that are not from 0 to {c.codes - 1}; make the context again")

    def ask(self, lanes: int, context: Context) -> None:
        """`UserError` if there is not the memory for so many lanes, by what one takes while it is reset."""
        with Peak() as peak:
            self.reset(context[:1], [0])
        ask(lanes * peak.most, f"{lanes:,} lanes of this dream", str(self.device))

    @torch.no_grad()
    def reset(self, context: Context, seeds: list[int], time: int | None = None) -> tuple[Lanes, Tensor, Tensor]:
        """Fresh lanes after their contexts, the pictures (b, H, W, channels) they stand before, the variables (b, v).

        `time` is that of the lanes they will join with `Lanes.put`; on their own they start after the context, or
        late enough for lanes of longer contexts to join them.
        """
        self.check(context)
        context, t = context.to(self.device), context.codes.shape[1]
        start = (max(t, self.prior.config.reach - 1) if time is None else time) - t
        memory: Memory = {}
        frames = self.vqvae.decode(context.codes, memory)
        dtype = self.outcome.codebook.dtype
        known = context.variables.to(dtype)
        _, hidden = self.outcome(context.codes, context.condition.to(dtype), preceding(known), memory=memory)
        variables = known[:, -1].clone()
        cache = self.prior.prefill(context.codes, context.condition.to(self.prior.start.dtype), start)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return Lanes(cache, memory, hidden, variables, generators), to_uint8(frames[:, -1]), variables.clone()

    def step(self, lanes: Lanes, actions: np.ndarray) -> Step:
        """Move every lane on by one latent frame under its action (b, *shape), or raise a `UserError`."""
        wanted, given = (len(lanes.generators), *self.world.action.shape), as_array(actions)
        if given.dtype == object:
            raise UserError(f"{wanted[0]} lanes take actions of shape {wanted}, numbers of at most 64 bits each")
        if given.shape != wanted:
            raise UserError(f"{wanted[0]} lanes take actions of shape {wanted}, not {given.shape}")
        encoded = np.repeat(self.world.action.encode(actions)[:, None], self.stride, 1).reshape(len(actions), -1)
        return self.advance(lanes, torch.from_numpy(encoded).to(self.device))

    @torch.no_grad()
    def advance(self, lanes: Lanes, condition: Tensor) -> Step:
        """`step` under actions that are encoded already, one row (b, c) for each latent frame."""
        numbers = self.prior.config.frame + 1 + self.outcome.config.variables
        noise = torch.stack([torch.rand(numbers, generator=g) for g in lanes.generators]).to(self.device)
        condition = condition.to(self.outcome.codebook.dtype)
        if self.captures and lanes.cache.full():
            key = (len(noise), self.sampling)
            if key not in self.captured:
                if len(self.captured) == CAPTURED:
                    self.captured.pop(next(iter(self.captured)))
                self.captured[key] = Captured(self.imagine, self.prior, lanes, condition, noise)
            return self.captured[key](lanes, condition, noise)
        shared = self.prior.begin(lanes.cache, condition.to(self.prior.start.dtype))
        step = self.imagine(lanes, shared, condition, noise)
        self.prior.finish(lanes.cache)
        return step

    def imagine(self, lanes: Lanes, shared: Shared, condition: Tensor, noise: Tensor) -> Step:
        """A step of lanes whose frame has begun and is not yet finished in the prior's cache."""
        n, score = self.prior.config.frame, Score(noise)
        codes = draw_codes(self.prior, lanes.cache, shared, noise[:, :n], self.sampling, score)
        frames = to_uint8(self.vqvae.decode(codes, lanes.memory))
        known = lanes.variables[:, None]
        out, lanes.hidden = self.outcome(codes, condition[:, None], known, lanes.hidden, lanes.memory)
        expected = self.outcome.expect(out.changes[:, 0], lanes.variables)
        lanes.variables = self.outcome.draw(out.changes[:, 0], lanes.variables, noise[:, n + 1 :])
        end = out.end[:, 0].sigmoid()
        terminated = (noise[:, n] < end) & self.ends
        reward = out.reward[:, 0].gather(1, terminated.long()[:, None])[:, 0]
        told = (lanes.variables.clone(), expected, score.likelihood, score.entropy)
        return Step(frames, codes, reward, terminated, end, *told)


def check_parts(vqvae: VQVAEConfig, prior: PriorConfig, outcome: OutcomeConfig, world: World) -> None:
    """`UserError` unless models and world belong together."""
    known: dict[str, tuple[Any, ...]] = {
        "frames": (world.frame_shape, (*vqvae.size, vqvae.channels)),
        "codes of a frame": (vqvae.latent[1:], prior.latent[1:], outcome.latent),
        "codebooks": (
            (vqvae.books, vqvae.codes, vqvae.dim),
            (prior.books, prior.codes, prior.code_dim),
            (outcome.books, outcome.codes, outcome.code_dim),
        ),
        "conditions": (world.action.width * vqvae.stride[0], prior.condition_dim, outcome.condition_dim),
        "game variables": (len(world.variables), outcome.variables),
    }
    for what, sizes in known.items():
        if len(set(sizes)) > 1:
            each = ", ".join(map(str, sizes))
            raise UserError(f"models and world do not belong together: their {what} are {each}; train them anew")


def inputs_first(model: nn.Module) -> None:
    """Lay linear weights out with their inputs first: a product with few rows reads them in half the time on a CPU."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data = layer.weight.data.t().contiguous().t()
