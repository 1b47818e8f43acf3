"""A dream: VQ-VAE, prior and outcome model stepped together, many lanes at a time.

A lane is one episode in the dream. `reset` starts lanes from contexts, which are a few latent frames of real episodes.
`step` takes one action per lane and samples the next latent frame, its image, reward and termination. The whole state
of a lane is in the `DreamState`: the prior's ring buffer of cached frames, the past activations of causal layers, the
outcome model's hidden state, and its random state. A lane therefore does not depend on the other lanes of its batch,
and a snapshot is a copy.

If the VQ-VAE's time stride s is above 1, one step is s environment steps with the action held, and the step returns
all s frames.

Dimensions: b lanes, t latent frames, s frames of a latent frame, h w g codes, c condition, v variables.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from worldmodel.data.env_spec import EnvSpec
from worldmodel.generation.bfloat16 import cast_to_bfloat16, trial_outputs
from worldmodel.generation.context import Context
from worldmodel.generation.cuda_graph import CudaGraphStep
from worldmodel.generation.dream_checks import check_context, check_parts, check_recording
from worldmodel.generation.dream_state import DreamState, DreamStep
from worldmodel.generation.lane_random import random_states, uniform
from worldmodel.generation.sampling import FrameScore, SamplingConfig, sample_codes
from worldmodel.models.layers import Memory
from worldmodel.models.loading import AnyVQVAE, load_outcome, load_prior, load_vqvae
from worldmodel.models.pixels import to_uint8
from worldmodel.models.prior import Prior
from worldmodel.models.recurrent_vqvae import LAST, RecurrentVQVAE
from worldmodel.models.reward_done import OutcomeModel, previous_variables
from worldmodel.models.transformer import StepContext
from worldmodel.utils.checkpoint import read_checkpoint
from worldmodel.utils.compatibility import check_vqvae
from worldmodel.utils.errors import UserError
from worldmodel.utils.hardware import PeakMemory, Precision, verified_precision
from worldmodel.utils.memory import check_memory
from worldmodel.utils.settings import as_array, check_value

MAX_CONTEXT_FRAMES = 256
"""Most latent frames of a context. Memory grows with them, and the prior attends to far fewer."""
MAX_CUDA_GRAPHS = 4
"""CUDA graphs that a dream keeps, one for each number of lanes and sampling config; the oldest one is dropped."""


class Dream:
    """A batched simulator of an environment, made of a VQ-VAE, a prior and an outcome model."""

    def __init__(
        self,
        vqvae: AnyVQVAE,
        prior: Prior,
        outcome: OutcomeModel,
        env_spec: EnvSpec,
        sampling: SamplingConfig | None = None,
        precision: Precision = "float32",
    ) -> None:
        """Put the models together; they are set to eval mode.

        Args:
            vqvae: VQ-VAE in stream mode.
            prior: Prior in stream mode, conditioned on actions.
            outcome: Outcome model.
            env_spec: The environment that the models were trained on.
            sampling: Temperature and truncation; by default the prior's own distribution.
            precision: "auto" casts prior and decoder to bfloat16 if the machine is fast at it and a trial agrees
                with float32.

        Raises:
            UserError: If a model is in paper mode, takes no actions, or does not fit the others.
        """
        if prior.config.mode != "stream" or vqvae.config.mode != "stream":
            raise UserError(
                "a dream needs a VQ-VAE and a prior in stream mode, because a paper-mode model takes future frames as "
                "input and ends after one clip; train both with --model.mode stream"
            )
        if prior.config.conditioning != "frame":
            raise UserError("this prior takes no actions as input; train one with train/prior.py --actions")
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
        """Causal layers by name: a memory that moves to another dream of the same models is keyed by these names."""
        self.sample_done = True
        """Whether termination is sampled. If not, lanes never terminate, and `DreamStep.done_prob` still has the
        probability. Set this before the first step."""

    @staticmethod
    def load(
        run: Path, sampling: SamplingConfig | None = None, device: str = "cpu", precision: Precision = "float32"
    ) -> Dream:
        """Load the dream of a run folder with finished `vqvae`, `prior` and `outcome` folders.

        Args:
            run: Run folder.
            sampling: As in `Dream`.
            device: "cpu" or "cuda".
            precision: As in `Dream`.

        Raises:
            UserError: If a part is missing, damaged, or was trained with another VQ-VAE.
        """
        vqvae, prior, outcome = load_vqvae(run / "vqvae"), load_prior(run / "prior"), load_outcome(run / "outcome")
        configs = {part: read_checkpoint(run / part).config for part in ("prior", "outcome")}
        for part, config in configs.items():
            check_vqvae(str(run / part), config.get("vqvae"), run / "vqvae")
        env_spec = EnvSpec.from_json(configs["prior"].get("env_spec"), f"{run / 'prior'}: env_spec")
        return Dream(vqvae.to(device), prior.to(device), outcome.to(device), env_spec, sampling, precision)

    @torch.no_grad()
    def encode_context(self, frames: np.ndarray, actions: np.ndarray, variables: np.ndarray | None = None) -> Context:
        """Encode real frames into a context.

        Args:
            frames: uint8 (b, t*s, H, W, channels).
            actions: The actions between the frames (b, t*s - 1, *action shape).
            variables: Game variables at the frames (b, t*s, v); by default their mean in the training data.

        Raises:
            UserError: If a shape, a type or a value does not fit the environment, or the context is too long.
        """
        check_recording(frames, actions, variables, self.env_spec, MAX_CONTEXT_FRAMES * self.stride)
        n, t = frames.shape[:2]
        if variables is None:
            variables = self.outcome.variable_mean.cpu().numpy()[None, None].repeat(n, 0).repeat(t, 1)
        led = torch.from_numpy(self.env_spec.action.encode_led(actions)).to(self.device)
        video = torch.as_tensor(frames, device=self.device)
        last_variables = torch.as_tensor(
            variables[:, self.stride - 1 :: self.stride], device=self.device, dtype=torch.float32
        )
        if isinstance(self.vqvae, RecurrentVQVAE):
            codes, state = self.vqvae.encode(video, actions=led), self.vqvae.start(video[:, 0])
            first = min(1, t - 1)  # the first frame is given, so its codes are left out if others follow
            return Context(codes[:, first:], led[:, first:], last_variables[:, first:], state)
        codes = self.vqvae.encode(video)
        return Context(codes, led.reshape(*codes.shape[:2], -1), last_variables)

    def check_context(self, context: Context) -> None:
        """Check a context; `UserError` if its shapes or values do not fit the models."""
        check_context(context, self.vqvae.config, self.prior.config, self.outcome.config)

    def check_memory(self, lanes: int, context: Context) -> None:
        """Check that the device has memory for a number of lanes. Resets one lane to measure its memory.

        Raises:
            UserError: If it does not.
        """
        with PeakMemory() as peak:
            self.reset(context[:1], [0])
        check_memory(lanes * peak.most, f"{lanes:,} lanes of this dream", str(self.device))

    @torch.no_grad()
    def reset(self, context: Context, seeds: list[int], time: int | None = None) -> tuple[DreamState, Tensor, Tensor]:
        """Start one lane for each context.

        Args:
            context: b contexts of equal length.
            seeds: One seed for each lane.
            time: `KVCache.time` of the batch that the lanes will join by `DreamState.set_lanes`. By default a time
                late enough that lanes with longer contexts can join this batch.

        Returns:
            The state, the last image of each context (b, H, W, channels) uint8, and its game variables (b, v).

        Raises:
            UserError: If the context does not fit the models.
        """
        self.check_context(context)
        context, t = context.to(self.device), context.codes.shape[1]
        # all lanes of a batch share one clock, so a lane that joins late starts at the time of the others
        start = (max(t, self.prior.config.attention_frames - 1) if time is None else time) - t
        memory: Memory = {} if context.state is None else {self.vqvae: context.state}
        frames = to_uint8(self.vqvae.decode(context.codes, memory, context.condition))
        images = None if context.state is None else torch.cat([context.state[:, :1], frames[:, :-1]], dim=1)
        dtype = self.outcome.codebook.dtype
        variables_so_far = context.variables.to(dtype)
        _, hidden = self.outcome(
            context.codes,
            context.condition.to(dtype),
            previous_variables(variables_so_far),
            memory=memory,
            images=self.outcome_images(frames),
        )
        variables = variables_so_far[:, -1].clone()
        features = self.prior.encode_images(images) if images is not None and self.prior.config.image_input else None
        condition = context.condition.to(self.prior.start_token.dtype)
        cache = self.prior.prefill(context.codes, condition, start, features)
        lanes = DreamState(cache, memory, hidden, variables, random_states(seeds, self.device))
        return lanes, frames[:, -1], variables.clone()

    def image_features(self, lanes: DreamState) -> Tensor | None:
        """Features of the last reconstruction of each lane, if the prior takes images."""
        if not self.prior.config.image_input:
            return None
        return self.prior.encode_images(lanes.memory[self.vqvae][:, LAST, None])

    def outcome_images(self, frames: Tensor) -> Tensor | None:
        """Frames (b, t, H, W, channels) for the outcome model, if it takes images."""
        return frames if self.outcome.config.image_channels else None

    def step(self, lanes: DreamState, actions: np.ndarray) -> DreamStep:
        """Advance every lane by one latent frame, in place.

        Args:
            lanes: The state.
            actions: One action for each lane (b, *action shape).

        Raises:
            UserError: If the actions have another shape or are outside the action space.
        """
        wanted, given = (len(lanes.random), *self.env_spec.action.shape), as_array(actions)
        if given.dtype == object:
            raise UserError(f"{wanted[0]} lanes take actions of shape {wanted} with numbers of at most 64 bits each")
        if given.shape != wanted:
            raise UserError(f"{wanted[0]} lanes take actions of shape {wanted}, not {given.shape}")
        encoded = np.repeat(self.env_spec.action.encode(actions)[:, None], self.stride, 1).reshape(len(actions), -1)
        return self.step_encoded(lanes, torch.from_numpy(encoded).to(self.device))

    @torch.no_grad()
    def step_encoded(self, lanes: DreamState, condition: Tensor) -> DreamStep:
        """`step` for actions that are encoded already, (b, c): those of the s environment steps, concatenated."""
        condition = condition.to(self.outcome.codebook.dtype)
        if self.use_cuda_graphs and lanes.kv_cache.is_full():  # from then on every step has the same shapes
            key = (len(condition), self.sampling)
            if key not in self.cuda_graphs:
                if len(self.cuda_graphs) == MAX_CUDA_GRAPHS:
                    self.cuda_graphs.pop(next(iter(self.cuda_graphs)))
                self.cuda_graphs[key] = CudaGraphStep(
                    self.predict_step, self.image_features, self.prior, lanes, condition
                )
            return self.cuda_graphs[key](lanes, condition)
        features = self.image_features(lanes)
        context = self.prior.begin_frame(lanes.kv_cache, condition.to(self.prior.start_token.dtype), features)
        step = self.predict_step(lanes, context, condition)
        self.prior.finish_frame(lanes.kv_cache)
        return step

    def predict_step(self, lanes: DreamState, context: StepContext, condition: Tensor) -> DreamStep:
        """The step between `Prior.begin_frame` and `Prior.finish_frame`: codes, image and outcome.

        Args:
            lanes: The state; its memory, hidden state, variables and random state are updated in place.
            context: From `Prior.begin_frame`.
            condition: Encoded actions (b, c).
        """
        n = self.prior.config.codes_per_frame
        noise = uniform(lanes.random, n + 1 + self.outcome.config.n_variables)  # codes, termination, variables
        score = FrameScore(noise)
        codes = sample_codes(self.prior, lanes.kv_cache, context, noise[:, :n], self.sampling, score)
        frames = to_uint8(self.vqvae.decode(codes, lanes.memory, condition[:, None]))
        previous, images = lanes.variables[:, None], self.outcome_images(frames)
        out, lanes.hidden = self.outcome(codes, condition[:, None], previous, lanes.hidden, lanes.memory, images)
        expected = self.outcome.expected_variables(out.change_logits[:, 0], lanes.variables)
        lanes.variables = self.outcome.sample_variables(out.change_logits[:, 0], lanes.variables, noise[:, n + 1 :])
        done_prob = out.done_logit[:, 0].sigmoid()
        # the numbers are drawn even if they are not used, so that both settings dream the same frames
        terminated = (noise[:, n] < done_prob) & self.sample_done
        # the outcome model predicts two rewards, with and without termination: take the one that was sampled
        reward = out.reward[:, 0].gather(1, terminated.long()[:, None])[:, 0]
        expected_reward = torch.lerp(out.reward[:, 0, 0], out.reward[:, 0, 1], done_prob)
        rest = (lanes.variables.clone(), expected, score.log_likelihood, score.entropy)
        return DreamStep(frames, codes, reward, terminated, done_prob, expected_reward, *rest)


def transpose_linear_weights(model: nn.Module) -> None:
    """Store linear weights input-major: on a CPU, a matrix product with few rows reads them in half the time."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data = layer.weight.data.t().contiguous().t()
