"""GPT over the codes of a video (section 3, Table 9).

Pre-norm blocks of self-attention and feed-forward, dropout after each, input from the codebook's own vectors, a
learned start token, an output head that starts at zero: the official code's choices. Two configs, one model:

* `mode="paper"`: learned absolute positions in time and space, attention over the whole clip, raster order, and one
  condition for the clip (all its actions in a row: 15 transitions x 4 = 60 for HGS, Table 9). It ends after a clip,
  and every code knows the future actions.
* `mode="stream"`: a condition for each latent frame (the actions that led into it), attention over the last `window`
  frames with relative time, anti-diagonal order. It has no end, and nothing knows the future: what a simulator needs.

Two options of ours, for speed and for endless dreams:

* `patch_size`: the transformer sees square patches of codes as one position, and a small head predicts the codes of
  a patch one after the other, each given those before it. With patches of 2 the same picture costs a quarter of the
  transformer's work, in training and in dreams, and the factorisation is as exact as before.
* `code_noise`: in training some of the codes that the model is given, never those it must predict, are replaced by
  random ones, so that it learns to go on from the slips of its own dreams. Little is enough: with up to a fifth of them
  random a dream of Take Cover took its fireballs for slips and mended them away.

Dimensions: b batch, t latent frames, h w g rows, columns and codebooks, n positions of a frame with m codes each, k
code values, c condition. Codes are (b, t, h, w, g), or (b, t, n, m) by position; positions count in raster order.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from worldmodel.models.attention import KVCache, Mask, rotary_embedding
from worldmodel.models.conditioning import ConditionalNorm
from worldmodel.models.decoding_order import NO_PARENT, DecodingOrder
from worldmodel.models.layers import AxialPositionEmbedding
from worldmodel.models.prior_config import Conditioning, PriorConfig
from worldmodel.models.resnet import ResNet
from worldmodel.models.sparse_attention import block_mask, clip_mask
from worldmodel.models.transformer import Block, Head, StepContext
from worldmodel.models.vqvae import to_float
from worldmodel.utils.errors import UserError

__all__ = ["Conditioning", "Prior", "PriorConfig"]


class Prior(nn.Module):
    """p(codes | condition), one latent frame after the other."""

    codebook: Tensor
    condition_scale: Tensor
    parents: Tensor
    sequence: Tensor
    reachable: Tensor

    def __init__(self, config: PriorConfig, codebook: Tensor | None = None) -> None:
        """`codebook` (books, codes, code_dim) are the VQ-VAE's code vectors; they stay as they are."""
        super().__init__()
        self.config = config
        t = config.latent_shape[0]
        self.order = DecodingOrder(config.decoding_order, *config.grid)
        shape = (config.n_codebooks, config.n_codes, config.embedding_dim)
        if codebook is not None and tuple(codebook.shape) != shape:
            raise UserError(
                f"the prior's config asks for a codebook of {shape}, the VQ-VAE has {tuple(codebook.shape)}"
            )
        self.register_buffer("codebook", torch.zeros(shape) if codebook is None else codebook.clone())
        self.register_buffer("condition_scale", torch.tensor(config.condition_scale or 1.0), persistent=False)
        self.register_buffer("sequence", torch.cat(self.order.passes), persistent=False)
        # what the last frame of a full ring sees of it, each frame in the order it is cached in
        if config.local_window:
            last = clip_mask(self.order, config.attention_frames, config.attention_frames, config.local_window)[
                -len(self.order) :
            ]
            reachable = last.unflatten(1, (config.attention_frames, -1))[..., self.sequence]
            self.register_buffer("reachable", reachable, persistent=False)
        self.register_buffer("parents", self.order.parents, persistent=False)
        self.input_projections = nn.ModuleList(
            nn.Linear(config.codes_per_position * config.embedding_dim, config.d_model, bias=False)
            for _ in range(2 if config.decoding_order == "diagonal" else 1)
        )
        self.start_token = nn.Parameter(torch.randn(config.d_model) * 0.02)
        place = config.grid if config.grid[2] > 1 else config.grid[:2]
        self.position_embedding = AxialPositionEmbedding(
            place if config.mode == "stream" else (t, *place), config.d_model, config.pos_emb_init_std
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.final_norm = ConditionalNorm(config.d_model, config.condition_dim)
        self.head = Head(config)
        if config.n_cond_frames:
            self.resnet = ResNet(
                config.resnet_depth,
                config.n_cond_frames,
                config.cond_frame_shape,
                config.cond_dim,
                config.pos_emb_init_std,
            )
        self._masks: dict[tuple[int, torch.device], Mask] = {}

    def encode_cond_frames(self, frames: Tensor) -> Tensor:
        """Conditioning frames (b, seen, H, W, c) uint8 -> features (b, m, units), as the other methods take them."""
        wanted = (self.config.n_cond_frames, *self.config.cond_frame_shape)
        if not self.config.n_cond_frames or tuple(frames.shape[1:]) != wanted:
            raise UserError(f"this prior looks at conditioning frames of {wanted}, not {tuple(frames.shape[1:])}")
        return self.resnet(to_float(frames, self.start_token.dtype))

    def forward(self, codes: Tensor, condition: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        """Logits (b, t, h, w, g, k) of every code given the codes before it. Condition (b, t, c) or (b, c)."""
        return self.ungroup_codes(self.forward_clip(codes, condition, features)[0])

    def loss(self, codes: Tensor, condition: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        """Cross entropy of each latent frame, in nats per code: (b, t). Over ln 2 it is the paper's bits/dim."""
        noisy_codes = self.add_code_noise(codes) if self.training and self.config.code_noise else codes
        logits, target = self.forward_clip(noisy_codes, condition, features)[0].float(), self.group_codes(codes)
        loss = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none")
        return loss.view(*target.shape).mean((2, 3))

    def add_code_noise(self, codes: Tensor) -> Tensor:
        """Codes of which a share is random; the share is uniform up to `code_noise`, another one for each clip."""
        share = torch.rand(len(codes), 1, 1, 1, 1, device=codes.device) * self.config.code_noise
        random = torch.randint_like(codes, self.config.n_codes)
        return torch.where(torch.rand(codes.shape, device=codes.device) < share, random, codes)

    def forward_clip(
        self, codes: Tensor, condition: Tensor | None, features: Tensor | None = None, start: int = 0
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits (b, t, n, m, k) and each layer's keys and values, for a clip whose first frame has index `start`."""
        t = codes.shape[1]
        context = self.step_context(start, t, self.check_inputs(codes, condition), features)
        grouped = self.group_codes(codes)
        vectors = self.code_vectors(grouped)
        ends = vectors[:, :-1, self.order.last_pass].flatten(3)
        last_vectors = torch.cat([ends.new_zeros(len(codes), 1, *ends.shape[2:]), ends], dim=1)
        x = self._embed_inputs(grouped, last_vectors, torch.arange(len(self.order), device=codes.device))
        x[:, 0, self.order.first_pass] = self.start_token.to(x.dtype)
        x = x + context.position_embeddings
        mask, memory = self._clip_mask(t), []
        for layer, block in zip(context.blocks, self.blocks, strict=True):
            x, kv = block(x, layer, context.rotary, mask)
            memory.append(kv)
        return self.head(self.final_norm(x, context.final_modulation), vectors), memory

    def step_context(self, start: int, t: int, condition: Tensor | None, features: Tensor | None) -> StepContext:
        """For t frames from index `start` on, under a condition (b, t or 1, c)."""
        if (features is None) == bool(self.config.n_cond_frames):
            raise UserError(
                f"this prior looks at {self.config.n_cond_frames} conditioning frames; give what "
                "`encode_cond_frames` makes of them"
            )
        condition = None if condition is None else condition / self.condition_scale
        return StepContext(
            [block.context(condition, features) for block in self.blocks],  # type: ignore[operator]
            self.final_norm.modulation(condition),
            self._position_embeddings(start, t),
            self.rotary(start, t),
        )

    def rotary(self, start: int, t: int = 1) -> Tensor | None:
        """(2, 1 or t*n, d) the rotation of t frames from index `start` on; none where time is absolute."""
        if self.config.mode == "paper":
            return None
        times = torch.arange(start, start + t, device=self.start_token.device)
        rotary = rotary_embedding(times, self.config.d_model // self.config.n_heads, self.start_token.dtype)
        return rotary if t == 1 else rotary.repeat_interleave(len(self.order), 1)

    def empty_cache(self, batch: int) -> KVCache:
        """A cache with nothing in it: the next frame is a video's first.

        Of a bfloat16 model that draws code by code it is in float32 on a CPU, where products of one row in bfloat16 are
        slower than twice the reading.
        """
        c, like = self.config, self.start_token
        exact = c.decoding_order == "raster" and like.device.type == "cpu" and like.dtype == torch.bfloat16
        size = (batch, c.n_kv_heads or c.n_heads, 2, c.attention_frames * len(self.order), c.d_model // c.n_heads)
        pairs = [like.new_zeros(size, dtype=torch.float32 if exact else None) for _ in range(c.n_layers)]
        valid = torch.zeros(batch, c.attention_frames - 1, dtype=torch.bool, device=like.device)
        codes = torch.zeros(batch, len(self.order), c.codes_per_position, dtype=torch.long, device=like.device)
        last = like.new_zeros(batch, len(self.order.last_pass), c.codes_per_position * c.embedding_dim)
        return KVCache(pairs, valid, last, codes)

    def prefill(
        self, codes: Tensor, condition: Tensor | None = None, start: int = 0, features: Tensor | None = None
    ) -> KVCache:
        """The cache after the frames of a context (b, t, h, w, g), the first of which has index `start`."""
        b, t = codes.shape[:2]
        cache, n = self.empty_cache(b), len(self.order)
        slots = cache.valid.shape[1]
        memory = self.forward_clip(codes, condition, features, start)[1]
        for frame in range(max(0, t - slots), t):
            at, source = (start + frame) % slots, frame * n + self.sequence
            for ring, pair in zip(cache.kv, memory, strict=True):
                ring[:, :, :, at * n : (at + 1) * n] = pair[:, :, :, source]
            cache.valid[:, at] = True
        vectors = self.code_vectors(self.group_codes(codes[:, -1:]), self.passes()[-1])
        cache.last_vectors, cache.time = vectors[:, 0].flatten(2), start + t
        return cache

    def begin_frame(
        self, cache: KVCache, condition: Tensor | None = None, features: Tensor | None = None
    ) -> StepContext:
        """What the passes over the next frame share, under its condition (b, c)."""
        context = self.step_context(cache.time, 1, None if condition is None else condition[:, None], features)
        return context._replace(past_mask=cache.past_mask())

    def passes(self) -> tuple[Tensor, ...]:
        """The positions of each pass, in order, where the model is."""
        return self.sequence.split([len(positions) for positions in self.order.passes])

    def forward_pass(self, cache: KVCache, positions: Tensor, context: StepContext) -> Tensor:
        """Features (b, positions, width) of one pass: the codes of its parents must be in `cache.codes`."""
        if cache.n_cached:
            x = self._embed_inputs(cache.codes[:, None], None, positions)
        else:
            x = self.input_projections[0](cache.last_vectors)[:, None] if cache.time else self.start_token
        x = x + context.position_embeddings[..., positions, :].expand(len(cache.codes), -1, -1, -1)
        mask, now = context.past_mask, cache.n_cached + len(positions)
        if mask is not None:
            mask = F.pad(mask, (0, now), value=True)[:, None, None]
        if self.config.local_window:
            near = self.sparse_mask(cache, positions, now)
            mask = near if mask is None else mask & near
        for index, (layer, block) in enumerate(zip(context.blocks, self.blocks, strict=True)):
            assert isinstance(block, Block)
            x = block.forward_pass(x, layer, context.rotary, partial(cache.write, index), mask)
        cache.n_cached = now
        return self.final_norm(x, context.final_modulation)[:, 0]

    def finish_frame(self, cache: KVCache) -> None:
        """All codes of the frame are in `cache.codes`: begin the next one."""
        cache.finish_frame(self.code_vectors(cache.codes[:, None], self.passes()[-1])[:, 0].flatten(2))

    def check_inputs(self, codes: Tensor, condition: Tensor | None) -> Tensor | None:
        """The condition as (b, t or 1, c); one sentence if codes or condition do not fit the model."""
        c, (_, h, w) = self.config, self.config.latent_shape
        if tuple(codes.shape[2:]) != (h, w, c.n_codebooks):
            raise UserError(
                f"this prior takes codes of (batch, time, {h}, {w}, {c.n_codebooks}), not {tuple(codes.shape)}"
            )
        if c.mode == "paper" and codes.shape[1] > c.latent_shape[0]:
            raise UserError(
                f"a paper-mode prior ends after {c.latent_shape[0]} latent frames; use mode = stream for longer ones"
            )
        if c.conditioning == "none":
            return None
        wanted = (len(codes), c.condition_dim) if c.conditioning == "clip" else (*codes.shape[:2], c.condition_dim)
        if condition is None or tuple(condition.shape) != wanted:
            have = None if condition is None else tuple(condition.shape)
            raise UserError(
                f"this prior is conditioned on {wanted} per {c.conditioning}, not {have}; train one for these actions"
            )
        return condition[:, None] if c.conditioning == "clip" else condition

    def code_vectors(self, codes: Tensor, positions: Tensor | None = None) -> Tensor:
        """(b, t, n, m) -> (b, t, n or positions, m, code_dim), each code from its own codebook."""
        if self.config.n_codebooks == 1:
            return F.embedding(codes if positions is None else codes[:, :, positions], self.codebook[0])
        codebook = torch.arange(codes.shape[2] * codes.shape[3], device=codes.device).view(codes.shape[2:])
        vectors = self.codebook[codebook % self.config.n_codebooks, codes]
        return vectors if positions is None else vectors[:, :, positions]

    def group_codes(self, codes: Tensor) -> Tensor:
        """(b, t, h, w, g) -> (b, t, n, m)."""
        p = self.config.patch_size
        if p == 1:
            return codes.flatten(2)[..., None]
        return rearrange(codes, "b t (h p) (w q) g -> b t (h w) (p q g)", p=p, q=p)

    def ungroup_codes(self, grouped: Tensor) -> Tensor:
        """(b, t, n, m, ...) -> (b, t, h, w, g, ...), the reverse."""
        c, p = self.config, self.config.patch_size
        h, w, _ = c.grid
        rest = grouped.shape[4:]
        if p > 1:
            grouped = rearrange(
                grouped.flatten(4) if rest else grouped[..., None],
                "b t (h w) (p q g) k -> b t (h p) (w q) g k", h=h, w=w, p=p, q=p,
            )  # fmt: skip
        return grouped.reshape(*grouped.shape[:2], *c.latent_shape[1:], c.n_codebooks, *rest)

    def _embed_inputs(self, codes: Tensor, last_vectors: Tensor | None, positions: Tensor) -> Tensor:
        """What positions are told (b, t, ., width): their parents; the first pass, the `last_vectors` of the past
        frame."""
        embedded = 0
        for slot, layer in enumerate(self.input_projections):
            parent_index = self.parents[positions, slot]
            parents = self.code_vectors(codes, parent_index.clamp(min=0)).flatten(3)
            if len(self.input_projections) > 1:  # in the other orders only the first pass has no parents
                parents = parents * (parent_index != NO_PARENT)[:, None]
            if slot == 0 and last_vectors is not None:
                parents[:, :, self.order.first_pass if len(positions) == len(self.order) else slice(None)] = (
                    last_vectors
                )
            embedded = embedded + layer(parents)
        return embedded  # type: ignore[return-value]

    def _position_embeddings(self, start: int, t: int) -> Tensor:
        """Position embeddings (t or 1, n, width) of frames from index `start` on."""
        places = self.position_embedding()
        if self.config.mode == "stream":
            return places.reshape(1, len(self.order), -1)
        if start + t > len(places):
            raise UserError(
                f"a paper-mode prior ends after {len(places)} latent frames; use mode = stream for longer ones"
            )
        return places[start : start + t].reshape(t, len(self.order), -1)

    def _clip_mask(self, t: int) -> Mask:
        """Of a clip of t frames: none to store where it is plainly causal, blocks where a GPU skips empty ones."""
        c, device = self.config, self.start_token.device
        if not c.local_window and c.decoding_order == "raster" and t <= c.attention_frames:
            return "causal"
        if (t, device) not in self._masks:
            if c.local_window and device.type == "cuda":
                self._masks[t, device] = block_mask(self.order, t, c.attention_frames, c.local_window, device)
            else:
                self._masks[t, device] = clip_mask(self.order, t, c.attention_frames, c.local_window).to(device)
        return self._masks[t, device]

    def sparse_mask(self, cache: KVCache, positions: Tensor, n_now: int) -> Tensor:
        """(positions, keys) what positions see of the ring and of `n_now` of their frame, under sparse attention."""
        slots = self.config.attention_frames - 1
        used = torch.arange(cache.n_used_slots, device=positions.device)
        back = (used - cache.time) % max(slots, 1)  # slots behind the oldest
        rows = self.reachable[positions]
        return torch.cat([rows[..., back, :].flatten(-2), rows[..., slots, :n_now]], dim=-1)
