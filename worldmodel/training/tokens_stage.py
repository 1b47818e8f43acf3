"""The second stage, run by train/tokens.py: frames are encoded once, into a store of codes (Figure 2).

Episode i of the codes is episode i of the frames, so both have the same splits. The episodes of several stores follow
one another. Row t describes latent frame t and what led into it:

    codes         (h, w, g) uint16
    condition     (s * action_dim) float32: the s actions that led into its s frames; zeros at an episode's first frame
    reward        sum of the rewards of these s steps
    done          whether the episode terminated at its last frame
    variables     (v) float32, game variables at its last frame
    label, split  class and split of the episode
    frame_row     row of its first frame in the store of frames, where a prior finds its conditioning frames; left out
                  if there are several stores

Arrays that were not recorded are left out: a store of videos may have frames only.

A stream-mode VQ-VAE encodes an episode from start to end. A paper-mode one encodes whole clips, so an episode becomes a
sequence of clips that start every `clip_stride` frames, and training clips of codes are aligned with them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from worldmodel.data.clips import Clips
from worldmodel.data.env_spec import EnvSpec
from worldmodel.data.shard_cache import CacheArgs
from worldmodel.data.store import Store
from worldmodel.data.writer import StoreWriter
from worldmodel.generation.dream import CONTEXTS_FILE, Context
from worldmodel.models.layers import Memory
from worldmodel.models.loading import load_vqvae
from worldmodel.models.vqvae import VQVAE
from worldmodel.utils.checkpoint import codes_digest
from worldmodel.utils.errors import UserError
from worldmodel.utils.lock import folder_lock
from worldmodel.utils.run_args import StageArgs
from worldmodel.utils.settings import Address, Fraction, Positive

MAX_BEFORE_END = 14
"""Most latent frames between the end of a context and the end of its episode, for `before_end_fraction`."""


@dataclass(frozen=True, kw_only=True)
class TokensStage(CacheArgs, StageArgs):
    """Encode a store of frames into codes."""

    data: tuple[Address, ...] = ()
    """Stores of frames to encode; <run>/data.zarr by default."""
    clip_stride: Positive = 4
    """paper mode: number of frames from the start of one clip to the start of the next."""
    n_contexts: Positive = 64
    """stream mode: number of starting contexts to keep for dreams, half of them starts of episodes."""
    split: Literal["train", "valid", "test"] = "valid"
    """Split that the starting contexts are taken from. To train a policy, take thousands of contexts from train."""
    before_end_fraction: Fraction = 0.0
    """Fraction of the starting contexts that end at most 14 latent frames before their episode terminates, so that a
    policy often meets the situations that end an episode."""
    context_frames: Positive = 8
    """Number of latent frames of a starting context."""


def clip_starts(model: VQVAE, rows: int, clip_stride: int) -> list[int]:
    """First frames of the segments of an episode that are encoded: 0 in stream mode, else the starts of its clips.

    Args:
        model: The VQ-VAE.
        rows: Number of frames of the episode.
        clip_stride: As in `TokensStage`.
    """
    return [0] if model.config.causal else list(range(0, rows - model.config.n_frames + 1, clip_stride))


@torch.no_grad()
def encode_frames(model: VQVAE, frames: np.ndarray, chunk: int = 64) -> np.ndarray:
    """Encode a segment of an episode: in stream mode chunk by chunk, in paper mode at once.

    Args:
        model: The VQ-VAE.
        frames: uint8 (t*s, H, W, channels).
        chunk: Latent frames that are encoded at a time.

    Returns:
        Codes (t, h, w, g) uint16.
    """
    device, memory = model.pre_vq_conv.weight.device, Memory() if model.config.causal else None
    parts = torch.from_numpy(frames).split(chunk * model.config.stride[0])
    codes = [model.encode(part[None].to(device), memory)[0].cpu() for part in parts]
    return torch.cat(codes).numpy().astype(np.uint16)


def actions_into(env_spec: EnvSpec, actions: np.ndarray) -> np.ndarray:
    """The encoded action (n, action_dim) that led into each frame, zeros for the first.

    Args:
        env_spec: The environment.
        actions: The action taken at each of n frames; the last row is ignored, since no frame follows it.
    """
    return np.concatenate(
        [np.zeros((1, env_spec.action.encoded_dim), np.float32), env_spec.action.encode(actions[:-1])]
    )


def latent_rows(episode: dict[str, np.ndarray], start: int, stop: int, stride: int) -> dict[str, np.ndarray]:
    """All rows but the codes for the latent frames of frames start .. stop.

    Args:
        episode: Arrays of a whole episode, and as "led" the encoded actions of `actions_into`.
        start: First frame.
        stop: Frame after the last.
        stride: Frames of a latent frame.
    """

    def into(values: np.ndarray) -> np.ndarray:
        """The value of the step into each frame (zero for an episode's first), s to a row."""
        before = np.concatenate([np.zeros_like(values[:1]), values[:-1]])
        return before[start:stop].reshape(-1, stride, *values.shape[1:])

    def at(values: np.ndarray) -> np.ndarray:
        """The value at the last of its frames."""
        return values[start:stop][stride - 1 :: stride]

    rows: dict[str, np.ndarray] = {
        name: at(episode[name]) for name in ("variables", "label", "split") if name in episode
    }
    if "led" in episode:
        rows["condition"] = episode["led"][start:stop].reshape((stop - start) // stride, -1)
    if "reward" in episode:
        rows["reward"] = into(episode["reward"]).sum(1)
    if "terminated" in episode:
        rows["done"] = np.asarray(into(episode["terminated"]).any(1))
    return rows


def encode_episode(
    model: VQVAE, env_spec: EnvSpec, episode: dict[str, np.ndarray], clip_stride: int, first: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Encode an episode.

    Args:
        model: The VQ-VAE.
        env_spec: The environment of the episode.
        episode: Its arrays.
        clip_stride: As in `TokensStage`.
        first: Row of its first frame in the store.

    Yields:
        The rows of each segment.
    """
    stride = model.config.stride[0]
    if "action" in episode:
        episode = episode | {"led": actions_into(env_spec, episode["action"])}
    missing = -len(episode["frames"]) % stride if model.config.causal else 0
    if missing:  # repeat the last frame until its latent frame is full, so that the end of the episode is not lost
        last = {name: array[-1:].repeat(missing, axis=0) for name, array in episode.items()}
        episode = {name: np.concatenate([array, last[name]]) for name, array in episode.items()}
    rows = len(episode["frames"])
    for start in clip_starts(model, rows, clip_stride):
        stop = rows if model.config.causal else start + model.config.n_frames
        codes, row = encode_frames(model, episode["frames"][start:stop]), first + np.arange(start, stop, stride)
        yield {"codes": codes, "frame_row": row} | latent_rows(episode, start, stop, stride)


def rows_before_ends(episodes: list[dict[str, np.ndarray]], context: int) -> list[tuple[dict[str, np.ndarray], int]]:
    """In random order: episodes that terminated, each with a row that a context of that length can end before."""
    ended = [e for e in episodes if "done" in e and e["done"][-1]]
    places = [(e, t) for e in ended for t in range(max(context, len(e["codes"]) - MAX_BEFORE_END), len(e["codes"]))]
    return [places[i] for i in np.random.default_rng(0).permutation(len(places))]


def make_contexts(tokens: Store, args: TokensStage) -> Context:
    """Choose the starting contexts of dreams: starts of episodes, contexts before ends, then clips from anywhere.

    Each context is chosen once, so there may be fewer than `n_contexts`.

    Args:
        tokens: The store of codes.
        args: Settings of the stage.

    Raises:
        UserError: If no episode of the split is long enough.
    """
    episodes = [tokens.read_episode(i) for i in tokens.episode_indices(args.split)]
    if (longest := max(len(e["codes"]) for e in episodes)) < args.context_frames:
        some = f"no {args.split} episode of {tokens.path}"
        raise UserError(f"{some} has more than {longest} latent frames; lower --context-frames")
    every, names = Clips(tokens, args.split, args.context_frames), ("codes", "condition", "variables")
    starts = [
        {n: e[n][: args.context_frames] for n in names} for e in episodes if len(e["codes"]) >= args.context_frames
    ]
    near = round(args.before_end_fraction * args.n_contexts)
    places = rows_before_ends(episodes, args.context_frames) if near else []
    before = [{n: e[n][t - args.context_frames : t] for n in names} for e, t in places]
    clips = every.fixed_sample(min(2 * args.n_contexts, len(every)))
    anywhere = [{n: clips[n][k] for n in names} for k in range(len(clips["codes"]))]
    distinct = lambda rows: list({row["codes"].tobytes(): row for row in rows}.values())  # noqa: E731
    before = distinct(before)[:near]
    chosen = distinct(distinct(starts)[: (args.n_contexts - len(before)) // 2] + before + anywhere)[: args.n_contexts]
    rows = {n: np.stack([row[n] for row in chosen]) for n in names}
    rows["codes"] = rows["codes"].astype(np.int32)
    return Context(**{n: torch.from_numpy(array) for n, array in rows.items()})


def write(args: TokensStage, stores: list[Store], model: VQVAE, weights: str) -> None:
    """Encode the episodes that the store of codes does not have yet.

    Args:
        args: Settings of the stage.
        stores: Stores of frames.
        model: The VQ-VAE.
        weights: Its `codes_digest`.

    Raises:
        UserError: If the store of codes has other settings or more episodes, or an episode is too short.
    """
    store, several = stores[0], len(stores) > 1
    settings = {
        "vqvae": {"weights": weights, "model": asdict(model.config)},
        "every": 0 if model.config.causal else args.clip_stride,
        "data": [s.settings for s in stores] if several else store.settings,
    }
    cure = "use --restart to encode everything again"
    with StoreWriter(args.run / "tokens.zarr", store.env_spec, settings, store.split_seed, cure) as writer:
        first, places = writer.n_episodes, [(s, i) for s in stores for i in range(len(s.episode_ends))]
        if first > len(places):
            named = " and ".join(s.path for s in stores)
            raise UserError(f"{writer.path} has {first} episodes, but {named} only {len(places)}; {cure}")
        rows = sum(stop - start for start, stop in (s.episode_bounds(i) for s, i in places[first:]))
        with tqdm(total=rows, unit=" frames", desc="tokens", disable=rows == 0) as bar:
            for source, i in places[first:]:
                episode = source.read_episode(i)
                parts = list(
                    encode_episode(model, source.env_spec, episode, args.clip_stride, source.episode_bounds(i)[0])
                )
                if not parts:
                    raise UserError(
                        f"episode {i} of {source.path} has {len(episode['frames'])} frames, but a clip needs "
                        f"{model.config.n_frames}; collect longer episodes or train the VQ-VAE with --model.mode stream"
                    )
                names = [name for name in parts[0] if name != "frame_row" or not several]
                writer.append({name: np.concatenate([part[name] for part in parts]) for name in names})
                bar.update(len(episode["frames"]))


def encode_tokens(args: TokensStage) -> None:
    """Encode frames into <run>/tokens.zarr, and choose the contexts that dreams start from.

    Raises:
        UserError: If the stores are of different environments, and as `write`.
    """
    stores = [Store(path, args.shard_cache(path)) for path in args.data or (args.run / "data.zarr",)]
    if other := next((s for s in stores if s.env_spec != stores[0].env_spec), None):
        raise UserError(
            f"{other.path} was recorded from another environment than {stores[0].path}; give stores of one environment"
        )
    model, weights = load_vqvae(args.run / "vqvae").to(args.device), codes_digest(args.run / "vqvae")
    with folder_lock(args.run, "tokens.lock", f"{CONTEXTS_FILE}.*.part"):
        if args.restart:
            shutil.rmtree(args.run / "tokens.zarr", ignore_errors=True)
        write(args, stores, model, weights)
        tokens = Store(args.run / "tokens.zarr")
        if missing := [name for name in ("condition", "variables") if name not in tokens.array_names]:
            print(f"no contexts for a dream to start from: {tokens.path} has no {missing[0]}")
        elif model.config.causal:
            make_contexts(tokens, args).save(args.run / CONTEXTS_FILE, weights)
    print(
        f"tokens: {args.run / 'tokens.zarr'} with {len(tokens.episode_ends)} episodes, {tokens.n_rows:,} latent frames"
    )
