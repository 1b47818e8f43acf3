"""Drawing the codes of a raster order several at a time, and yet exactly as one by one.

A code is drawn by a race (Gumbel's trick): each of its values has a number of its own, which is added to its logit, and
the greatest sum wins. With the numbers given, a code is a function of the codes before it, and a frame is the one fixed
point of these functions. So a pass works out a run of positions at once, from guesses of the codes before them: the
codes of the frame before, then whatever the last pass made of them. All codes up to the first that comes out other than
it was guessed are final, that one included, since everything before them was right; the rest are better guesses. The
result is that of one code a pass, up to the rounding of logits (in bfloat16 one code in a hundred may be another), and
codes that hardly depend on their neighbours, as where nothing moves, cost hardly any passes.

Iterating to a fixed point is from Wiggers and Hoogeboom, "Predictive Sampling with Forecasting Autoregressive Models"
(2020). Sampling by inversion, as dreams do it, would do for this too, but moves with every small change of the logits:
a race hardly does.

Dimensions: b lanes, w positions of a run with m codes each, n positions of a frame, k code values.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.attention import Cache
from worldmodel.prior import Prior
from worldmodel.sampling import Sampling
from worldmodel.transformer import Block, Shared


def draw_ahead(
    prior: Prior, cache: Cache, shared: Shared, noise: Tensor, sampling: Sampling, run: int, guess: Tensor | None = None
) -> Tensor:
    """Draw all codes of a frame that has begun, in runs of `run` positions.

    Noise (b, n*m, k) of `gumbel` and a guess (b, 1, h, w, g), if there is one -> codes (b, 1, h, w, g). `Prior.finish`
    then moves the cache on.
    """
    n, m = len(prior.order), prior.config.group
    noise, lanes = noise.unflatten(1, (n, m)), torch.arange(len(noise), device=noise.device)[:, None]
    if guess is not None:
        cache.codes.copy_(prior.by_position(guess)[:, 0])
    run, done, bench = min(run, n), lanes.new_zeros(len(lanes)), Bench(cache)
    while int(done.min()) < n:
        at = done.clamp(max=n - run)[:, None] + torch.arange(run, device=done.device)
        before = cache.codes[lanes, at]
        new = _draw(prior, features(prior, cache, bench, at, shared), noise[lanes, at], sampling)
        new = torch.where((at < done[:, None])[..., None], before, new)
        cache.codes[lanes, at] = new
        right = (new == before).all(-1).cumprod(1).sum(1) + 1  # of the run, unless all are
        done = at[:, 0] + right.clamp(max=run)
    bench.back(cache)
    return prior.ungroup(cache.codes.clone()[:, None])


def gumbel(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Numbers for races, of uniform ones above 0."""
    return torch.rand(shape, generator=generator).clamp_min_(2**-25).log_().neg_().log_().neg_()


class Bench:
    """What the passes of a frame attend to: its own keys and values and those of past frames, without gaps.

    The ring of a cache has gaps, whose keys and values every product in bfloat16 would copy; here once a frame does.
    """

    def __init__(self, cache: Cache) -> None:
        self.past = cache.slots * cache.frame
        near = [pair.narrow(3, 0, self.past + cache.frame) for pair in cache.pairs]
        self.pairs = [pair.movedim(2, 0).contiguous().movedim(0, 2) for pair in near]

    def write(self, layer: int, at: Tensor, pair: Tensor) -> Tensor:
        """Put the keys and values (b, a, 2, w, d) of a run of positions `at` (b, w) where they belong; returns all."""
        lanes = torch.arange(len(at), device=at.device)[:, None]
        self.pairs[layer][lanes, :, :, self.past + at] = pair.permute(0, 3, 1, 2, 4)
        return self.pairs[layer]

    def back(self, cache: Cache) -> None:
        """The frame is complete: its keys and values go to the cache."""
        for mine, theirs in zip(self.pairs, cache.pairs, strict=True):
            theirs.narrow(3, self.past, cache.frame).copy_(mine[:, :, :, self.past :])


def features(prior: Prior, cache: Cache, bench: Bench, at: Tensor, shared: Shared) -> Tensor:
    """Features (b, w, width) of a run of positions `at` (b, w) in each lane, each of which sees all before it."""
    x = torch.where(at[..., None] == 0, _first(prior, cache), _told(prior, cache, at - 1))
    x = (x + shared.places[0, at])[:, None]
    mask = _seen(prior, cache, at, shared.past)
    for index, (layer, block) in enumerate(zip(shared.layers, prior.blocks, strict=True)):
        assert isinstance(block, Block)
        x = block.step(x, layer, shared.turn, partial(bench.write, index, at), mask)
    return prior.norm(x, shared.norm)[:, 0]


def _first(prior: Prior, cache: Cache) -> Tensor:
    """What the first position of a frame is told, (b, 1, width) or (width,)."""
    return prior.inputs[0](cache.last) if cache.time else prior.start


def _told(prior: Prior, cache: Cache, parent: Tensor) -> Tensor:
    """What the codes at `parent` (b, w) tell the positions after them, (b, w, width)."""
    parent, m = parent.clamp(min=0), prior.config.group
    lanes = torch.arange(len(parent), device=parent.device)[:, None]
    book = (parent[..., None] * m + torch.arange(m, device=parent.device)) % prior.config.books
    return prior.inputs[0](prior.codebook[book, cache.codes[lanes, parent]].flatten(2))


def _seen(prior: Prior, cache: Cache, at: Tensor, past: Tensor | None) -> Tensor:
    """(b, 1, w, keys) what a run sees of past frames (`past` as in `Shared`) and of its own: 0, or minus infinity."""
    n, old = cache.frame, cache.slots * cache.frame
    if prior.config.local:
        seen = prior.near(cache, at, n)
    else:
        seen = torch.arange(old + n, device=at.device) <= old + at[..., None]
    if past is not None:
        seen = seen & F.pad(past, (0, n), value=True)[:, None]
    return torch.zeros_like(seen, dtype=cache.pairs[0].dtype).masked_fill_(~seen, float("-inf"))[:, None]


def _draw(prior: Prior, x: Tensor, noise: Tensor, sampling: Sampling) -> Tensor:
    """Codes (b, w, m) by features (b, w, width) and noise (b, w, m, k)."""
    hidden, drawn, m = prior.head.begin(x), [], prior.config.group
    for k in range(m):
        logits = prior.head.logits(hidden)
        drawn.append(sampling.race(logits.to(torch.promote_types(logits.dtype, torch.float32)), noise[:, :, k]))
        if k + 1 < m:
            hidden = prior.head.tell(hidden, prior.codebook[k % prior.config.books, drawn[-1]])
    return torch.stack(drawn, -1)
