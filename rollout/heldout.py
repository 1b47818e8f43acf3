"""Held-out clips, and the dreams, reconstructions and samples of a run's models for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from worldmodel.data.clips import RECONSTRUCTION, Clips, read_state, read_windows, read_windows_clamped
from worldmodel.data.opening import open_frame_store, open_tokens
from worldmodel.data.prior_dataset import PriorBatch, PriorDataset
from worldmodel.data.store import Store
from worldmodel.generation.context import Context
from worldmodel.generation.dream import Dream
from worldmodel.generation.generate import continue_clips
from worldmodel.generation.sampling import SamplingConfig
from worldmodel.models.layers import Memory
from worldmodel.models.loading import AnyVQVAE, load_prior, load_vqvae
from worldmodel.models.pixels import to_uint8
from worldmodel.models.prior import Prior
from worldmodel.utils.compatibility import check_vqvae
from worldmodel.utils.errors import UserError
from worldmodel.utils.progress import Progress
from worldmodel.utils.run_args import DEVICE
from worldmodel.utils.settings import Address, Positive, Seed, Settings

CODE_ARRAYS = ("codes", "condition", "variables")


@dataclass(frozen=True, kw_only=True)
class SplitArgs(Settings):
    """The run to evaluate, and its episodes."""

    run: Path = Path("runs/health_gathering_supreme")
    """Run folder."""
    split: str = "test"
    """Split: train, valid, test, held-out (the last two), or all."""
    seed: Seed = 0
    """Seed of everything that is sampled."""


@dataclass(frozen=True, kw_only=True)
class HeldOutArgs(SplitArgs):
    """Settings of the scripts that compare samples with held-out clips."""

    data: Address | None = None
    """Store of frames, by default <run>/data.zarr."""
    context_frames: Positive = 8
    """Latent frames of true codes given as context."""
    device: str = DEVICE
    """Device of the models: cpu or cuda."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Sampling from the prior."""


@dataclass(frozen=True)
class CodeClips:
    """Clips of codes, with what dreams and priors take beside them."""

    codes: torch.Tensor
    condition: torch.Tensor
    variables: torch.Tensor
    episode: np.ndarray
    images: torch.Tensor | None
    """(n, t, H, W, 3) reconstruction before each latent frame, of a recurrent VQ-VAE."""
    state: torch.Tensor | None
    """(n, p, H, W, 3) state of a recurrent VQ-VAE before the clip."""

    def context(self, part: slice, n_frames: int) -> Context:
        """The first `n_frames` latent frames of some clips."""
        codes, condition, variables = (x[part, :n_frames] for x in (self.codes, self.condition, self.variables))
        return Context(codes, condition, variables, None if self.state is None else self.state[part])

    def batch(self, condition: torch.Tensor) -> PriorBatch:
        """The inputs of a prior under other conditions (n, t, c)."""
        return PriorBatch(self.codes, condition, None, self.images)


@dataclass(frozen=True)
class HeldOutClips(CodeClips):
    """Held-out clips as codes and as frames."""

    actions: np.ndarray
    """(n, t, ...) the action of the recorded environment at the last frame of each latent frame."""
    frames: np.ndarray
    """(n, t, H, W, 3): the last frame of each latent frame."""

    def actions_after(self, context_frames: int, steps: int) -> np.ndarray:
        """The actions (n, steps, ...) that lead to the frames after a context."""
        return self.actions[:, context_frames - 1 : context_frames - 1 + steps]


def read_code_clips(
    dream: Dream, tokens: Store, rows: np.ndarray, start: np.ndarray, episode: np.ndarray, length: int
) -> CodeClips:
    """Read clips of `length` latent frames.

    Args:
        dream: The dream that is evaluated.
        tokens: Store of codes.
        rows: (n,) row of the store at which each clip starts.
        start: (n,) row of its episode.
        episode: (n,) index of its episode.
        length: Latent frames per clip.
    """
    codes, condition, variables = (read_windows(tokens, name, rows, length) for name in CODE_ARRAYS)
    images, state, past_frames = None, None, dream.vqvae.config.past_frames
    if past_frames:
        images = torch.from_numpy(read_windows(tokens, RECONSTRUCTION, rows - 1, length))
        state = torch.from_numpy(read_state(tokens, rows, start, past_frames))
    return CodeClips(
        torch.from_numpy(codes.astype(np.int64)),
        torch.from_numpy(condition),
        torch.from_numpy(variables),
        episode,
        images,
        state,
    )


def load_heldout(dream: Dream, run: Path, data: str | Path | None, split: str, n: int, length: int) -> HeldOutClips:
    """Load clips of `length` latent frames, with their frames.

    Args:
        dream: The dream that is evaluated.
        run: Run folder.
        data: Store of frames; None for <run>/data.zarr.
        split: Split of the episodes.
        n: Number of clips.
        length: Latent frames per clip.

    Raises:
        UserError: The stores are missing, do not belong together, or have no such clips.
    """
    tokens = open_tokens(run)
    recorded = open_frame_store(tokens, data or run / "data.zarr")
    check_vqvae(tokens.path, tokens.settings["vqvae"]["weights"], run / "vqvae")
    source = Clips(tokens, split, length, CODE_ARRAYS)
    clips, s = source.fixed_sample(min(n, len(source))), dream.stride
    starts, stops = np.array([recorded.episode_bounds(episode) for episode in clips["episode"].tolist()]).T
    starts = starts + clips["start"] * s
    frames, actions = (read_windows_clamped(recorded, name, starts, length * s, stops) for name in ("frames", "action"))
    read = read_code_clips(dream, tokens, clips["row"], clips["start"], clips["episode"], length)
    return HeldOutClips(**vars(read), actions=actions[:, s - 1 :: s], frames=frames[:, s - 1 :: s])


def other_episode_order(episode: np.ndarray, seed: int) -> np.ndarray:
    """A permutation (n,) without fixed points that pairs each clip with another episode wherever possible.

    Raises:
        UserError: There is only one clip.
    """
    rng, n = np.random.default_rng(seed), len(episode)
    if n < 2:
        raise UserError("the split has only one clip, but actions are shuffled between clips; record more episodes")
    candidates = [np.roll(np.arange(n), k) for k in rng.permutation(np.arange(1, n))[:64]]
    return min(candidates, key=lambda order: int((episode[order] == episode).sum()))


def dream_frames(
    dream: Dream, heldout_clips: HeldOutClips, actions: np.ndarray, context: int, seed: int, batch: int, bar: Progress
) -> np.ndarray:
    """Predicted frames (n, steps, H, W, 3) after the context under actions (n, steps, ...)."""
    out = []
    for at in range(0, len(actions), batch):
        part = slice(at, at + batch)
        start = heldout_clips.context(part, context)
        seeds = [int(s) for s in np.random.SeedSequence([seed, at]).generate_state(len(start))]
        lanes, *_ = dream.reset(start, seeds)
        frames = []
        for t in range(actions.shape[1]):
            frames.append(dream.step(lanes, actions[part, t]).frames[:, -1].cpu().numpy())
            bar.update(len(start))
        out.append(np.stack(frames, axis=1))
    return np.concatenate(out)


@torch.no_grad()
def reconstructions(dream: Dream, clips: CodeClips, n_frames: int | None = None) -> np.ndarray:
    """The last frame of each latent frame (n, t, H, W, 3), decoded from the true codes; by default of all of them."""
    decoded = []
    for part in torch.arange(len(clips.codes)).split(8):
        start = clips.context(slice(int(part[0]), int(part[-1]) + 1), n_frames or clips.codes.shape[1]).to(dream.device)
        memory = None if start.state is None else Memory({dream.vqvae: start.state})
        decoded.append(to_uint8(dream.vqvae.decode(start.codes, memory, start.condition)).cpu())
    return torch.cat(decoded)[:, dream.stride - 1 :: dream.stride].numpy()


@dataclass(frozen=True)
class RealClips:
    """Real clips, and the inputs of a prior for them."""

    batch: PriorBatch
    frames: np.ndarray
    """(n, t, H, W, channels) uint8."""
    episode: np.ndarray


def real_clips(run: Path, prior: Prior, stride: int, n: int, split: str, data: str | Path | None = None) -> RealClips:
    """n clips of a split, the same at every call. `stride` is the distance between clips in frames."""
    tokens, t = open_tokens(run), prior.config.latent_shape[0]
    store = open_frame_store(tokens, data or run / "data.zarr")
    check_vqvae(tokens.path, tokens.settings["vqvae"]["weights"], run / "vqvae")
    align = t if prior.config.mode == "paper" else 1
    clips = Clips(tokens, split, t, ["frame_row"], align=align).fixed_sample(n)
    stops = np.array([store.episode_bounds(episode)[1] for episode in clips["episode"].tolist()])
    frames = read_windows_clamped(store, "frames", clips["frame_row"][:, 0], t * stride, stops)
    return RealClips(PriorDataset(prior.config, tokens, split, store).fixed_sample(n), frames, clips["episode"])


@torch.no_grad()
def encode_given(vqvae: AnyVQVAE, truth: RealClips, context: int) -> PriorBatch:
    """The prior's inputs with codes of the first `context` latent frames, encoded from these frames alone."""
    if not context or not vqvae.config.causal or vqvae.config.past_frames:
        return truth.batch  # a recurrent VQ-VAE's codes build on reconstructions from before the clip
    frames = torch.from_numpy(truth.frames[:, : context * vqvae.config.stride[0]])
    codes = [vqvae.encode(part.to(vqvae.pre_vq_conv.weight.device)).cpu() for part in frames.split(16)]
    return replace(truth.batch, codes=torch.cat(codes))


@torch.no_grad()
def sample_videos(
    vqvae: AnyVQVAE,
    prior: Prior,
    given: PriorBatch,
    seed: int,
    context_frames: int = 0,
    copy_cond_frames: bool = False,
    sampling: SamplingConfig | None = None,
    batch_size: int = 16,
    on_progress: Callable[[int], object] = lambda videos: None,
) -> np.ndarray:
    """Sample one video per condition.

    Args:
        vqvae: The VQ-VAE that decodes the codes.
        prior: The prior.
        given: Inputs of the prior; see `encode_given` for `context_frames` above 0.
        seed: Seed of the samples.
        context_frames: Latent frames of true codes to continue (stream mode).
        copy_cond_frames: Replace the sampled conditioning frames by the real ones.
        sampling: Temperature and filters; None samples from the prior's own distribution.
        batch_size: Videos sampled at a time.
        on_progress: Called with the number of videos of each finished batch.

    Returns:
        Videos (n, t, H, W, channels), uint8.

    Raises:
        UserError: The prior does not support the requested context or conditioning frames.
    """
    if context_frames and prior.config.mode == "paper":
        raise UserError(
            "a paper-mode VQ-VAE encodes whole clips, so its codes cannot be given as context; set --context-frames 0 "
            "and condition the prior on frames instead"
        )
    if context_frames >= (longest := prior.config.latent_shape[0]):
        raise UserError(
            f"clips have {longest} latent frames, so {context_frames} given ones leave nothing to sample; lower "
            "--context-frames"
        )
    if copy_cond_frames and given.cond_frames is None:
        raise UserError("this prior has no conditioning frames to copy; leave --copy-cond-frames out")
    device, videos = prior.start_token.device, []
    for k, part in enumerate(torch.arange(len(given.codes)).split(batch_size)):
        one = given[part].to(device)
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, k]).generate_state(1)[0]))
        video = continue_clips(vqvae, prior, one, context_frames, longest, generator, sampling)[1]
        videos.append(video.cpu().numpy())
        if copy_cond_frames and one.cond_frames is not None:
            videos[-1][:, : one.cond_frames.shape[1]] = one.cond_frames.cpu().numpy()
        on_progress(len(part))
    return np.concatenate(videos)


def load_models(run: Path, prior: str, device: str) -> tuple[AnyVQVAE, Prior]:
    return load_vqvae(run / "vqvae").to(device), load_prior(run / prior).to(device)


def make_sampler(
    run: Path, n: int, n_given: int, device: str, batch_size: int, split: str = "test"
) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """A function from a seed to n samples and the n real clips whose conditions and first `n_given` frames they have.

    The given frames in the samples are those that the model samples or decodes, not copies, as in the paper's protocol.

    Raises:
        UserError: The prior cannot be given `n_given` frames.
    """
    vqvae, prior = load_models(run, "prior", device)
    stride = vqvae.config.stride[0]
    stream = prior.config.mode == "stream"
    if not stream and prior.config.n_cond_frames != n_given:
        raise UserError(
            f"the prior of {run} has {prior.config.n_cond_frames} conditioning frames, but the protocol gives "
            f"{n_given}; set --n-cond-frames"
        )
    if stream and n_given % stride:
        raise UserError(
            f"a latent frame of {run} covers {stride} frames, but the protocol gives {n_given}; set --n-cond-frames to "
            "a multiple"
        )
    truth = real_clips(run, prior, stride, n, split)
    context = n_given // stride if stream else 0
    given = encode_given(vqvae, truth, context)
    return lambda seed: (sample_videos(vqvae, prior, given, seed, context, batch_size=batch_size), truth.frames)
