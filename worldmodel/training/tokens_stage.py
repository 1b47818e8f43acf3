"""The second stage, run by train/tokens.py: frames are encoded once, into a store of codes (Figure 2).

Episode i of the codes is episode i of the frames, in the same split. The episodes of several stores follow one another.
Row t describes latent frame t and what led into it:

    codes         (h, w, g) uint16
    condition     (s * action_dim) float32: the s actions that led into its s frames; zeros at an episode's first frame
    reward        sum of the rewards of these s steps
    done          whether the episode terminated at its last frame
    variables     (v) float32, game variables at its last frame
    label         class of the episode
    split         its split, if it was published with the data or there are several stores
    frame_row     row of its first frame in the store of frames, where a prior finds its conditioning frames
    reconstruction
                  (H, W, channels) uint8, what the decoder of a recurrent VQ-VAE made of the frame; the first one of an
                  episode is the frame itself, which is given

Arrays that were not recorded are left out: a store of videos may have frames only.

A stream-mode VQ-VAE encodes an episode from start to end. A paper-mode one encodes whole clips, so an episode becomes a
sequence of clips that start every `clip_stride` frames, and training clips of codes are aligned with them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from threading import Lock
from typing import Literal

import numpy as np
import torch

from worldmodel.data.clips import RECONSTRUCTION, Clips, n_given_rows, read_state, read_windows
from worldmodel.data.joined import JoinedStore
from worldmodel.data.opening import open_store
from worldmodel.data.shard_cache import CacheArgs
from worldmodel.data.store import Store
from worldmodel.data.writer import StoreWriter
from worldmodel.data.zarr_format import SPLITS
from worldmodel.generation.context import CONTEXTS_FILE, Context
from worldmodel.models.loading import AnyVQVAE, load_vqvae
from worldmodel.models.pixels import to_float
from worldmodel.training.encoding import Rows, encode_episodes
from worldmodel.training.encoding_order import Episodes, encode_window, n_threads, windows
from worldmodel.training.step import autocast
from worldmodel.utils.checkpoint import codes_digest
from worldmodel.utils.errors import UserError
from worldmodel.utils.hardware import Precision, verified_precision
from worldmodel.utils.lock import folder_lock
from worldmodel.utils.memory import keep_freed_memory
from worldmodel.utils.progress import Progress
from worldmodel.utils.run_args import StageArgs
from worldmodel.utils.settings import Address, Fraction, Positive

LANES = {"cpu": 16, "cuda": 256}
"""Episodes that are encoded side by side on a device."""
MAX_BEFORE_END = 14
"""Most latent frames between the end of a context and the end of its episode, for `before_end_fraction`."""


@dataclass(frozen=True, kw_only=True)
class TokensStage(CacheArgs, StageArgs):
    """Encode a store of frames into codes."""

    data: tuple[Address, ...] = ()
    """Stores of frames to encode; <run>/data.zarr by default."""
    clip_stride: Positive = 4
    """paper mode: number of frames between the starts of one clip and the next."""
    n_contexts: Positive = 64
    """stream mode: number of starting contexts to keep for dreams. Half of them are starts of episodes."""
    split: Literal["train", "valid", "test"] = "valid"
    """Split that the starting contexts are taken from. To train a policy, take thousands of contexts from train."""
    before_end_fraction: Fraction = 0.0
    """Fraction of the starting contexts that end shortly before a termination. They end at most 14 latent frames before
    it. A policy then often meets the situations that end an episode."""
    context_frames: Positive = 8
    """Number of latent frames of a starting context."""
    precision: Precision = "float32"
    """Precision of the VQ-VAE. auto takes bfloat16 where the hardware is fast at it, if a trial agrees with float32."""


def rows_before_ends(tokens: Store, episodes: np.ndarray, first: int, context: int) -> list[tuple[int, int]]:
    """In random order: episodes that terminated, each with a start of a context that ends shortly before its end."""
    bounds = [tokens.episode_bounds(i) for i in episodes]
    ended = [(i, b - a) for i, (a, b) in zip(episodes, bounds, strict=True) if tokens.read("done", b - 1, b)[0]]
    places = [(i, t - context) for i, n in ended for t in range(max(first + context, n - MAX_BEFORE_END), n)]
    return [places[i] for i in np.random.default_rng(0).permutation(len(places))]


def distinct(tokens: Store, places: list[tuple[int, int]], t: int) -> list[tuple[int, int]]:
    """The places (episode, start) that do not repeat t latent frames of codes, and the picture, of an earlier one."""
    if not places:
        return []
    rows = np.array([tokens.episode_bounds(i)[0] + start for i, start in places])
    content = [read_windows(tokens, "codes", rows, t)]
    if RECONSTRUCTION in tokens.array_names:  # equal codes change different pictures
        content.append(read_windows(tokens, RECONSTRUCTION, rows, 1))
    found: dict[int, tuple[int, int]] = {}
    for place, *parts in zip(places, *content, strict=True):
        found.setdefault(hash(b"".join(part.tobytes() for part in parts)), place)
    return list(found.values())


def make_contexts(tokens: Store, args: TokensStage, past_frames: int) -> Context:
    """Choose the starting contexts of dreams: starts of episodes, contexts before ends, then clips from anywhere.

    Each context is chosen once, so there may be fewer than `n_contexts`.

    Args:
        tokens: The store of codes.
        args: Settings of the stage.
        past_frames: As in the VQ-VAE's config.

    Raises:
        UserError: If no episode of the split is long enough.
    """
    episodes, t, names = tokens.episode_indices(args.split), args.context_frames, ("codes", "condition", "variables")
    first = n_given_rows(tokens)
    sizes = [tokens.episode_length(i) for i in episodes]
    if (longest := max(sizes) - first) < t:
        some = f"no episode in split {args.split!r} of {tokens.path}"
        raise UserError(f"{some} has more than {longest} latent frames; lower --context-frames")
    near = round(args.before_end_fraction * args.n_contexts)
    starts = [(i, first) for i, n in zip(episodes, sizes, strict=True) if n >= first + t]
    before = rows_before_ends(tokens, episodes, first, t) if near and "done" in tokens.array_names else []
    clips = Clips(tokens, args.split, t, ["codes"])
    anywhere = clips.fixed_sample(min(2 * args.n_contexts, len(clips)))
    before = distinct(tokens, before, t)[:near]
    chosen = distinct(tokens, starts, t)[: (args.n_contexts - len(before)) // 2] + before
    chosen += zip(anywhere["episode"], anywhere["start"], strict=True)
    chosen = distinct(tokens, chosen, t)[: args.n_contexts]
    start = np.array([start for _, start in chosen])
    rows = start + np.array([tokens.episode_bounds(i)[0] for i, _ in chosen])
    arrays = {name: read_windows(tokens, name, rows, t) for name in names}
    arrays["codes"] = arrays["codes"].astype(np.int32)
    if past_frames:
        arrays["state"] = read_state(tokens, rows, start, past_frames)
    return Context(**{name: torch.from_numpy(array) for name, array in arrays.items()})


@torch.no_grad()
def trial_reconstruction(model: AnyVQVAE, store: Store, precision: Precision) -> dict[str, torch.Tensor]:
    """Reconstruct a few frames of a store in a precision, by the name in `hardware.TOLERANCE`."""
    n, device = model.config.n_frames + (model.config.past_frames > 0), model.pre_vq_conv.weight.device
    episode = store.read_episode(0)
    at = np.minimum(np.arange(n), len(episode["frames"]) - 1)
    frames = torch.from_numpy(episode["frames"][at][None]).to(device)
    led = (
        store.env_spec.action.encode_led(episode["action"][:-1])[at]
        if model.config.action_dim
        else np.zeros((n, 0), "f4")
    )
    with autocast(device, precision):
        seen = model.reconstruct(frames, actions=torch.from_numpy(led)[None].to(device))[1]
    return {"picture": to_float(seen)}


def encoded_episodes(
    args: TokensStage, store: Store, model: AnyVQVAE, precision: Precision, first: int
) -> Generator[tuple[int, Rows], None, None]:
    """Yield the number and the rows of codes of each episode from `first` on, with a progress bar."""
    device, lock, n = model.pre_vq_conv.weight.device, Lock(), len(store.episode_ends)
    lanes = LANES[device.type]
    total = store.n_rows - (store.episode_bounds(first)[0] if first < n else store.n_rows)
    with Progress(total=total, unit=" frames", desc="tokens", disable=total == 0) as bar:

        def advance(check: Callable[[], None], frames: int) -> None:
            check()
            with lock:
                bar.update(min(frames, total - bar.n))  # a last latent frame may have been filled

        def encode(group: Episodes, check: Callable[[], None]) -> list[Rows]:
            check()
            numbers, episodes = zip(*group, strict=True)
            rows = [store.episode_bounds(i)[0] for i in numbers]
            with autocast(device, precision):  # of this thread
                return encode_episodes(model, store.env_spec, episodes, rows, args.clip_stride, partial(advance, check))

        for window in windows(store, first, n, lanes):
            yield from zip(window, encode_window(encode, store, window, lanes, n_threads(device)), strict=True)


def encode_store(args: TokensStage, store: Store, model: AnyVQVAE, weights: str, precision: Precision) -> None:
    """Encode the episodes that the store of codes does not have yet.

    Args:
        args: Settings of the stage.
        store: Store of frames.
        model: The VQ-VAE.
        weights: Its `codes_digest`.
        precision: Precision to encode in.

    Raises:
        UserError: If the store of codes has other settings or more episodes, or an episode is too short.
    """
    settings = {
        "vqvae": {"weights": weights, "model": asdict(model.config)},
        "every": 0 if model.config.causal else args.clip_stride,
        "data": store.settings,
    }
    cure = "use --restart to encode everything again"
    with StoreWriter(args.run / "tokens.zarr", store.env_spec, settings, store.split_seed, cure) as writer:
        first, n = writer.n_episodes, len(store.episode_ends)
        if first > n:
            raise UserError(f"{writer.path} has {first} episodes, but {store.path} only {n}; {cure}")
        with closing(encoded_episodes(args, store, model, precision, first)) as encoded:
            for i, rows in encoded:
                if not rows:
                    raise UserError(
                        f"episode {i} of {store.path} has {store.episode_length(i)} frames, but a clip needs "
                        f"{model.config.n_frames}; collect longer episodes or train the VQ-VAE with --model.mode stream"
                    )
                writer.append(rows | joined_split(store, i, len(rows["codes"])))


def joined_split(store: Store, i: int, n: int) -> Rows:
    """The split of episode i as n rows, for a joined store, where drawing it by the episode's number would be wrong."""
    if not isinstance(store, JoinedStore):
        return {}
    return {"split": np.full(n, SPLITS.index(store.episode_splits()[i]))}


def encode_tokens(args: TokensStage) -> None:
    """Encode frames into <run>/tokens.zarr, and choose the contexts that dreams start from.

    Raises:
        UserError: If the stores cannot be joined, or lack the actions that the VQ-VAE takes, and as `encode_store`.
    """
    keep_freed_memory()
    stores = [open_store(path, args.shard_cache()) for path in args.data or (args.run / "data.zarr",)]
    store = JoinedStore(" and ".join(s.path for s in stores), stores) if len(stores) > 1 else stores[0]
    model, weights = load_vqvae(args.run / "vqvae").to(args.device), codes_digest(args.run / "vqvae")
    if model.config.action_dim and "action" not in store.array_names:
        raise UserError(
            f"{store.path} has no actions, but {args.run / 'vqvae'} takes them; encode a store that has them"
        )
    with folder_lock(args.run, "tokens.lock", f"{CONTEXTS_FILE}.*.part"):
        if args.restart:
            shutil.rmtree(args.run / "tokens.zarr", ignore_errors=True)
        device = model.pre_vq_conv.weight.device
        precision = verified_precision("tokens", device, args.precision, partial(trial_reconstruction, model, store))
        encode_store(args, store, model, weights, precision)
        tokens = Store(args.run / "tokens.zarr")
        if missing := [name for name in ("condition", "variables") if name not in tokens.array_names]:
            print(f"no contexts for a dream to start from: {tokens.path} has no {missing[0]}")
        elif model.config.causal:
            make_contexts(tokens, args, model.config.past_frames).save(args.run / CONTEXTS_FILE, weights)
    print(
        f"tokens: {args.run / 'tokens.zarr'} with {len(tokens.episode_ends)} episodes, {tokens.n_rows:,} latent frames"
    )
