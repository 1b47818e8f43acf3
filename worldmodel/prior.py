"""GPT over the codes of a video (section 3, Table 9).

Pre-norm blocks of self-attention and feed-forward, dropout after each, input from the codebook's own vectors, a
learned start token, an output head that starts at zero: the official code's choices. Two configs, one model:

* `mode="paper"`: learned absolute positions in time and space, attention over the whole clip, raster order, and one
  condition for the clip (all its actions in a row: 15 transitions x 4 = 60 for HGS, Table 9). It ends after a clip,
  and every code knows the future actions.
* `mode="stream"`: a condition for each latent frame (the actions that led into it), attention over the last `window`
  frames with relative time, anti-diagonal order. It has no end, and nothing knows the future: what a simulator needs.

Two options of ours, for speed and for endless dreams:

* `patch`: the transformer sees patches of patch x patch codes as one position, and a small head predicts the codes of
  a patch one after the other, each given those before it. With patches of 2 the same picture costs a quarter of the
  transformer's work, in training and in dreams, and the factorisation is as exact as before.
* `noise`: in training some of the codes that the model is given, never those it must predict, are replaced by random
  ones, so that it learns to go on from the slips of its own dreams. Little is enough: with up to a fifth of them random
  a dream of Take Cover took its fireballs for slips and mended them away.

Dimensions: b batch, t latent frames, h w g rows, columns and codebooks, n positions of a frame with m codes each, k
code values, c condition. Codes are (b, t, h, w, g), or (b, t, n, m) by position; positions count in raster order.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from worldmodel.attention import Cache, Mask, rotation
from worldmodel.conditioning import ConditionalNorm
from worldmodel.errors import UserError
from worldmodel.layers import AxisPositions
from worldmodel.order import NONE, Order
from worldmodel.prior_config import Condition, PriorConfig
from worldmodel.resnet import ResNet
from worldmodel.sparsity import block_mask, clip_mask
from worldmodel.transformer import Block, Head, Shared
from worldmodel.vqvae import to_float

__all__ = ["Condition", "Prior", "PriorConfig"]


class Prior(nn.Module):
    """p(codes | condition), one latent frame after the other."""

    codebook: Tensor
    scale: Tensor
    parents: Tensor
    sequence: Tensor
    reachable: Tensor

    def __init__(self, config: PriorConfig, codebook: Tensor | None = None) -> None:
        """`codebook` (books, codes, code_dim) are the VQ-VAE's code vectors; they stay as they are."""
        super().__init__()
        self.config = config
        t = config.latent[0]
        self.order = Order(config.order, *config.grid)
        shape = (config.books, config.codes, config.code_dim)
        if codebook is not None and tuple(codebook.shape) != shape:
            raise UserError(
                f"the prior's config asks for a codebook of {shape}, the VQ-VAE has {tuple(codebook.shape)}"
            )
        self.register_buffer("codebook", torch.zeros(shape) if codebook is None else codebook.clone())
        self.register_buffer("scale", torch.tensor(config.condition_scale or 1.0), persistent=False)
        self.register_buffer("sequence", torch.cat(self.order.passes), persistent=False)
        if config.local:  # what the last frame of a full ring sees of it, each frame in the order it is cached in
            last = clip_mask(self.order, config.reach, config.reach, config.local)[-len(self.order) :]
            reachable = last.unflatten(1, (config.reach, -1))[..., self.sequence]
            self.register_buffer("reachable", reachable, persistent=False)
        self.register_buffer("parents", self.order.parents, persistent=False)
        self.inputs = nn.ModuleList(
            nn.Linear(config.group * config.code_dim, config.width, bias=False)
            for _ in range(2 if config.order == "diagonal" else 1)
        )
        self.start = nn.Parameter(torch.randn(config.width) * 0.02)
        place = config.grid if config.grid[2] > 1 else config.grid[:2]
        self.positions = AxisPositions(place if config.mode == "stream" else (t, *place), config.width, config.spread)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = ConditionalNorm(config.width, config.condition_dim)
        self.head = Head(config)
        if config.seen:
            self.resnet = ResNet(config.resnet, config.seen, config.seen_shape, config.units, config.spread)
        self._masks: dict[tuple[int, torch.device], Mask] = {}

    def look(self, frames: Tensor) -> Tensor:
        """Conditioning frames (b, seen, H, W, c) uint8 -> features (b, m, units), as the other methods take them."""
        wanted = (self.config.seen, *self.config.seen_shape)
        if not self.config.seen or tuple(frames.shape[1:]) != wanted:
            raise UserError(f"this prior looks at conditioning frames of {wanted}, not {tuple(frames.shape[1:])}")
        return self.resnet(to_float(frames, self.start.dtype))

    def forward(self, codes: Tensor, condition: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        """Logits (b, t, h, w, g, k) of every code given the codes before it. Condition (b, t, c) or (b, c)."""
        return self.ungroup(self.clip(codes, condition, features)[0])

    def loss(self, codes: Tensor, condition: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        """Cross entropy of each latent frame, in nats per code: (b, t). Over ln 2 it is the paper's bits/dim."""
        given = self.corrupt(codes) if self.training and self.config.noise else codes
        logits, target = self.clip(given, condition, features)[0].float(), self.by_position(codes)
        loss = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none")
        return loss.view(*target.shape).mean((2, 3))

    def corrupt(self, codes: Tensor) -> Tensor:
        """Codes of which a share is random; the share is uniform up to `noise`, another one for each clip."""
        share = torch.rand(len(codes), 1, 1, 1, 1, device=codes.device) * self.config.noise
        random = torch.randint_like(codes, self.config.codes)
        return torch.where(torch.rand(codes.shape, device=codes.device) < share, random, codes)

    def clip(
        self, codes: Tensor, condition: Tensor | None, features: Tensor | None = None, start: int = 0
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits (b, t, n, m, k) and each layer's keys and values, for a clip whose first frame has index `start`."""
        t = codes.shape[1]
        shared = self.shared(start, t, self.check(codes, condition), features)
        grouped = self.by_position(codes)
        vectors = self.vectors(grouped)
        ends = vectors[:, :-1, self.order.last].flatten(3)
        last = torch.cat([ends.new_zeros(len(codes), 1, *ends.shape[2:]), ends], dim=1)
        x = self._tell(grouped, last, torch.arange(len(self.order), device=codes.device))
        x[:, 0, self.order.first] = self.start.to(x.dtype)
        x = x + shared.places
        mask, memory = self._mask(t), []
        for layer, block in zip(shared.layers, self.blocks, strict=True):
            x, pair = block(x, layer, shared.turn, mask)
            memory.append(pair)
        return self.head(self.norm(x, shared.norm), vectors), memory

    def shared(self, start: int, t: int, condition: Tensor | None, features: Tensor | None) -> Shared:
        """For t frames from index `start` on, under a condition (b, t or 1, c)."""
        if (features is None) == bool(self.config.seen):
            raise UserError(
                f"this prior looks at {self.config.seen} conditioning frames; give what `look` makes of them"
            )
        condition = None if condition is None else condition / self.scale
        return Shared(
            [block.share(condition, features) for block in self.blocks],  # type: ignore[operator]
            self.norm.modulation(condition),
            self._places(start, t),
            self.turn(start, t),
        )

    def turn(self, start: int, t: int = 1) -> Tensor | None:
        """(2, 1 or t*n, d) the rotation of t frames from index `start` on; none where time is absolute."""
        if self.config.mode == "paper":
            return None
        times = torch.arange(start, start + t, device=self.start.device)
        turn = rotation(times, self.config.width // self.config.heads, self.start.dtype)
        return turn if t == 1 else turn.repeat_interleave(len(self.order), 1)

    def empty(self, batch: int) -> Cache:
        """A cache with nothing in it: the next frame is a video's first.

        Of a bfloat16 model that draws code by code it is in float32 on a CPU, where products of one row in bfloat16 are
        slower than twice the reading.
        """
        c, like = self.config, self.start
        exact = c.order == "raster" and like.device.type == "cpu" and like.dtype == torch.bfloat16
        size = (batch, c.kv_heads or c.heads, 2, c.reach * len(self.order), c.width // c.heads)
        pairs = [like.new_zeros(size, dtype=torch.float32 if exact else None) for _ in range(c.layers)]
        valid = torch.zeros(batch, c.reach - 1, dtype=torch.bool, device=like.device)
        codes = torch.zeros(batch, len(self.order), c.group, dtype=torch.long, device=like.device)
        last = like.new_zeros(batch, len(self.order.last), c.group * c.code_dim)
        return Cache(pairs, valid, last, codes)

    def prefill(
        self, codes: Tensor, condition: Tensor | None = None, start: int = 0, features: Tensor | None = None
    ) -> Cache:
        """The cache after the frames of a context (b, t, h, w, g), the first of which has index `start`."""
        b, t = codes.shape[:2]
        cache, n = self.empty(b), len(self.order)
        slots = cache.valid.shape[1]
        memory = self.clip(codes, condition, features, start)[1]
        for frame in range(max(0, t - slots), t):
            at, source = (start + frame) % slots, frame * n + self.sequence
            for ring, pair in zip(cache.pairs, memory, strict=True):
                ring[:, :, :, at * n : (at + 1) * n] = pair[:, :, :, source]
            cache.valid[:, at] = True
        vectors = self.vectors(self.by_position(codes[:, -1:]), self.passes()[-1])
        cache.last, cache.time = vectors[:, 0].flatten(2), start + t
        return cache

    def begin(self, cache: Cache, condition: Tensor | None = None, features: Tensor | None = None) -> Shared:
        """What the passes over the next frame share, under its condition (b, c)."""
        shared = self.shared(cache.time, 1, None if condition is None else condition[:, None], features)
        return shared._replace(past=cache.mask())

    def passes(self) -> tuple[Tensor, ...]:
        """The positions of each pass, in order, where the model is."""
        return self.sequence.split([len(positions) for positions in self.order.passes])

    def step(self, cache: Cache, positions: Tensor, shared: Shared) -> Tensor:
        """Features (b, positions, width) of one pass: the codes of its parents must be in `cache.codes`."""
        if cache.done:
            x = self._tell(cache.codes[:, None], None, positions)
        else:
            x = self.inputs[0](cache.last)[:, None] if cache.time else self.start
        x = x + shared.places[..., positions, :].expand(len(cache.codes), -1, -1, -1)
        mask, now = shared.past, cache.done + len(positions)
        if mask is not None:
            mask = F.pad(mask, (0, now), value=True)[:, None, None]
        if self.config.local:
            near = self.near(cache, positions, now)
            mask = near if mask is None else mask & near
        for index, (layer, block) in enumerate(zip(shared.layers, self.blocks, strict=True)):
            assert isinstance(block, Block)
            x = block.step(x, layer, shared.turn, partial(cache.write, index), mask)
        cache.done = now
        return self.norm(x, shared.norm)[:, 0]

    def finish(self, cache: Cache) -> None:
        """All codes of the frame are in `cache.codes`: begin the next one."""
        cache.finish(self.vectors(cache.codes[:, None], self.passes()[-1])[:, 0].flatten(2))

    def check(self, codes: Tensor, condition: Tensor | None) -> Tensor | None:
        """The condition as (b, t or 1, c); one sentence if codes or condition do not fit the model."""
        c, (_, h, w) = self.config, self.config.latent
        if tuple(codes.shape[2:]) != (h, w, c.books):
            raise UserError(f"this prior takes codes of (batch, time, {h}, {w}, {c.books}), not {tuple(codes.shape)}")
        if c.mode == "paper" and codes.shape[1] > c.latent[0]:
            raise UserError(
                f"a paper-mode prior ends after {c.latent[0]} latent frames; use mode = stream for longer ones"
            )
        if c.condition == "none":
            return None
        wanted = (len(codes), c.condition_dim) if c.condition == "clip" else (*codes.shape[:2], c.condition_dim)
        if condition is None or tuple(condition.shape) != wanted:
            have = None if condition is None else tuple(condition.shape)
            raise UserError(
                f"this prior is conditioned on {wanted} per {c.condition}, not {have}; train one for these actions"
            )
        return condition[:, None] if c.condition == "clip" else condition

    def vectors(self, codes: Tensor, positions: Tensor | None = None) -> Tensor:
        """(b, t, n, m) -> (b, t, n or positions, m, code_dim), each code from its own codebook."""
        if self.config.books == 1:
            return F.embedding(codes if positions is None else codes[:, :, positions], self.codebook[0])
        book = torch.arange(codes.shape[2] * codes.shape[3], device=codes.device).view(codes.shape[2:])
        vectors = self.codebook[book % self.config.books, codes]
        return vectors if positions is None else vectors[:, :, positions]

    def by_position(self, codes: Tensor) -> Tensor:
        """(b, t, h, w, g) -> (b, t, n, m)."""
        p = self.config.patch
        if p == 1:
            return codes.flatten(2)[..., None]
        return rearrange(codes, "b t (h p) (w q) g -> b t (h w) (p q g)", p=p, q=p)

    def ungroup(self, grouped: Tensor) -> Tensor:
        """(b, t, n, m, ...) -> (b, t, h, w, g, ...), the reverse."""
        c, p = self.config, self.config.patch
        h, w, _ = c.grid
        rest = grouped.shape[4:]
        if p > 1:
            grouped = rearrange(
                grouped.flatten(4) if rest else grouped[..., None],
                "b t (h w) (p q g) k -> b t (h p) (w q) g k", h=h, w=w, p=p, q=p,
            )  # fmt: skip
        return grouped.reshape(*grouped.shape[:2], *c.latent[1:], c.books, *rest)

    def _tell(self, codes: Tensor, last: Tensor | None, positions: Tensor) -> Tensor:
        """What positions are told (b, t, ., width): their parents; the first pass, the `last` of the past frame."""
        told = 0
        for slot, layer in enumerate(self.inputs):
            parent = self.parents[positions, slot]
            given = self.vectors(codes, parent.clamp(min=0)).flatten(3)
            if len(self.inputs) > 1:  # in the other orders only the first pass has no parents
                given = given * (parent != NONE)[:, None]
            if slot == 0 and last is not None:
                given[:, :, self.order.first if len(positions) == len(self.order) else slice(None)] = last
            told = told + layer(given)
        return told  # type: ignore[return-value]

    def _places(self, start: int, t: int) -> Tensor:
        """Position embeddings (t or 1, n, width) of frames from index `start` on."""
        places = self.positions()
        if self.config.mode == "stream":
            return places.reshape(1, len(self.order), -1)
        if start + t > len(places):
            raise UserError(
                f"a paper-mode prior ends after {len(places)} latent frames; use mode = stream for longer ones"
            )
        return places[start : start + t].reshape(t, len(self.order), -1)

    def _mask(self, t: int) -> Mask:
        """Of a clip of t frames: none to store where it is plainly causal, blocks where a GPU skips empty ones."""
        c, device = self.config, self.start.device
        if not c.local and c.order == "raster" and t <= c.reach:
            return "causal"
        if (t, device) not in self._masks:
            if c.local and device.type == "cuda":
                self._masks[t, device] = block_mask(self.order, t, c.reach, c.local, device)
            else:
                self._masks[t, device] = clip_mask(self.order, t, c.reach, c.local).to(device)
        return self._masks[t, device]

    def near(self, cache: Cache, positions: Tensor, now: int) -> Tensor:
        """(positions, keys) what positions see of the ring and of `now` of their frame, under sparse attention."""
        slots = self.config.reach - 1
        used = torch.arange(cache.slots, device=positions.device)
        back = (used - cache.time) % max(slots, 1)  # slots behind the oldest
        rows = self.reachable[positions]
        return torch.cat([rows[..., back, :].flatten(-2), rows[..., slots, :now]], dim=-1)
