"""A dream: VQ-VAE, prior and outcome model stepped together, many lanes at a time.

A lane is one dreamed episode. `reset` starts lanes from contexts, a few latent frames of something real; `step`
takes one action a lane and draws the next latent frame, its picture, reward and end. Everything a lane knows is
in the `DreamState`: the prior's ring of cached frames, what causal layers remember, the outcome
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

from worldmodel.data.env_spec import EnvSpec
from worldmodel.generation.bfloat16 import cast_to_bfloat16, trial_outputs
from worldmodel.generation.cuda_graph import CudaGraphStep
from worldmodel.generation.dream_state import DreamState, DreamStep
from worldmodel.generation.sampling import FrameScore, SamplingConfig, sample_codes
from worldmodel.models.layers import Memory
from worldmodel.models.loading import load_outcome, load_prior, load_vqvae
from worldmodel.models.prior import Prior, PriorConfig
from worldmodel.models.reward_done import OutcomeConfig, OutcomeModel, previous_variables
from worldmodel.models.transformer import StepContext
from worldmodel.models.vqvae import VQVAE, VQVAEConfig, to_uint8
from worldmodel.utils import tensor_file
from worldmodel.utils.checkpoint import check_vqvae, read_header, write_atomic
from worldmodel.utils.errors import UserError
from worldmodel.utils.hardware import PeakMemory, Precision, verified_precision
from worldmodel.utils.memory import check_memory
from worldmodel.utils.settings import as_array, check_value

CONTEXTS_FILE = "contexts.safetensors"
"""In a run folder: what its dreams start from."""
MAX_CONTEXT_FRAMES = 256
"""Latent frames of a context. Its memory grows with them, and the prior looks back at far fewer."""
MAX_CUDA_GRAPHS = 4
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

    def is_episode_start(self, action_dim: int) -> Tensor:
        """(b,) bool: is its first frame an episode's first, into which no action (of `action_dim` numbers) led?"""
        return (self.condition[:, 0, :action_dim] == 0).all(-1)

    def save(self, path: Path, vqvae_digest: str) -> None:
        """Write contexts whose codes were made by the VQ-VAE of that digest."""
        tensors = vars(self) | {"codes": self.codes.int()}
        if name := tensor_file.first_not_finite(tensors):
            raise UserError(f"the {name} of the contexts for {path} has values that are not finite; record it anew")
        write_atomic(path, tensor_file.pack(tensors, {"vqvae": vqvae_digest}))

    @staticmethod
    def load(run: Path) -> Context:
        """The contexts of a run folder."""
        path = run / CONTEXTS_FILE
        if not path.exists():
            raise UserError(f"{path} does not exist; train/tokens.py writes the contexts that dreams start from")
        tensors, info = tensor_file.read(path, "run train/tokens.py again")
        if set(tensors) != {"codes", "condition", "variables"} or tensors["variables"].ndim != 3:
            raise UserError(f"{path} holds no contexts of this version; run train/tokens.py again")
        check_vqvae(str(path), info.get("vqvae"), run / "vqvae")
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
        env_spec: EnvSpec,
        sampling: SamplingConfig | None = None,
        precision: Precision = "float32",
    ) -> None:
        if prior.config.mode != "stream" or vqvae.config.mode != "stream":
            raise UserError("a dream needs a stream-mode VQ-VAE and prior; a paper-mode model sees the future and ends")
        if prior.config.conditioning != "frame":
            raise UserError("this prior knows no actions; train one with train/prior.py --actions")
        check_parts(vqvae.config, prior.config, outcome.config, env_spec)
        self.vqvae, self.prior, self.outcome = vqvae.eval(), prior.eval(), outcome.eval()
        precision = check_value(Precision, precision, "precision")
        self.device = prior.start_token.device
        if (
            verified_precision(
                f"dream of {env_spec.name}", self.device, precision, partial(trial_outputs, vqvae, prior)
            )
            == "bfloat16"
        ):
            cast_to_bfloat16(vqvae, prior)
        transpose_linear_weights(prior)
        self.env_spec, self.sampling = env_spec, sampling or SamplingConfig()
        self.use_cuda_graphs = self.device.type == "cuda" and not prior.config.local_window
        self.cuda_graphs: dict[tuple[int, SamplingConfig], CudaGraphStep] = {}
        self.stride = vqvae.config.stride[0]
        parts = {"vqvae": self.vqvae, "outcome": self.outcome}
        self.memory_layers = {f"{k}.{name}": layer for k, part in parts.items() for name, layer in part.named_modules()}
        """Those that remember, by name: a memory that leaves this dream for another of the same models has names."""
        self.sample_done = True
        """Are ends drawn? Without, a lane goes on, and `DreamStep.done_prob` says how likely one was. Set before any
        step."""

    @staticmethod
    def load(
        run: Path, sampling: SamplingConfig | None = None, device: str = "cpu", precision: Precision = "float32"
    ) -> Dream:
        """The dream of a run folder, with its `vqvae`, `prior` and `outcome`."""
        vqvae, prior, outcome = load_vqvae(run / "vqvae"), load_prior(run / "prior"), load_outcome(run / "outcome")
        configs = {part: read_header(run / part)[0] for part in ("prior", "outcome")}
        for part, config in configs.items():
            check_vqvae(str(run / part), config.get("vqvae"), run / "vqvae")
        env_spec = EnvSpec.from_json(configs["prior"].get("env_spec"), f"{run / 'prior'}: env_spec")
        return Dream(vqvae.to(device), prior.to(device), outcome.to(device), env_spec, sampling, precision)

    @torch.no_grad()
    def encode_context(self, frames: np.ndarray, actions: np.ndarray, variables: np.ndarray | None = None) -> Context:
        """A context from frames (b, t*s, H, W, channels), the t*s - 1 actions between them, variables (b, t*s, v).

        Without variables their recorded means stand in.
        """
        if frames.dtype != np.uint8 or frames.ndim != 5 or frames.shape[1] < 1:
            raise UserError(f"a context needs at least one frame of uint8, not {frames.dtype} {frames.shape}")
        n, t, v = *frames.shape[:2], len(self.env_spec.variables)
        if t > (most := MAX_CONTEXT_FRAMES * self.stride):
            raise UserError(f"a context of {t:,} frames is too long; give the last {most} of them, or fewer")
        if actions.shape[1:2] != (t - 1,):
            given = actions.shape[1] if actions.ndim > 1 else "none"
            raise UserError(f"between {t} frames lie {t - 1} actions, but {given} are given")
        if variables is None:
            variables = self.outcome.variable_mean.cpu().numpy()[None, None].repeat(n, 0).repeat(t, 1)
        if variables.shape != (n, t, v):
            raise UserError(
                f"{self.env_spec.name} has {v} game variables at each of {t} frames, but {variables.shape[1:]} "
                "are given"
            )
        with np.errstate(over="ignore"):
            finite = np.isfinite(variables.astype(np.float32)).all()
        if not finite:
            raise UserError("game variables must be finite numbers; leave out `variables` if they are not known")
        codes = self.vqvae.encode(torch.as_tensor(frames, device=self.device))
        encoded = self.env_spec.action.encode(actions)
        no_action = (
            np.zeros_like(encoded[:, :1])
            if encoded.shape[1]
            else np.zeros((len(frames), 1, self.env_spec.action.encoded_dim), "f4")
        )
        condition = np.concatenate([no_action, encoded], axis=1).reshape(*codes.shape[:2], -1)
        last_variables = torch.as_tensor(
            variables[:, self.stride - 1 :: self.stride], device=self.device, dtype=torch.float32
        )
        return Context(codes, torch.from_numpy(condition).to(self.device), last_variables)

    def check_context(self, context: Context) -> None:
        """`UserError` for a context that is not one of these models'."""
        c = self.prior.config
        b, t = context.codes.shape[:2]
        wanted = {
            "codes": (b, t, *c.latent_shape[1:], c.n_codebooks),
            "condition": (b, t, c.condition_dim),
            "variables": (b, t, self.outcome.config.n_variables),
        }
        for name, shape in wanted.items():
            tensor = getattr(context, name)
            if tensor.shape != shape or not b * t:
                raise UserError(f"the {name} of this context are {tuple(tensor.shape)}, but this dream takes {shape}")
            if not tensor.isfinite().all():
                raise UserError(f"the {name} of this context are not finite; make the context again")
        if not 0 <= context.codes.min() <= context.codes.max() < c.n_codes:
            raise UserError(f"this context has codes that are not from 0 to {c.n_codes - 1}; make the context again")

    def check_memory(self, lanes: int, context: Context) -> None:
        """`UserError` if there is not the memory for so many lanes, by what one takes while it is reset."""
        with PeakMemory() as peak:
            self.reset(context[:1], [0])
        check_memory(lanes * peak.most, f"{lanes:,} lanes of this dream", str(self.device))

    @torch.no_grad()
    def reset(self, context: Context, seeds: list[int], time: int | None = None) -> tuple[DreamState, Tensor, Tensor]:
        """Fresh lanes after their contexts, the pictures (b, H, W, channels) they stand before, the variables (b, v).

        `time` is that of the lanes they will join with `DreamState.set_lanes`; on their own they start after the
        context, or late enough for lanes of longer contexts to join them.
        """
        self.check_context(context)
        context, t = context.to(self.device), context.codes.shape[1]
        start = (max(t, self.prior.config.attention_frames - 1) if time is None else time) - t
        memory: Memory = {}
        frames = self.vqvae.decode(context.codes, memory)
        dtype = self.outcome.codebook.dtype
        variables_so_far = context.variables.to(dtype)
        _, hidden = self.outcome(
            context.codes, context.condition.to(dtype), previous_variables(variables_so_far), memory=memory
        )
        variables = variables_so_far[:, -1].clone()
        cache = self.prior.prefill(context.codes, context.condition.to(self.prior.start_token.dtype), start)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return DreamState(cache, memory, hidden, variables, generators), to_uint8(frames[:, -1]), variables.clone()

    def step(self, lanes: DreamState, actions: np.ndarray) -> DreamStep:
        """Move every lane on by one latent frame under its action (b, *shape), or raise a `UserError`."""
        wanted, given = (len(lanes.generators), *self.env_spec.action.shape), as_array(actions)
        if given.dtype == object:
            raise UserError(f"{wanted[0]} lanes take actions of shape {wanted}, numbers of at most 64 bits each")
        if given.shape != wanted:
            raise UserError(f"{wanted[0]} lanes take actions of shape {wanted}, not {given.shape}")
        encoded = np.repeat(self.env_spec.action.encode(actions)[:, None], self.stride, 1).reshape(len(actions), -1)
        return self.step_encoded(lanes, torch.from_numpy(encoded).to(self.device))

    @torch.no_grad()
    def step_encoded(self, lanes: DreamState, condition: Tensor) -> DreamStep:
        """`step` under actions that are encoded already, one row (b, c) for each latent frame."""
        n_numbers = self.prior.config.codes_per_frame + 1 + self.outcome.config.n_variables
        noise = torch.stack([torch.rand(n_numbers, generator=g) for g in lanes.generators]).to(self.device)
        condition = condition.to(self.outcome.codebook.dtype)
        if self.use_cuda_graphs and lanes.kv_cache.is_full():
            key = (len(noise), self.sampling)
            if key not in self.cuda_graphs:
                if len(self.cuda_graphs) == MAX_CUDA_GRAPHS:
                    self.cuda_graphs.pop(next(iter(self.cuda_graphs)))
                self.cuda_graphs[key] = CudaGraphStep(self.predict_step, self.prior, lanes, condition, noise)
            return self.cuda_graphs[key](lanes, condition, noise)
        context = self.prior.begin_frame(lanes.kv_cache, condition.to(self.prior.start_token.dtype))
        step = self.predict_step(lanes, context, condition, noise)
        self.prior.finish_frame(lanes.kv_cache)
        return step

    def predict_step(self, lanes: DreamState, context: StepContext, condition: Tensor, noise: Tensor) -> DreamStep:
        """A step of lanes whose frame has begun and is not yet finished in the prior's cache."""
        n, score = self.prior.config.codes_per_frame, FrameScore(noise)
        codes = sample_codes(self.prior, lanes.kv_cache, context, noise[:, :n], self.sampling, score)
        frames = to_uint8(self.vqvae.decode(codes, lanes.memory))
        previous = lanes.variables[:, None]
        out, lanes.hidden = self.outcome(codes, condition[:, None], previous, lanes.hidden, lanes.memory)
        expected = self.outcome.expected_variables(out.change_logits[:, 0], lanes.variables)
        lanes.variables = self.outcome.sample_variables(out.change_logits[:, 0], lanes.variables, noise[:, n + 1 :])
        done_prob = out.done_logit[:, 0].sigmoid()
        terminated = (noise[:, n] < done_prob) & self.sample_done
        reward = out.reward[:, 0].gather(1, terminated.long()[:, None])[:, 0]
        rest = (lanes.variables.clone(), expected, score.log_likelihood, score.entropy)
        return DreamStep(frames, codes, reward, terminated, done_prob, *rest)


def check_parts(vqvae: VQVAEConfig, prior: PriorConfig, outcome: OutcomeConfig, env_spec: EnvSpec) -> None:
    """`UserError` unless models and world belong together."""
    known: dict[str, tuple[Any, ...]] = {
        "frames": (env_spec.frame_shape, (*vqvae.frame_size, vqvae.channels)),
        "codes of a frame": (vqvae.latent_shape[1:], prior.latent_shape[1:], outcome.latent_size),
        "codebooks": (
            (vqvae.n_codebooks, vqvae.n_codes, vqvae.embedding_dim),
            (prior.n_codebooks, prior.n_codes, prior.embedding_dim),
            (outcome.n_codebooks, outcome.n_codes, outcome.embedding_dim),
        ),
        "conditions": (env_spec.action.encoded_dim * vqvae.stride[0], prior.condition_dim, outcome.condition_dim),
        "game variables": (len(env_spec.variables), outcome.n_variables),
    }
    for what, sizes in known.items():
        if len(set(sizes)) > 1:
            each = ", ".join(map(str, sizes))
            raise UserError(f"models and world do not belong together: their {what} are {each}; train them anew")


def transpose_linear_weights(model: nn.Module) -> None:
    """Lay linear weights out with their inputs first: a product with few rows reads them in half the time on a CPU."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data = layer.weight.data.t().contiguous().t()
