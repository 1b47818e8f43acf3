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
from typing import get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from worldmodel.captured import Captured
from worldmodel.cast import cast, trial
from worldmodel.checkpoint import check_made_with, read_header, write_atomic
from worldmodel.errors import UserError
from worldmodel.lanes import Lanes, Step
from worldmodel.layers import Memory
from worldmodel.models import load_outcome, load_prior, load_vqvae
from worldmodel.outcome import OutcomeModel, preceding
from worldmodel.prior import Prior
from worldmodel.rates import Precision, proven
from worldmodel.sampling import Sampling, Score, draw_codes
from worldmodel.transformer import Shared
from worldmodel.vqvae import VQVAE, to_uint8
from worldmodel.world import World

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
        write_atomic(path, save({k: v.contiguous() for k, v in tensors.items()}, {"vqvae": vqvae}))

    @staticmethod
    def load(run: Path) -> Context:
        """The contexts of a run folder."""
        path = run / "contexts.safetensors"
        if not path.exists():
            raise UserError(f"{path} does not exist; train/tokens.py writes the contexts that dreams start from")
        try:
            with safe_open(path, "pt") as file:
                made_with = (file.metadata() or {}).get("vqvae")
                codes, condition, variables = map(file.get_tensor, ("codes", "condition", "variables"))
        except SafetensorError as error:
            raise UserError(f"{path} is damaged ({error}); run train/tokens.py again") from None
        check_made_with(str(path), made_with, run / "vqvae")
        if variables.ndim != 3:
            raise UserError(f"{path} was written by another version; run train/tokens.py again")
        return Context(codes.long(), condition, variables)

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
        self.vqvae, self.prior, self.outcome = vqvae.eval(), prior.eval(), outcome.eval()
        if precision not in get_args(Precision):
            raise UserError(f"precision is {', '.join(get_args(Precision))}, not {precision!r}")
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
        for part in ("prior", "outcome"):
            check_made_with(str(run / part), read_header(run / part)[0].get("vqvae"), run / "vqvae")
        world = World.from_json(read_header(run / "prior")[0]["world"])
        return Dream(vqvae.to(device), prior.to(device), outcome.to(device), world, sampling, precision)

    @torch.no_grad()
    def context(self, frames: np.ndarray, actions: np.ndarray, variables: np.ndarray | None = None) -> Context:
        """A context from frames (b, t*s, H, W, channels), the t*s - 1 actions between them, variables (b, t*s, v).

        Without variables their recorded means stand in.
        """
        n, t, v = *frames.shape[:2], len(self.world.variables)
        if frames.dtype != np.uint8 or t < 1:
            raise UserError(f"a context needs at least one frame of uint8, not {frames.dtype} {frames.shape}")
        if actions.shape[1:2] != (t - 1,):
            given = actions.shape[1] if actions.ndim > 1 else "none"
            raise UserError(f"between {t} frames lie {t - 1} actions, but {given} are given")
        if variables is None:
            variables = self.outcome.mean.cpu().numpy()[None, None].repeat(n, 0).repeat(t, 1)
        if variables.shape != (n, t, v):
            raise UserError(
                f"{self.world.name} has {v} game variables at each of {t} frames, but {variables.shape[1:]} are given"
            )
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

    @torch.no_grad()
    def reset(self, context: Context, seeds: list[int], time: int | None = None) -> tuple[Lanes, Tensor, Tensor]:
        """Fresh lanes after their contexts, the pictures (b, H, W, channels) they stand before, the variables (b, v).

        `time` is that of the lanes they will join with `Lanes.put`; on their own they start after the context, or
        late enough for lanes of longer contexts to join them.
        """
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
        wanted = (len(lanes.generators), *self.world.action.shape)
        if np.shape(actions) != wanted:
            raise UserError(f"{wanted[0]} lanes take actions of shape {wanted}, not {np.shape(actions)}")
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


def inputs_first(model: nn.Module) -> None:
    """Lay linear weights out with their inputs first: a product with few rows reads them in half the time on a CPU."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data = layer.weight.data.t().contiguous().t()
