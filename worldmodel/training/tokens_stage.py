"""The second stage: a store of frames encoded once, into a store of codes (Figure 2).

Episode i of the codes is episode i of the frames, so both have the same splits. Of several stores the episodes come one
store after the other. Row t holds what led into latent frame t and what was found there:

    codes         (h, w, g) uint16
    condition     (s * action width) float32: the s actions that led into its s frames; zeros before an episode's first
    reward        the sum of their rewards
    done          did the episode end with its last frame?
    variables     (v) float32, at its last frame
    label, split  of the episode
    frame_row     of its first frame in the store of frames, where a prior finds its conditioning frames; of one store

Only what was recorded is there: a store of videos may have nothing but frames.

A stream-mode VQ-VAE encodes an episode from end to end. A paper-mode one sees whole clips, so an episode
becomes a row of clips, one beginning every `clip_stride` frames, and clips of codes are only ever taken from where
one begins.
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
"""Latent frames between the end of a context and that of its episode, at most, for `before_end_fraction`."""


@dataclass(frozen=True, kw_only=True)
class TokensStage(StageArgs):
    """Encode a store of frames into codes."""

    data: tuple[Address, ...] = ()
    """Store of frames, or several; <run>/data.zarr if not given."""
    clip_stride: Positive = 4
    """paper mode: frames from the start of one clip to the start of the next."""
    n_contexts: Positive = 64
    """stream mode: starting contexts to keep for the dream, half of them starts of episodes."""
    split: Literal["train", "valid", "test"] = "valid"
    """Where they come from. A policy that is to learn from thousands should have those of "train", of many episodes."""
    before_end_fraction: Fraction = 0.0
    """Share of them that end at most 14 latent frames before an episode does instead: there is something to learn."""
    context_frames: Positive = 8
    """Latent frames of a starting context."""


def clip_starts(model: VQVAE, rows: int, clip_stride: int) -> list[int]:
    """First frames of the pieces of an episode: the episode itself, or the clips in it."""
    return [0] if model.config.causal else list(range(0, rows - model.config.n_frames + 1, clip_stride))


@torch.no_grad()
def encode_frames(model: VQVAE, frames: np.ndarray, chunk: int = 64) -> np.ndarray:
    """The codes (t, h, w, g) of a piece (t*s, H, W, channels): streamed in chunks, or a clip at once."""
    device, memory = model.pre_vq_conv.weight.device, Memory() if model.config.causal else None
    parts = torch.from_numpy(frames).split(chunk * model.config.stride[0])
    codes = [model.encode(part[None].to(device), memory)[0].cpu() for part in parts]
    return torch.cat(codes).numpy().astype(np.uint16)


def actions_into(env_spec: EnvSpec, actions: np.ndarray) -> np.ndarray:
    """(n, width) the encoded action that led into each frame: none into the first, and the last frame has none yet."""
    return np.concatenate(
        [np.zeros((1, env_spec.action.encoded_dim), np.float32), env_spec.action.encode(actions[:-1])]
    )


def latent_rows(episode: dict[str, np.ndarray], start: int, stop: int, stride: int) -> dict[str, np.ndarray]:
    """What led into each latent frame of frames start .. stop, and what was found there."""

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
    """The rows of the pieces of an episode whose frames begin at row `first` of their store."""
    stride = model.config.stride[0]
    if "action" in episode:
        episode = episode | {"led": actions_into(env_spec, episode["action"])}
    missing = -len(episode["frames"]) % stride if model.config.causal else 0
    if missing:  # the last frame stays until its latent frame is full, so that no end of an episode is lost
        last = {name: array[-1:].repeat(missing, axis=0) for name, array in episode.items()}
        episode = {name: np.concatenate([array, last[name]]) for name, array in episode.items()}
    rows = len(episode["frames"])
    for start in clip_starts(model, rows, clip_stride):
        stop = rows if model.config.causal else start + model.config.n_frames
        codes, row = encode_frames(model, episode["frames"][start:stop]), first + np.arange(start, stop, stride)
        yield {"codes": codes, "frame_row": row} | latent_rows(episode, start, stop, stride)


def rows_before_ends(episodes: list[dict[str, np.ndarray]], context: int) -> list[tuple[dict[str, np.ndarray], int]]:
    """Episodes that ended, each with a row that so long a context can stop before, in an order of chance."""
    ended = [e for e in episodes if "done" in e and e["done"][-1]]
    places = [(e, t) for e in ended for t in range(max(context, len(e["codes"]) - MAX_BEFORE_END), len(e["codes"]))]
    return [places[i] for i in np.random.default_rng(0).permutation(len(places))]


def make_contexts(tokens: Store, args: TokensStage) -> Context:
    """Starts of episodes, what comes before ends, then clips from anywhere, all of one split, each once."""
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
    """Encode what the store of codes does not have yet."""
    store, several = stores[0], len(stores) > 1
    settings = {
        "vqvae": {"weights": weights, "model": asdict(model.config)},
        "every": 0 if model.config.causal else args.clip_stride,
        "data": [s.settings for s in stores] if several else store.settings,
    }
    cure = "--restart encodes anew"
    with StoreWriter(args.run / "tokens.zarr", store.env_spec, settings, store.split_seed, cure) as writer:
        first, places = writer.n_episodes, [(s, i) for s in stores for i in range(len(s.episode_ends))]
        if first > len(places):
            named = " and ".join(s.path for s in stores)
            raise UserError(f"{writer.path} has {first} episodes, {named} only {len(places)}; {cure}")
        rows = sum(stop - start for start, stop in (s.episode_bounds(i) for s, i in places[first:]))
        with tqdm(total=rows, unit=" frames", desc="tokens", disable=rows == 0) as bar:
            for source, i in places[first:]:
                episode = source.read_episode(i)
                parts = list(
                    encode_episode(model, source.env_spec, episode, args.clip_stride, source.episode_bounds(i)[0])
                )
                if not parts:
                    raise UserError(
                        f"episode {i} of {source.path} has {len(episode['frames'])} frames, too few for a clip of "
                        f"{model.config.n_frames}; collect longer episodes or train the VQ-VAE with --model.mode stream"
                    )
                names = [name for name in parts[0] if name != "frame_row" or not several]
                writer.append({name: np.concatenate([part[name] for part in parts]) for name in names})
                bar.update(len(episode["frames"]))


def encode_tokens(args: TokensStage) -> None:
    stores = [Store(path) for path in args.data or (args.run / "data.zarr",)]
    if other := next((s for s in stores if s.env_spec != stores[0].env_spec), None):
        raise UserError(f"{other.path} is of another world than {stores[0].path}; codes are of one world")
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
