"""Drawing the codes of a raster order several at a time, and yet exactly as one by one.

A code is drawn by a race (Gumbel's trick): each of its values has a time, exponentially distributed, which is divided
by its probability, and the first one wins. With the times given, a code is a function of the codes before it, and a
frame is the one fixed point of these functions. So a pass works out a run of positions at once, from guesses of the
codes before them: the codes of the frame before, then whatever the last pass made of them. All codes up to the first
that comes out other than it was guessed are final, that one included, since everything before them was right; the rest
are better guesses. The result is that of one code a pass, up to the rounding of logits (in bfloat16 one code in a
hundred may be another), and codes that hardly depend on their neighbours, as where nothing moves, cost hardly any
passes.

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
    prior: Prior, cache: Cache, shared: Shared, times: Tensor, sampling: Sampling, run: int, guess: Tensor | None = None
) -> Tensor:
    """Draw all codes of a frame that has begun, in runs of `run` positions.

    Times (b, n*m, k), exponentially distributed, and a guess (b, 1, h, w, g), if there is one -> codes (b, 1, h, w, g).
    `Prior.finish` then moves the cache on.
    """
    n, m = len(prior.order), prior.config.group
    times, lanes = times.unflatten(1, (n, m)), torch.arange(len(times), device=times.device)[:, None]
    if guess is not None:
        cache.codes.copy_(prior.by_position(guess)[:, 0])
    run, done = min(run, n), lanes.new_zeros(len(lanes))
    while int(done.min()) < n:
        at = done.clamp(max=n - run)[:, None] + torch.arange(run, device=done.device)
        before = cache.codes[lanes, at]
        new = _draw(prior, features(prior, cache, at, shared), times[lanes, at], sampling)
        new = torch.where((at < done[:, None])[..., None], before, new)
        cache.codes[lanes, at] = new
        right = (new == before).all(-1).cumprod(1).sum(1) + 1  # of the run, unless all are
        done = at[:, 0] + right.clamp(max=run)
    return prior.ungroup(cache.codes.clone()[:, None])


def features(prior: Prior, cache: Cache, at: Tensor, shared: Shared) -> Tensor:
    """Features (b, w, width) of a run of positions `at` (b, w) in each lane, each of which sees all before it."""
    x = torch.where(at[..., None] == 0, _first(prior, cache), _told(prior, cache, at - 1))
    x = (x + shared.places[0, at])[:, None]
    now = int(at.max()) + 1
    mask = _seen(prior, cache, at, now, shared.past)
    for index, (layer, block) in enumerate(zip(shared.layers, prior.blocks, strict=True)):
        assert isinstance(block, Block)
        x = block.step(x, layer, shared.turn, partial(cache.write_at, index, at, now), mask)
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


def _seen(prior: Prior, cache: Cache, at: Tensor, now: int, past: Tensor | None) -> Tensor:
    """(b, 1, w, keys) what a run sees of past frames (`past` as in `Shared`) and of `now` positions of its own."""
    if prior.config.local:
        seen = prior.near(cache, at, now)
    else:
        old = cache.slots * cache.frame
        seen = torch.arange(old + now, device=at.device) <= old + at[..., None]
    return (seen if past is None else seen & F.pad(past, (0, now), value=True)[:, None])[:, None]


def _draw(prior: Prior, x: Tensor, times: Tensor, sampling: Sampling) -> Tensor:
    """Codes (b, w, m) by features (b, w, width) and times (b, w, m, k)."""
    hidden, drawn, m = prior.head.begin(x), [], prior.config.group
    for k in range(m):
        logits = prior.head.logits(hidden)
        drawn.append(sampling.race(logits.to(torch.promote_types(logits.dtype, torch.float32)), times[:, :, k]))
        if k + 1 < m:
            hidden = prior.head.tell(hidden, prior.codebook[k % prior.config.books, drawn[-1]])
    return torch.stack(drawn, -1)
